"""Backbones: features of any size, Swin as released, and ImageNet weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from parity.golden import tensor, weight
from safetensors.torch import save_file
from torch import Tensor

from mssts.errors import MsstsError
from mssts.export.graph import TRACED
from mssts.model.backbone import BACKBONES, build_backbone
from mssts.model.config import ModelConfig, tiny
from mssts.model.mssts_vis import MSSTSVIS
from mssts.model.pretrained import load_backbone_weights
from mssts.model.resnet import Bottleneck32x8d, FrozenBatchNorm2d
from mssts.model.swin import Grid, SwinBlock, SwinConfig, SwinTransformer, Windows

GOLDEN = Path(__file__).parents[1] / "golden"


def small_swin(window: int) -> SwinTransformer:
    return SwinTransformer(SwinConfig(24, (2, 2, 2, 2), (1, 2, 4, 8), window, drop_path=0.3)).eval()


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("height", "width"), [(50, 75), (96, 160), (8, 1)])
def test_features_have_the_image_size_over_the_stride_rounded_up(name, height, width):
    with torch.device("meta"):
        backbone = build_backbone(name, "frozen")
        features = backbone(torch.empty(2, 3, height, width))
    assert [tuple(x.shape) for x in features] == [
        (2, channels, -(-height // stride), -(-width // stride))
        for channels, stride in zip(backbone.channels, (8, 16, 32), strict=True)
    ]


def test_an_unknown_backbone_is_told_with_those_there_are():
    with pytest.raises(MsstsError, match=r"unknown backbone 'vgg'; expected one of: resnet18, .*swin_l_p4w12"):
        build_backbone("vgg", "frozen")


@torch.no_grad()
@pytest.mark.parametrize("window", [7, 12])
def test_swin_gives_the_features_of_the_released_code(window):
    """Swin computes the features that the released code computes.

    The file holds every fourth channel of what the released code's SwinTransformer (82b2c1b) of this size gives for
    weights and images by the golden formula, at sizes that are multiples of patch and window and at one that is not.
    """
    golden = np.load(GOLDEN / "swin_features.npz")
    swin = small_swin(window)
    swin.load_state_dict({name: weight(name, tuple(x.shape)) for name, x in swin.state_dict().items()})
    compared = 0
    for name in golden.files:
        match = re.fullmatch(rf"window{window}_(\d+)x(\d+)_stride(\d+)", name)
        if match:
            height, width, stride = map(int, match.groups())
            features = swin(tensor("image", (2, 3, height, width)))[(8, 16, 32).index(stride)]
            # Values are of order 1; the kernels of another processor sum in another order.
            np.testing.assert_allclose(features[:, ::4].numpy(), golden[name], rtol=0, atol=1e-4)
            compared += 1
    assert compared == 6


@pytest.mark.parametrize(("height", "width", "shift"), [(5, 9, 0), (5, 9, 2), (8, 4, 2), (3, 3, 2)])
def test_windows_joined_again_are_the_map(height, width, shift):
    windows = Windows(Grid(height, width, 1), 4, shift)
    x = torch.randn(2, height, width, 3)
    assert torch.equal(windows.join(windows.split(x)), x)


def test_shifted_windows_keep_apart_what_only_the_shift_made_neighbours():
    """Tokens see each other just where they share a cell of the shifted grid.

    The map is one of whole windows.
    """
    size, window, shift = 12, 4, 2
    windows = Windows(Grid(size, size, 1), window, shift)
    position = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1)[None]
    cell_GL2 = (windows.split(position)[0] - shift) // window  # −1 to 2: the grid's own cells, cut off at the border
    together = (cell_GL2[:, :, None] == cell_GL2[:, None]).all(-1)
    assert torch.equal(windows.mask(torch.zeros(1)) == 0, together)


@torch.no_grad()
def test_training_drops_whole_residuals_of_some_images_and_scales_the_others():
    torch.manual_seed(0)
    block, windows = SwinBlock(8, 2, 4, drop_path=0.5), Windows(Grid(4, 4, 1), 4, 0)
    for parameter in block.mlp.parameters():
        parameter.zero_()  # one residual is enough
    x = torch.randn(64, 4, 4, 8)
    residual = block.eval()(x, windows, None) - x
    dropped = block.train()(x, windows, None) - x
    kept = dropped.flatten(1).any(1)
    assert 16 < kept.sum() < 48  # 64 throws of a fair coin: four standard deviations
    torch.testing.assert_close(dropped[kept], 2 * residual[kept], rtol=0, atol=1e-5)


@torch.no_grad()
def test_resnext_groups_do_not_see_one_another():
    torch.manual_seed(0)
    block = Bottleneck32x8d(256, 64, 1, FrozenBatchNorm2d)
    assert block.conv2.weight.shape == (256, 8, 3, 3)
    x = torch.randn(1, 256, 5, 5)
    changed = x.clone()
    changed[:, 8:16] += 1  # the second of 32 groups of 8 channels
    moved = (block.conv2(changed) - block.conv2(x)).abs().amax((0, 2, 3)) > 1e-6
    assert moved[8:16].all()
    assert moved.sum() == 8


def model(backbone: str, norm: str = "frozen") -> MSSTSVIS:
    config = replace(tiny().model, backbone=backbone, backbone_norm=norm, encoder_layers=1, decoder_layers=1)
    return MSSTSVIS(config)


def random_like(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: torch.rand_like(x) if x.is_floating_point() else x for k, x in state_dict.items()}


@pytest.mark.parametrize("norm", ["frozen", "batch"])
@pytest.mark.parametrize("counters", [True, False])  # files of torchvision before 0.3 have none
def test_torchvision_weights_load(tmp_path, norm, counters):
    own = model("resnet18", "batch").backbone.state_dict()
    file = random_like({k: x for k, x in own.items() if counters or "num_batches_tracked" not in k})
    file |= {"fc.weight": torch.rand(1000, 512), "fc.bias": torch.rand(1000)}
    torch.save(file, tmp_path / "resnet18.pth")
    loaded = model("resnet18", norm)
    unused, new = load_backbone_weights(loaded, tmp_path / "resnet18.pth")
    assert {name for name in unused if "num_batches_tracked" not in name} == {"fc.weight", "fc.bias"}
    assert new == []
    for name, x in loaded.backbone.state_dict().items():
        if "num_batches_tracked" not in name:
            assert torch.equal(x, file[name]), name


def microsoft(backbone: str) -> dict[str, Tensor]:
    """A file as Microsoft publishes it for classification.

    It has our backbone's names but for the outputs' norms.
    """
    own = model(backbone).backbone
    file = random_like({k: x for k, x in own.state_dict().items() if not re.match(r"norm\d", k)})
    file |= {"norm.weight": torch.rand(768), "norm.bias": torch.rand(768)}
    file |= {"head.weight": torch.rand(1000, 768), "head.bias": torch.rand(1000)}
    for name in [k for k in file if k.endswith("relative_position_bias_table")]:
        file[name.replace("bias_table", "index")] = torch.zeros(49, 49, dtype=torch.int64)
    return file | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_microsoft_weights_load(tmp_path, suffix):
    file, path = microsoft("swin_t_p4w7"), tmp_path / f"swin{suffix}"
    if suffix == ".pth":
        torch.save({"model": file}, path)
    else:
        save_file(file, path)
    loaded = model("swin_t_p4w7")
    unused, new = load_backbone_weights(loaded, path)
    own = loaded.backbone.state_dict()
    assert sorted(new) == [f"norm{i}.{kind}" for i in (1, 2, 3) for kind in ("bias", "weight")]
    assert own.keys() - set(new) == file.keys() - set(unused)
    assert all(torch.equal(own[name], file[name]) for name in own.keys() - set(new))
    assert {"head.weight", "norm.bias", "layers.0.blocks.1.attn_mask"} <= set(unused)
    assert (own["norm1.weight"] == 1).all()


def test_weights_of_another_window_are_refused_and_nothing_is_loaded(tmp_path):
    torch.save({"model": microsoft("swin_t_p4w7")}, tmp_path / "swin.pth")
    torch.save(build_backbone("resnet50", "frozen").state_dict(), tmp_path / "resnet.pth")
    with torch.device("meta"):
        other = model("swin_b_p4w12")
    with pytest.raises(MsstsError, match=r"swin\.pth: does not fit the backbone swin_b_p4w12: layers\.0\..*96"):
        load_backbone_weights(other, tmp_path / "swin.pth")
    with pytest.raises(MsstsError, match=r"resnet\.pth: does not fit the backbone swin_b_p4w12: bn1\.bias is \(64,\)"):
        load_backbone_weights(other, tmp_path / "resnet.pth")


@pytest.mark.slow
@torch.no_grad()
def test_swin_exports_to_onnx_for_any_size(tmp_path):
    """The exported Swin computes the same at other sizes than the traced one.

    It is traced where `mssts export` traces, with the largest window there is: a side of one window or one token would
    be a constant. And ONNX divides integers towards zero, Python down, which sizes that are no multiples show.
    """
    torch.manual_seed(0)
    swin = SwinTransformer(SwinConfig(8, (1, 1, 2, 1), (1, 1, 1, 1), window=12, drop_path=0.0)).eval()
    dim = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        swin, (torch.randn(2, 3, TRACED["H"], TRACED["W"]),), str(tmp_path / "swin.onnx"), dynamo=True,
        opset_version=18, verbose=False, dynamic_shapes=({0: dim, 2: dim, 3: dim},),
    )  # fmt: skip
    session = onnxruntime.InferenceSession(tmp_path / "swin.onnx", providers=["CPUExecutionProvider"])
    for N, H, W in ((1, 50, 75), (3, 112, 200), (2, 391, 160)):
        images = torch.randn(N, 3, H, W)
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        for a, b in zip(swin(images), found, strict=True):
            np.testing.assert_allclose(b, a.numpy(), rtol=0, atol=1e-5)  # of values of order 1


def test_swin_models_run_whole():
    config: ModelConfig = replace(model("swin_t_p4w7").config, queries=4)
    prediction = MSSTSVIS(config)(torch.randn(1, 2, 3, 50, 75), torch.tensor([[50, 75]]))
    assert prediction.shapes == [(7, 10), (4, 5), (2, 3), (1, 2)]
    sum(x.sum() for x in prediction.logits).backward()
