"""The schema of docs/streams.md, held against what a stream writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from support.streams import ColourSegmenter, HandSource

from mssts.streaming.options import StreamOptions
from mssts.streaming.stream import Stream

PAGE = Path(__file__).resolve().parents[2] / "docs" / "streams.md"
TYPES = {
    "object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None),
}  # fmt: skip


def problems(value: Any, schema: dict[str, Any], place: str = "line") -> list[str]:
    """What a JSON value breaks of a schema, for the keywords that the page uses."""
    known = {
        "type", "required", "additionalProperties", "properties", "items", "minimum", "maximum", "minItems", "maxItems",
    }  # fmt: skip
    assert schema.keys() <= known
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if isinstance(value, bool) or not any(isinstance(value, TYPES[kind]) for kind in kinds):
        return [f"{place}: not of type {schema['type']}"]
    found = []
    if isinstance(value, dict):
        found += [f"{place}: lacks {key}" for key in schema.get("required", ()) if key not in value]
        for key, item in value.items():
            if key in schema["properties"]:
                found += problems(item, schema["properties"][key], f"{place}.{key}")
            elif not schema.get("additionalProperties", True):
                found.append(f"{place}: has {key}")
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{place}: {len(value)} items")
        for index, item in enumerate(value):
            found += problems(item, schema["items"], f"{place}[{index}]")
    elif isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{place}: {value} is out of range")
    return found


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    (block,) = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return json.loads(block)


def test_every_line_is_as_the_page_says(schema: dict[str, Any]) -> None:
    source = HandSource(is_live=False)
    source.give(*range(25), wait=False)
    source.end()
    with Stream(source.source, ColourSegmenter(), StreamOptions()) as stream:
        lines = [result.to_line() for result in stream]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert [problem for line in lines for problem in problems(json.loads(line), schema)] == []
    assert any(len(json.loads(line)["instances"]) == 2 for line in lines)


def test_the_check_sees_what_is_wrong(schema: dict[str, Any]) -> None:
    assert problems({"frame": -1, "time": None}, schema) == ["line: lacks instances", "line.frame: -1 is out of range"]
    assert problems({"frame": 0, "time": "x", "instances": [], "more": 1}, schema) == [
        "line.time: not of type ['number', 'null']",
        "line: has more",
    ]
