"""README and docs, taken at their word.

Commands parse, Python runs, links lead somewhere.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import av
import numpy as np
import pytest
from support.toy_engine import write_toy_engine

from mssts.cli import parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "plugins/README.md")),
    *sorted(ROOT.glob("docs/*.md")),
]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The arguments of each `mssts` command in a page's blocks, `torchrun`'s included."""
    found = []
    for language, text in blocks(page):
        if language in ("", "sh", "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                match = re.match(r"\s*(?:\.venv/bin/)?(?:mssts|torchrun .*-m mssts\.cli) (.*)", line)
                if match:
                    found.append(match[1])
    return found


COMMANDS = [(page.name, command) for page in PAGES for command in commands(page)]
PYTHON = [(page.name, text) for page in PAGES for language, text in blocks(page) if language == "python"]


def test_the_pages_have_commands_and_python() -> None:
    assert {name for name, _ in COMMANDS} >= {
        "README.md",
        "custom-data.md",
        "benchmarks.md",
        "multi-gpu.md",
        "outgrowing-one-machine.md",
    }
    stages = {command.split()[0] for name, command in COMMANDS if name == "README.md"}
    assert stages >= {"data", "train", "export", "quantize", "build-engine", "serve", "predict", "evaluate"}
    assert "README.md" in {name for name, _ in PYTHON}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_each_command_is_one(page: str, command: str) -> None:
    parser().parse_args(shlex.split(command, comments=True))


@pytest.mark.parametrize(("page", "program"), PYTHON, ids=[name for name, _ in PYTHON])
def test_each_python_block_runs(
    page: str, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with an engine in `runs/engine`, a `video.mp4` and its `frames`."""
    pytest.importorskip("supervision")
    write_toy_engine(tmp_path / "runs" / "engine")
    frames = np.full((5, 96, 128, 3), 60, np.uint8)
    frames[:, 16:64, 16:64] = (255, 0, 0)
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    monkeypatch.chdir(tmp_path)
    names = {"frames": frames}
    exec(compile(program, page, "exec"), names)
    if page == "README.md":
        assert "red" in capsys.readouterr().out
        assert (tmp_path / "runs" / "predict" / "results.json").exists()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_each_link_leads_to_a_file(page: Path) -> None:
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))]
    missing = [link for link in links if link and "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [ROOT / "docs/architecture.md", ROOT / "README.md"], ids=lambda page: page.name)
def test_each_source_file_that_is_named_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:mssts|export|training|bench|plugins|tests|docs|triton_repo)/[\w./-]*)`", text)
    assert named and [name for name in named if not (ROOT / name).exists()] == []
