# Two commands: `make demo` runs the main job, `make test` the tests. Both set up .venv first.

VENV := .venv
BIN := $(VENV)/bin
# The Triton wheel has builds for Python 3.10 to 3.12; 3.13 does everything but serve.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.10 python3.13 python3,$(if $(shell $(p) -c pass 2>/dev/null && echo y),$(p))))
# Extra arguments for pip, for example an index of CPU-only builds of torch.
PIP_ARGS ?=
TORCH ?= torch==2.13.0

.PHONY: help setup demo test lint format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## the pinned environment in .venv

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found; install python3.11 (with python3.11-venv)"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make environments; install its venv package"; exit 2; }
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt "$(TORCH)" --editable ".[dev]"
	touch $@

demo: setup ## the main job: shapes → ONNX → Triton → client → masks and AP (VIDEO=clip.mp4 for your own video)
	$(BIN)/mssts demo $(if $(VIDEO),--video "$(VIDEO)")

test: setup ## every test that runs without a GPU
	$(BIN)/python -m pytest

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## ruff's formatting and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## everything that was built, the environment included
	rm -rf $(VENV) runs build dist *.egg-info
