"""The model: reach and initial effect of its parts, padding, and its masks."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.model_inputs import build, geometry, images, sizes

from mssts.model.checkpoint import initialise, load_checkpoint, save_checkpoint
from mssts.model.config import BASELINE, Switches, mssts_r50, preset, tiny
from mssts.model.engine import Engine, normalise
from mssts.model.geometry import build_geometry, sine_periods
from mssts.model.mask_head import MaskFeatures, double_aligned
from mssts.model.mssts_vis import MSSTSVIS
from mssts.model.split_attention import InterScaleAttention, IntraScaleAttention
from mssts.ops.exporting import exporting

TINY = Path(__file__).parents[2] / "training" / "checkpoints" / "tiny.safetensors"
SMALL = replace(tiny().model, width=64, heads=2, ffn_width=64, queries=6, split_width=16, temporal_width=32)


@torch.no_grad()
def test_the_released_model_is_the_starting_point_bit_for_bit():
    torch.manual_seed(0)
    full = MSSTSVIS(SMALL).eval()
    baseline = MSSTSVIS(replace(SMALL, switches=BASELINE)).eval()
    baseline.load_state_dict({k: v for k, v in full.state_dict().items() if k in baseline.state_dict()})
    frames, size = images(1, 3, 64, 96), sizes((64, 96))
    a, b = full(frames, size), baseline(frames, size)
    assert torch.equal(a.encoded_BTSC, b.encoded_BTSC)
    assert torch.equal(a.logits[-1], b.logits[-1])
    assert torch.equal(a.layers[-1].boxes_BTQ4, b.layers[-1].boxes_BTQ4)


@pytest.mark.parametrize(
    ("switch", "part"),
    [("intra_scale", "split.intra"), ("inter_scale", "split.inter"), ("temporal_decoder", "temporal")],
)
def test_each_addition_is_a_switch_of_its_own(switch, part):
    alone = MSSTSVIS(replace(SMALL, switches=replace(BASELINE, **{switch: True})))
    added = set(alone.state_dict()) - set(MSSTSVIS(replace(SMALL, switches=BASELINE)).state_dict())
    assert added
    shared = ("split.reduce", "split.expand")
    assert all(part in name or any(s in name for s in shared) for name in added)
    assert any(part in name for name in added)


@torch.no_grad()
def test_intra_scale_attention_mixes_along_time_alone():
    torch.manual_seed(0)
    block = IntraScaleAttention(8, 2).double()
    tokens = torch.randn(1, 4, 10, 8, dtype=torch.float64)
    changed = tokens.clone()
    changed[0, 1, 6] += 1
    moved = (block(changed) - block(tokens)).abs().amax(-1)[0] > 1e-12
    assert moved[:, 6].all()  # every frame of that location
    moved[:, 6] = False
    assert not moved.any()  # and no other location


@torch.no_grad()
@pytest.mark.parametrize(("level", "reached"), [(0, {0}), (1, {0, 1}), (2, {1, 2}), (3, {2, 3})])
def test_inter_scale_attention_reaches_the_finer_neighbour_alone(level, reached):
    torch.manual_seed(0)
    shapes = [(12, 16), (6, 8), (3, 4), (2, 2)]
    where = geometry(shapes, (96, 128))
    block = InterScaleAttention(8, 2, 0.0).double().eval()
    tokens = torch.randn(1, 3, sum(h * w for h, w in shapes), 8, dtype=torch.float64)
    parts = [part.clone() for part in where.split(tokens, 2)]
    parts[level] += torch.randn(8)
    moved = where.split((block(torch.cat(parts, 2), tokens, where) - block(tokens, tokens, where)).abs(), 2)
    assert {i for i, part in enumerate(moved) if part.max() > 1e-12} == reached


@torch.no_grad()
def test_inter_scale_attention_pairs_a_token_with_the_one_that_covers_it():
    torch.manual_seed(0)
    shapes = [(5, 7), (3, 4)]  # odd sizes: the coarse grid's last cells stick out
    where = geometry(shapes, (40, 56))
    block = InterScaleAttention(8, 2, 0.0).double().eval()
    tokens = torch.randn(1, 2, 35 + 12, 8, dtype=torch.float64)
    changed = tokens.clone()
    changed[:, 0, 35 + 1 * 4 + 2] += torch.randn(8)  # coarse cell (1, 2)
    moved = (block(changed, tokens, where) - block(tokens, tokens, where)).abs().amax((0, 1, 3))[:35] > 1e-12
    expected = torch.zeros(5, 7, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(moved.view(5, 7), expected)


@torch.no_grad()
@pytest.mark.parametrize("seen", [True, False])
def test_split_attention_sees_where_a_token_is(seen):
    """Equal tokens stay equal, unless position and scale are shown."""
    torch.manual_seed(0)
    model = build(replace(SMALL, split_position=seen)).double()
    shapes = [(8, 8), (4, 4), (2, 2), (1, 1)]
    where = build_geometry(shapes, sizes((64, 64)), 64, 64, sine_periods(SMALL.width).double(), torch.float64)
    found: list[torch.Tensor] = []
    model.encoder.layers[0].split.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    model.encoder(torch.ones(1, 2, 85, 64, dtype=torch.float64), where)
    spread = (found[0] - found[0][:, :, :1]).abs().amax((0, 1, 3))[:-1]  # the coarsest scale has another partner
    assert (spread[1:] > 1e-6).all() if seen else spread.max() < 1e-12


@torch.no_grad()
def test_weights_of_each_scale_are_the_shared_ones_if_equal():
    shared = build(replace(SMALL, split_own_linear=True))
    by_scale = build(replace(SMALL, split_own_linear=True, split_shared=False))
    weights = {}
    for name in by_scale.state_dict():
        found = re.sub(r"(split\.int..)\.\d", r"\1", name)
        weights[name] = shared.state_dict()[found]
    assert len(weights) > len(shared.state_dict())
    by_scale.load_state_dict(weights)
    frames, size = images(1, 3, 72, 104), sizes((72, 104))
    a, b = shared(frames, size), by_scale(frames, size)
    torch.testing.assert_close(a.encoded_BTSC, b.encoded_BTSC, rtol=1e-5, atol=1e-5)
    by_scale.encoder.layers[0].split.inter[2].own.weight.zero_()
    assert (by_scale(frames, size).encoded_BTSC - b.encoded_BTSC).abs().max() > 1e-3


def test_a_checkpoint_says_what_its_model_sees(tmp_path):
    with safe_open(TINY, "pt") as shipped:
        written = {name: text for name, text in shipped.metadata().items() if name != "model"}
    save_file(load_file(TINY), tmp_path / "old.safetensors", written)
    old = load_checkpoint(tmp_path / "old.safetensors")
    assert not old.preset.model.split_position  # one older than the choice does not say
    assert tiny().model.split_position
    for seen in (True, False):
        chosen = replace(tiny(), model=replace(tiny().model, split_position=seen))
        save_checkpoint(tmp_path / "x.safetensors", old.weights, chosen, old.categories)
        assert load_checkpoint(tmp_path / "x.safetensors").preset.model.split_position == seen
    new = initialise(
        MSSTSVIS(replace(tiny().model, classes=len(old.categories), split_own_linear=True)), old, old.categories
    ).new
    assert new and all(".split.inter.own." in name for name in new)


@torch.no_grad()
def test_frames_have_no_order():
    """Permuting the frames permutes boxes and masks and keeps the classes.

    Nothing in the architecture numbers the frames.
    """
    model = build(SMALL).double()
    frames, size = images(1, 4, 64, 64).double(), sizes((64, 64))
    order = torch.tensor([2, 0, 3, 1])
    a, b = model(frames, size), model(frames[:, order], size)
    torch.testing.assert_close(b.logits[-1], a.logits[-1], rtol=0, atol=1e-9)
    torch.testing.assert_close(b.layers[-1].boxes_BTQ4, a.layers[-1].boxes_BTQ4[:, order], rtol=0, atol=1e-9)
    queries = torch.arange(6)[None]
    torch.testing.assert_close(model.masks(b, -1, queries), model.masks(a, -1, queries)[:, :, order], rtol=0, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("addition", ["intra_scale", "temporal_decoder"])
def test_an_awake_addition_lets_frames_see_one_another(addition):
    """Without it, boxes of a frame in the first layer depend on that frame alone."""
    frames, size = images(1, 2, 64, 64), sizes((64, 64))
    other = frames.clone()
    other[:, 1] = images(1, 1, 64, 64, seed=9)[:, 0]

    def moved(switches: Switches) -> float:
        model = build(replace(SMALL, switches=switches, decoder_layers=2))
        # Frame 0's box queries, before instance features feed back into them.
        return float(
            (model(frames, size).layers[1].boxes_BTQ4 - model(other, size).layers[1].boxes_BTQ4)[:, 0].abs().max()
        )

    assert moved(BASELINE) == 0
    assert moved(replace(BASELINE, **{addition: True})) > 1e-7


def test_gradients_reach_every_parameter():
    model = build(replace(SMALL, dropout=0.1)).train()
    prediction = model(images(2, 2, 64, 96), sizes((64, 96), (48, 64)))
    loss = sum(x.square().sum() for x in prediction.logits)
    for i, layer in enumerate(prediction.layers):
        loss = (
            loss
            + layer.boxes_BTQ4.square().sum()
            + model.masks(prediction, i, torch.arange(6).expand(2, 6)).square().mean()
        )
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A softmax over time does not change with a bias that all its inputs share: that one has no gradient by nature.
    assert [name for name in without if not name.endswith("time_weight.bias")] == []


@torch.no_grad()
def test_a_clip_gives_the_same_alone_and_in_a_padded_batch():
    model = build(SMALL).double()
    alone = images(1, 2, 64, 64).double()
    batch = torch.zeros(2, 2, 3, 128, 128, dtype=torch.float64)
    batch[0, :, :, :64, :64] = alone[0]
    batch[1] = images(1, 2, 128, 128, seed=5).double()[0]
    a, b = model(alone, sizes((64, 64))), model(batch, sizes((64, 64), (128, 128)))
    # Convolutions see zeros beyond the border either way, but the group norm's statistics take in the padding, which
    # the released model has too; so boxes and classes are near, not equal.
    assert (a.layers[-1].boxes_BTQ4 - b.layers[-1].boxes_BTQ4[:1]).abs().max() < 0.05


@pytest.mark.parametrize(("T", "H", "W"), [(1, 33, 47), (7, 64, 40), (2, 8, 8)])
@torch.no_grad()
def test_any_number_of_frames_of_any_size(T, H, W):
    engine = Engine(build(SMALL), top_k=4)
    frames = torch.randint(0, 256, (1, T, H, W, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scores, labels, boxes, masks = engine(frames, sizes((H, W)))
    assert scores.shape == labels.shape == (1, 4)
    assert boxes.shape == (1, 4, T, 4)
    assert masks.shape == (1, 4, T, -(-H // 8) * 2, -(-W // 8) * 2)
    assert all(x.isfinite().all() for x in (scores, boxes, masks))
    assert (scores.diff(dim=1) <= 0).all()


@torch.no_grad()
def test_the_engine_returns_the_best_of_class_and_query_with_their_masks():
    engine = Engine(build(SMALL), top_k=5)
    frames = torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size = sizes((64, 64))
    scores, labels, boxes, masks = engine(frames, size)
    prediction = engine.model(normalise(frames, size), size)
    probabilities = prediction.logits[-1][0].sigmoid()
    everything = engine.model.masks(prediction, -1, torch.arange(6)[None])
    best = sorted(((p.item(), q, c) for q, row in enumerate(probabilities) for c, p in enumerate(row)), reverse=True)
    for k, (probability, query, label) in enumerate(best[:5]):
        assert scores[0, k].item() == probability
        assert labels[0, k].item() == label
        torch.testing.assert_close(boxes[0, k], prediction.layers[-1].boxes_BTQ4[0, :, query])
        # One matrix product more or less wide: rounding of pixel coordinates times weights.
        torch.testing.assert_close(masks[0, k], everything[0, query], rtol=1e-4, atol=1e-3)


def test_what_lies_in_the_padding_does_not_matter():
    frames = torch.randint(0, 256, (1, 1, 16, 16, 3), dtype=torch.uint8)
    other = frames.clone()
    other[:, :, 10:], other[:, :, :, 12:] = 7, 9
    assert torch.equal(normalise(frames, sizes((10, 12))), normalise(other, sizes((10, 12))))


def test_the_paper_has_about_as_many_parameters():
    """Parameters counted as in its Figure 1.

    All entries of a state dict, with the layers that the released forward never uses.
    """
    keys = json.loads((Path(__file__).parents[1] / "golden" / "resnet50.keys.json").read_text())
    released = sum(math.prod(shape) for name, shape in keys.items() if ".temp_attn_box." not in name)
    assert released == pytest.approx(49.3e6, abs=0.05e6)  # SeqFormer's, to the digits given
    with torch.device("meta"):
        ours, baseline = (
            sum(p.numel() for p in MSSTSVIS(replace(mssts_r50().model, switches=switches)).parameters())
            for switches in (Switches(), BASELINE)
        )
    assert (ours, baseline) == (49_949_645, 48_009_421)
    added = ours - baseline
    assert released + added == pytest.approx(51.2e6, abs=0.05e6)  # what we say of it
    assert released + added == pytest.approx(50.6e6, rel=0.02)  # the paper's


def test_doubling_keeps_odd_pixels_and_averages_even_ones():
    x = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    expected = torch.tensor([[1, 1, 2, 3], [1, 1, 2, 3], [3, 3, 4, 5], [5, 5, 6, 7.0]])
    assert torch.equal(double_aligned(x), expected)


def test_an_exported_graph_enlarges_feature_maps_as_pytorch_does():
    """Gathering pixel i // 2 equals PyTorch's resize.

    At every height and width that a pair of scales can have.
    """
    features = MaskFeatures(tiny().model).eval()
    with torch.inference_mode():
        for side in range(1, 34):
            h, w = side, 35 - side
            middle, coarse = ((-(-h // s), -(-w // s)) for s in (2, 4))
            maps = [torch.randn(1, tiny().model.width, *size) for size in ((h, w), middle, coarse)]
            expected = features(*maps)
            with exporting():
                assert torch.equal(features(*maps), expected)


def test_unknown_presets_are_told_with_those_there_are():
    from mssts.errors import MsstsError

    with pytest.raises(MsstsError, match=r"unknown preset 'huge'; expected one of: .*mssts_r50.*tiny"):
        preset("huge")


def test_small_frames_in_bf16_depend_on_nothing_but_the_frames():
    """Maps as small as those of the fast training tests.

    The coarsest map is one wide, and comes from one that is two wide.
    """
    model = build(tiny().model)
    clip, size = images(1, 7, 72, 64), sizes((72, 64))
    answers = []
    for _ in range(20):
        freed = [torch.full((n,), float("nan")) for n in (10**3, 10**4, 10**5, 10**6)]
        del freed  # what reads memory that nobody wrote finds this
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            answers.append(model(clip, size).encoded_BTSC)
    assert all(torch.equal(answer, answers[0]) for answer in answers)
