"""Checkpoints of the released code: loading in full or not at all, and training."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mssts.cli import main
from mssts.commands import convert
from mssts.data.youtube_vis_classes import YOUTUBE_VIS_2019, YOUTUBE_VIS_2021
from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.model.checkpoint import Checkpoint, initialise, load_checkpoint, save_checkpoint
from mssts.model.config import BASELINE, Preset, Switches, mssts_r50, preset, tiny
from mssts.model.mssts_vis import MSSTSVIS, parameter_shapes
from mssts.model.released import convert_released, our_name, read_released, released_categories

GOLDEN = Path(__file__).parents[1] / "golden"
PRESET_OF = {
    "resnet50": "mssts_r50",
    "resnet101": "mssts_r101",
    "resnext101_32x8d": "mssts_x101",
    "swin_l_p4w12": "mssts_swin_l",
}
UNUSED = (".temp_attn_box.", ".output_proj_box.", ".decoder.bbox_embed.", ".body.norm0.", ".relative_position_index")


def released_shapes(backbone: str) -> dict[str, list[int]]:
    return json.loads((GOLDEN / f"{backbone}.keys.json").read_text())


def released_model(backbone: str = "resnet50") -> dict[str, Tensor]:
    """A released state dict, each tensor filled with and stored as its own number."""
    shapes = released_shapes(backbone).items()
    return {name: torch.tensor(i / 1000).expand(shape) for i, (name, shape) in enumerate(shapes)}


def write(path: Path, weights: dict[str, Tensor], **others: Any) -> Path:
    torch.save({"model": weights, **others}, path)
    return path


def run_convert(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    convert.add_arguments(parser)
    convert.run(parser.parse_args([str(argument) for argument in arguments]))


@pytest.mark.parametrize("backbone", PRESET_OF)
def test_every_released_name_is_mapped_or_deliberately_unused(backbone):
    shapes = released_shapes(backbone)
    weights, unused = convert_released({k: torch.empty(v, device="meta") for k, v in shapes.items()})
    assert len(weights) + len(unused) == len(shapes)
    assert all(any(part in name for part in UNUSED) for name in unused)
    # The encoder's, not the decoder's: that one is used.
    assert not any("cross_attn.output_proj_box" in name for name in unused)
    model = replace(preset(PRESET_OF[backbone]).model, switches=BASELINE)
    assert {name: tuple(x.shape) for name, x in weights.items()} == parameter_shapes(model)


@pytest.mark.parametrize("backbone", PRESET_OF)
def test_the_preset_is_told_by_the_backbone(tmp_path, backbone):
    released = read_released(write(tmp_path / "released.pth", released_model(backbone)))
    expected = preset(PRESET_OF[backbone])
    assert released.preset == replace(expected, model=replace(expected.model, switches=BASELINE))


@pytest.mark.parametrize("zipped", [True, False])  # PyTorch's format, and the one before 1.6
def test_a_released_checkpoint_becomes_ours(tmp_path, capsys, zipped):
    weights = released_model()
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [4, 10])
    # All that the released `main.py` saves.
    training = {
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 11,
        "args": argparse.Namespace(lr=2e-4, lr_drop=[4, 10], backbone="resnet50", output_dir="r50", sgd=False),
    }
    path = tmp_path / "released.pth"
    torch.save({"model": weights, **training}, path, _use_new_zipfile_serialization=zipped)
    run_convert(path, "--out", tmp_path / "ours.safetensors")
    printed = capsys.readouterr().out
    assert "mssts_r50 with all switches off, 6 + 6 layers, 300 queries, 42 classes" in printed
    assert "  detr.transformer.decoder.layers.*.temp_attn_box.qkv.weight ×6\n" in printed

    loaded = load_checkpoint(tmp_path / "ours.safetensors")
    assert loaded.preset.model == replace(mssts_r50().model, switches=BASELINE)
    for name, tensor in weights.items():
        ours = our_name(name)
        assert ours is None or torch.equal(loaded.weights[ours], tensor), name
    assert (loaded.categories[1], loaded.categories[40]) == (Category(1, "person"), Category(40, "tennis_racket"))
    assert loaded.build().encoder.layers[0].split is None  # and nothing is missing or left over

    direct = load_checkpoint(path)
    assert (direct.preset, direct.categories) == (loaded.preset, loaded.categories)
    assert direct.weights.keys() == loaded.weights.keys()
    assert all(torch.equal(direct.weights[name], loaded.weights[name]) for name in direct.weights)


def test_the_names_of_the_classes_are_those_of_the_data_set_that_is_named(tmp_path):
    released = write(tmp_path / "released.pth", released_model())
    ours = tmp_path / "ours.safetensors"
    assert main(["convert", str(released), "--out", str(ours), "--classes", "youtube_vis_2021"]) == 0
    names = tuple(category.name for category in load_checkpoint(ours).categories[1:41])
    assert names == tuple(YOUTUBE_VIS_2021) != tuple(YOUTUBE_VIS_2019)


def test_labels_of_released_models_are_category_ids():
    for names in (YOUTUBE_VIS_2019, YOUTUBE_VIS_2021):
        assert len(names) == len(set(names)) == 40
        categories = released_categories(42, names)
        assert [category.id for category in categories] == list(range(42))
        assert [category.name for category in categories[1:41]] == list(names)
        assert categories[0].name.startswith("unused")
        assert categories[41].name.startswith("unused")
    assert released_categories(91)[3] == Category(3, "class_3")


def test_other_numbers_of_layers_and_classes_are_read_from_the_file(tmp_path, capsys):
    """`main.py` builds three layers each unless an option says otherwise."""
    later = re.compile(r".*(encoder|decoder)\.layers\.[345]\..*|.*(class|bbox)_embed\.[345]\..*")
    fewer = {name: x for name, x in released_model().items() if not later.fullmatch(name)}
    for i in range(3):
        fewer[f"detr.class_embed.{i}.weight"] = torch.zeros(91, 256)
        fewer[f"detr.class_embed.{i}.bias"] = torch.zeros(91)
    run_convert(write(tmp_path / "released.pth", fewer), "--out", tmp_path / "ours.safetensors")
    assert "3 + 3 layers, 300 queries, 91 classes (names unknown" in capsys.readouterr().out
    model = load_checkpoint(tmp_path / "ours.safetensors").build()
    assert (len(model.encoder.layers), len(model.decoder.layers), model.config.classes) == (3, 3, 91)


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.pop(name)  # type: ignore[return-value]


def with_(name: str, *shape: int) -> Callable[[dict[str, Tensor]], None]:
    return lambda weights: weights.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (with_("detr.extra.weight", 2), (), "'detr.extra.weight' is no parameter of the released code"),
        (with_("detr.query_embed.bias", 2), (), "'detr.query_embed.bias' is no parameter"),
        (with_("controller.layers.3.bias", 2), (), r"controller\.layers\.3\.bias is \(2,\), expected not to be there"),
        (with_("detr.reference", 2), (), "'detr.reference' is no parameter"),
        (
            with_("detr.input_proj.0.0.weight", 256, 384, 1, 1), (),
            r"preset mssts_r50: detr\.input_proj\.0\.0\.weight is \(256, 384, 1, 1\), expected \(256, 512, 1, 1\)",
        ),
        (without("detr.transformer.level_embed"), (), r"encoder\.level_embed\.weight \(1 of \d+ parameters"),
        (without("detr.backbone.0.body.bn1.bias"), (), "its backbone is that of no preset"),
        (without("detr.backbone.0.body.bn1.bias"), ("--preset", "mssts_r50"), r"nothing .* is backbone\.bn1\.bias"),
        (without("detr.class_embed.0.bias"), (), r"nothing in the file is class_embed\.0\.bias"),
        (lambda _: None, ("--preset", "mssts_r101"), r"does not fit the preset mssts_r101: .*layer3\.10"),
        (lambda _: None, ("--preset", "mssts_swin_l"), r"preset mssts_swin_l: detr\.input_proj\.0\.0\.weight is"),
        (lambda _: None, ("--preset", "huge"), "unknown preset 'huge'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path, damage, options, message):
    weights = released_model()
    damage(weights)
    path = write(tmp_path / "released.pth", weights)
    with pytest.raises(MsstsError, match=message) as error:
        run_convert(path, "--out", tmp_path / "out" / "ours.safetensors", *options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


class Malicious:
    """Unpickled with the means of pickle, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, zipped):
    trap = tmp_path / "trap"
    torch.save({"model": {}, "args": Malicious(trap)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    for read in (load_checkpoint, read_released, lambda path: run_convert(path, "--out", tmp_path / "y.safetensors")):
        with pytest.raises(MsstsError, match=r"x\.pth: refused, because it would run \w+\.mkdir when read") as error:
            read(tmp_path / "x.pth")
        assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert trap.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a PyTorch or safetensors file, or damaged"),
        (b"hello", "not a PyTorch or safetensors file, or damaged"),
        (b"PK\x03\x04 cut off", "not a PyTorch or safetensors file, or damaged"),
        (b"\x80\x02\x8a\nl\xfc", "not a PyTorch or safetensors file, or damaged"),
        ({"epoch": 3}, "'epoch' is a int, expected a tensor"),
        ({"model": {"w": [1.0]}}, "'w' is a list, expected a tensor"),
        ({"model": {}}, "holds no weights"),
        ([torch.zeros(1)], "holds no weights"),
    ],
)
def test_files_that_are_no_checkpoints_are_told_apart(tmp_path, content, message):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(MsstsError, match=rf"x\.pth: {message}") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


SMALL = replace(
    tiny().model, width=32, heads=2, ffn_width=32, queries=5, encoder_layers=1, decoder_layers=2, split_width=16,
    temporal_width=16,
)  # fmt: skip
CATEGORIES = tuple(Category(i, f"shape_{i}") for i in range(1, SMALL.classes + 1))


def small_preset(switches: Switches) -> Preset:
    return replace(tiny(), model=replace(SMALL, switches=switches))


def saved(path: Path, switches: Switches) -> tuple[MSSTSVIS, Checkpoint]:
    torch.manual_seed(1)
    model = MSSTSVIS(replace(SMALL, switches=switches)).eval()
    weights = {k: x for k, x in model.state_dict().items() if "num_batches_tracked" not in k}
    save_checkpoint(path, weights, small_preset(switches), CATEGORIES)
    return model, load_checkpoint(path)


def outputs(model: MSSTSVIS) -> tuple[Tensor, ...]:
    frames = torch.randn(1, 3, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prediction = model.eval()(frames, torch.tensor([[48, 64]]))
    return prediction.logits[-1], prediction.layers[-1].boxes_BTQ4


def test_a_checkpoint_knows_its_own_architecture(tmp_path):
    path = tmp_path / "x.safetensors"
    switches = replace(BASELINE, temporal_decoder=True)
    model, checkpoint = saved(path, switches)
    assert checkpoint.preset.model == replace(SMALL, switches=switches)
    for a, b in zip(outputs(model), outputs(checkpoint.build()), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_before_switches_were_recorded_is_its_presets(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"a": torch.zeros(1)}, tiny(), CATEGORIES)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert json.loads(header.pop("model")) == {"split_position": True}
    save_file({"a": torch.zeros(1)}, path, metadata=header)
    assert load_checkpoint(path).preset == replace(tiny(), model=replace(tiny().model, split_position=False))
    save_file({"a": torch.zeros(1)}, path, metadata=header | {"model": '{"flux": 3}'})
    with pytest.raises(MsstsError, match=r"written by another version of mssts.*flux"):
        load_checkpoint(path)


def test_training_starts_from_the_baseline_with_switches_that_do_nothing_yet(tmp_path):
    baseline, checkpoint = saved(tmp_path / "x.safetensors", BASELINE)
    torch.manual_seed(2)
    full = MSSTSVIS(SMALL)
    new, kept, fresh = initialise(full, checkpoint, checkpoint.categories)
    assert (len(kept), fresh) == (len(checkpoint.categories), [])
    assert set(new) == full.state_dict().keys() - baseline.state_dict().keys()
    assert all(".split." in name or ".temporal." in name for name in new)
    for a, b in zip(outputs(baseline), outputs(full), strict=True):
        assert torch.equal(a, b)


def test_training_on_other_classes_keeps_classifier_rows_by_name(tmp_path):
    baseline, checkpoint = saved(tmp_path / "x.safetensors", BASELINE)
    second, first = checkpoint.categories[1], checkpoint.categories[0]
    table = (Category(5, second.name.upper()), Category(6, "teapot"), Category(9, first.name))
    other = MSSTSVIS(replace(SMALL, switches=BASELINE, classes=3))
    before = {name: x.clone() for name, x in other.state_dict().items() if name.startswith("class_embed.")}
    loaded = initialise(other, checkpoint, table)
    assert loaded == ([], [table[0].name, table[2].name], ["teapot"])
    for name, x in before.items():
        after, trained = other.state_dict()[name], checkpoint.weights[name]
        assert torch.equal(after[0], trained[1]) and torch.equal(after[2], trained[0])
        assert torch.equal(after[1], x[1])
    assert torch.equal(outputs(baseline)[1], outputs(other)[1])


def test_only_what_the_checkpoint_was_made_without_may_be_missing(tmp_path):
    _, checkpoint = saved(tmp_path / "x.safetensors", replace(BASELINE, temporal_decoder=True))
    weights = dict(checkpoint.weights)
    del weights["decoder.layers.1.temporal.out.bias"]
    with pytest.raises(MsstsError, match=r"decoder\.layers\.1\.temporal\.out\.bias is missing"):
        initialise(MSSTSVIS(SMALL), replace(checkpoint, weights=weights), checkpoint.categories)
    with pytest.raises(MsstsError, match=r"decoder\.layers\.1\.temporal\..* expected not to be there"):
        initialise(MSSTSVIS(replace(SMALL, switches=BASELINE)), checkpoint, checkpoint.categories)
