"""The baseline model computes what the released code computed.

The released code's values are in tests/golden/resnet50.npz.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import golden

from mssts.training.criterion import Criterion

FILE = Path(__file__).parents[1] / "golden" / "resnet50.npz"


def test_every_output_and_loss_is_the_released_codes():
    values = dict(np.load(FILE))
    # Two that must not pass: a value that is off by ten times the bound, and one that nothing is compared with.
    values["a_logits"][7, 3] += 0.01
    values["c_loss_unheard_of"] = np.float32(1)
    entries = {entry.name: entry for entry in golden.compare(values, golden.read_keys(FILE, "resnet50"), "resnet50")}
    assert len(entries) == 6 + 30 + 1  # of cases A and B; five losses of six layers; the unheard of
    assert all("_error" in name for name in values.keys() - entries.keys())  # what the released code logs besides
    assert {name for name, entry in entries.items() if not entry.holds} == {"a_logits", "c_loss_unheard_of"}
    assert entries["a_logits"].error == pytest.approx(0.01, abs=1e-3)


@torch.no_grad()
def test_absent_frames_as_in_the_released_code_or_left_out():
    """Box losses of instances that are absent from a frame are the released ones.

    tests/golden/absent_frames.json holds those of the released matcher and criterion (OmkarThawakar/MSSTS-VIS at
    82b2c1b), run on our predictions of case C with an instance absent from one frame.
    """
    model = golden.golden_model(golden.read_keys(FILE, "resnet50"), "resnet50")
    prediction, targets = golden.absent_case(model)
    released = json.loads((FILE.parent / "absent_frames.json").read_text())
    as_released = Criterion(absent_boxes=True)(model, prediction, targets).terms
    ours = Criterion()(model, prediction, targets).terms
    assert len(released) == 12
    for name, value in released.items():
        assert float(as_released[name]) == pytest.approx(value, rel=1e-4), name
        assert float(ours[name]) != pytest.approx(value, rel=1e-2), name


def test_keys_beside_the_file_come_before_those_of_the_tests(tmp_path):
    file = tmp_path / "values.npz"
    assert golden.read_keys(file, "resnet101") == json.loads((FILE.parent / "resnet101.keys.json").read_text())
    (tmp_path / "resnet101.keys.json").write_text('{"a": [1]}')
    assert golden.read_keys(file, "resnet101") == {"a": [1]}


@pytest.mark.parametrize(("error", "code"), [(9e-4, 0), (2e-3, 1), (float("nan"), 1)])
def test_the_script_tells_by_its_exit_code(monkeypatch, capsys, error, code):
    monkeypatch.setattr("sys.argv", ["golden.py", str(FILE)])
    monkeypatch.setattr(golden, "compare", lambda *_: [golden.Entry("a_boxes", error, 1e-3)])
    assert golden.main() == code
    assert ("ABOVE ITS BOUND" in capsys.readouterr().out) == bool(code)
