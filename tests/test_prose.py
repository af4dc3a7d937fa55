"""The rules of the project's prose and of the size of its files.

A docstring begins with one short line that can be read alone, words are those of docs/architecture.md's glossary, and a
file fits into one reading.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LONGEST_SUMMARY = 80
MOST_LINES = 400
PROSE = {".md", ".cpp", ".h", ".inl", ".cu", ".cuh"}
SOURCES = {".py", ".sh", ".cmake", *PROSE} - {".md"}

# Private words, and phrases that make a reader stop.
FORBIDDEN = re.compile(
    r"\b(doors?|cures?|companions?|bodies|additions|told|contenders?|opponents?|anew|alike|whoever)\b"
    r"|\bof (?:ours|theirs)\b",
    re.IGNORECASE,
)
# "function body" is ONNX's term, and `companions` a key of the manifest and of the tables made of it.
ALLOWED = re.compile(
    r"\bfunction[ _]bodies\b|`companions`|\"companions\"|\bcompanions[=:]|\.companions\b|^companions$", re.IGNORECASE
)

# Folders, or files, that do not keep the rules yet, and why.
NOT_YET: dict[str, str] = {}


def _tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a checkout of git")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    # A link, as `mssts/export`, leads to files that are listed themselves, and a file may be deleted and not committed.
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def _files(*suffixes: str) -> list[Path]:
    def waits(path: Path) -> bool:
        return any(path.is_relative_to(ROOT / place) for place in NOT_YET)

    return [path for path in _tracked() if path.suffix in suffixes and not waits(path)]


def _place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and the text of every docstring of a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def summary_problem(docstring: str) -> str | None:
    """The rule that a docstring's beginning breaks, if any."""
    summary, *rest = docstring.split("\n")
    if len(summary) > LONGEST_SUMMARY:
        return f"{len(summary)} characters, {LONGEST_SUMMARY} allowed"
    if ";" in summary:
        return "a semicolon"
    if rest and rest[0].strip():
        return "no blank line after it"
    return None


def forbidden_words(text: str) -> list[str]:
    """The forbidden words of a text, less those that are allowed where they stand."""
    return FORBIDDEN.findall(ALLOWED.sub("", text))


def _python_prose(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every comment and string, so also docstrings and messages."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


@pytest.mark.parametrize(
    ("docstring", "problem"),
    [
        ("Masks of a clip.", None),
        ("Masks of a clip.\n\nMore; in a paragraph of its own.", None),
        ("x" * 81, "81 characters, 80 allowed"),
        ("Masks; boxes.", "a semicolon"),
        ("Masks of a clip,\nand boxes.", "no blank line after it"),
    ],
)
def test_the_rule_of_docstrings(docstring: str, problem: str | None) -> None:
    assert summary_problem(docstring) == problem


def test_the_rule_of_words() -> None:
    words = ["alike", "bodies", "Told"]
    assert forbidden_words(f"{words[0]} in name, function bodies, other {words[1]}; `companions`. {words[2]}") == words


def test_docstrings_begin_with_one_short_line() -> None:
    found = [
        f"{_place(path, line)}: {problem}"
        for path in _files(".py")
        for line, text in _docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if (problem := summary_problem(text))
    ]
    assert not found, "\n".join(["first lines of docstrings:", *found])


def test_no_private_words() -> None:
    found = []
    for path in _files(".py", *PROSE):
        if path == Path(__file__).resolve():
            continue  # it spells them
        text = path.read_text(encoding="utf-8")
        pieces = _python_prose(text) if path.suffix == ".py" else enumerate(text.splitlines(), 1)
        found += [f"{_place(path, line)}: {word}" for line, piece in pieces for word in forbidden_words(piece)]
    assert not found, "\n".join(["private words:", *found])


def test_no_source_file_is_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _files(*SOURCES)}
    long = [f"{_place(path, n)}: at most {MOST_LINES} lines" for path, n in lengths.items() if n > MOST_LINES]
    assert not long, "\n".join(long)
