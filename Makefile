# Two commands: `make demo` runs the main job, `make test` the tests. Both set up .venv first.

VENV := .venv
BIN := $(VENV)/bin
# The Triton wheel has builds for Python 3.10 to 3.12; 3.13 does everything but serve.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.10 python3.13 python3,$(if $(shell $(p) -c pass 2>/dev/null && echo y),$(p))))
# Extra arguments for pip, for example an index of CPU-only builds of torch.
PIP_ARGS ?=
TORCH ?= torch==2.13.0
# Extra arguments for CMake, for example PLUGINS_ARGS="-DTENSORRT_INCLUDE_DIR=/opt/tensorrt/include".
PLUGINS_ARGS ?=
CXX_FOUND := $(shell command -v $(CXX) 2>/dev/null)

OPENVINO_BINDING := mssts/lib/libmssts_openvino.so
CXX_SOURCES := git ls-files -z '*.cpp' '*.h' '*.inl' '*.cu' '*.cuh'
# $(call configure,-D…): what to build; $(BUILD) builds it.
configure = PATH="$(abspath $(BIN)):$$PATH" cmake -S plugins -B build/plugins -G Ninja --log-level=WARNING \
  -DMSSTS_PYTHON="$(abspath $(BIN))/python" $(1)
BUILD := PATH="$(abspath $(BIN)):$$PATH" cmake --build build/plugins

.PHONY: help setup demo plugins test test-long test-soak test-gpu bench-gpu lint format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.ready ## the pinned environment in .venv

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.13 found; install python3.11 (with python3.11-venv)"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make environments; install its venv package"; exit 2; }
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt "$(TORCH)" --editable ".[dev]"
	touch $@

# The demo's engine runs on our kernels where they can be built; the definitions of the ops in the file do as well.
# The shipped checkpoint knows ten drawn shapes only; docs/public-weights.md says where weights for real objects are.
demo: setup $(if $(CXX_FOUND),$(OPENVINO_BINDING)) ## the main job: shapes → ONNX → Triton → client → masks and AP (CHECKPOINT=released.pth VIDEO=clip.mp4: public weights on your own video)
	$(BIN)/mssts demo $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(if $(VIDEO),--video "$(VIDEO)")

$(OPENVINO_BINDING): | setup
	@echo "building the kernels for the processor (make plugins builds all)"
	@{ $(call configure,-DMSSTS_PARTS="cpu;openvino") && $(BUILD) >/dev/null; } \
	  || echo "they cannot be built here, so the ops run by their definitions, which is slower"

plugins: setup ## the kernels: CPU, CUDA, ONNX Runtime, TensorRT; what cannot be built here is named with the reason
	@test -n "$(CXX_FOUND)" || { echo "error: no C++ compiler ($(CXX)) found; install g++ or clang++, or set CXX"; exit 2; }
	$(call configure,-DMSSTS_PARTS="cpu;cuda;onnxruntime;openvino;tensorrt") $(PLUGINS_ARGS)
	$(BUILD)
	@cat build/plugins/report.txt

# The kernels are built first where there is a C++ compiler; without one their tests say that they were skipped.
test: setup $(if $(CXX_FOUND),plugins) ## every test that runs without a GPU
	$(BIN)/python -m pytest

test-long: setup ## the tests that take minutes: whole presets exported, and through TensorRT-RTX's builder
	$(BIN)/python -m pytest -m long

test-soak: setup $(if $(CXX_FOUND),plugins) ## minutes of load, floods and thousands of broken requests on the real server; a quiet machine
	$(BIN)/python -m pytest -m soak -s

test-gpu: setup plugins ## the tests that need an NVIDIA GPU; an error, not a skip, where there is none
	$(BIN)/python -m pytest -m gpu --require-gpu

# STOCK=path: a checkout of Deformable-DETR, whose kernel is measured as well. What fails is named at the end, and stops
# nothing.
bench-gpu: setup plugins ## kernels, profiler and whole engines on an NVIDIA GPU, into runs/gpu (one to two hours)
	PYTHON=$(BIN)/python STOCK="$(STOCK)" SECONDS_OF_PART=7200 SECONDS_OF_FPS=3600 CACHE=runs/bench_fps \
	  FPS_ARGUMENTS="--scopes model,pipeline --switches baseline,all --precision fp32,tf32,fp16,bf16 --runners \
	  pytorch-cuda,pytorch-compiled-cuda,onnxruntime-cuda,tensorrt,tensorrt-rtx" bench/gpu_session.sh runs/gpu

lint: setup ## ruff, mypy and clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(CXX_SOURCES) | xargs -0 $(BIN)/clang-format --dry-run --Werror

format: setup ## formatting, and ruff's safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(CXX_SOURCES) | xargs -0 $(BIN)/clang-format -i

clean: ## everything that was built, the environment included
	rm -rf $(VENV) runs build dist mssts/lib *.egg-info
