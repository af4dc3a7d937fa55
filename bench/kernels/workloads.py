"""Calls of the two ops as the models make them: sizes, inputs, least work.

Letters, as in `mssts.ops`: N frames, S tokens of all levels, Q queries, M heads, D channels a head, L levels, P points,
R coordinates of a reference; T query frames, U key frames, C = M·D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mssts.errors import MsstsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shapes = tuple[tuple[int, int], ...]

_BOX_SIDES = (0.05, 0.5)  # of the decoder's boxes, as fractions of the frame


@dataclass(frozen=True)
class DeformInputs:
    """One call of MSDeformAttn, with what a model computes once for all its calls."""

    value_NSMD: Tensor
    shapes_L2: Tensor
    reference_NQLR: Tensor
    offsets_NQMLP2: Tensor
    logits_NQMLP: Tensor
    shapes: list[tuple[int, int]]
    grad_out_NQC: Tensor
    sizes_L12: Tensor  # (w, h) of the levels, fp32
    starts_L: Tensor  # the first token of each level, int64

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that get gradients (references are detached in the model)."""
        return self.value_NSMD, self.offsets_NQMLP2, self.logits_NQMLP

    def to(self, dtype: torch.dtype) -> DeformInputs:
        """The same inputs in another dtype, references included."""
        names = ("value_NSMD", "reference_NQLR", "offsets_NQMLP2", "logits_NQMLP", "grad_out_NQC")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


@dataclass(frozen=True)
class TemporalInputs:
    """One call of SplitTemporalAttn.

    Query, key and value are strided where they are chunks of one linear layer's output."""

    query_BTSC: Tensor
    key_BUSC: Tensor
    value_BUSC: Tensor
    heads: int
    grad_out_BTSC: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """The tensors that get gradients."""
        return self.query_BTSC, self.key_BUSC, self.value_BUSC

    def to(self, dtype: torch.dtype) -> TemporalInputs:
        """The same inputs in another dtype."""
        names = ("query_BTSC", "key_BUSC", "value_BUSC", "grad_out_BTSC")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


@dataclass(frozen=True)
class DeformWorkload:
    """MSDeformAttn of `frames` frames.

    `queries` is None in an encoder, where every token is one. Offsets of a trained model leave the ring that they start
    on: by `offset_pixels` here, a standard deviation.
    """

    name: str
    frames: int
    shapes: Shapes
    queries: int | None = None
    heads: int = 8
    channels: int = 32
    points: int = 4
    offset_pixels: float = 2.0

    op = "MSDeformAttn"

    @property
    def tokens(self) -> int:
        """S."""
        return sum(h * w for h, w in self.shapes)

    @property
    def query_count(self) -> int:
        """Q."""
        return self.tokens if self.queries is None else self.queries

    @property
    def samples(self) -> int:
        """Points of all frames, queries and heads."""
        return self.frames * self.query_count * self.heads * len(self.shapes) * self.points

    def _elements(self) -> tuple[int, int, int]:
        """Of value, of out, and of the fp32 reference."""
        width, coordinates = self.heads * self.channels, 2 if self.queries is None else 4
        rows = self.frames * self.query_count
        return self.frames * self.tokens * width, rows * width, rows * len(self.shapes) * coordinates

    def bytes_moved(self, itemsize: int, direction: str) -> int:
        """Bytes of every input read once and every output written once."""
        value, out, reference = self._elements()
        read = value + 3 * self.samples
        if direction == "forward":
            return itemsize * (read + out) + 4 * reference
        return itemsize * (2 * read + out) + 4 * reference

    def flops(self, direction: str) -> int:
        """FLOPs of the samples: 4 corners of D channels, twice that backward.

        The arithmetic of locations and softmax, a few percent, is not counted.
        """
        return self.samples * 8 * self.channels * (1 if direction == "forward" else 2)

    def output_bytes(self, itemsize: int, direction: str) -> int:
        """Of what the call returns: out, or the gradients of value, offsets and logits."""
        value, out, _ = self._elements()
        return itemsize * (out if direction == "forward" else value + 3 * self.samples)

    def make(self, dtype: torch.dtype, device: str, seed: int) -> DeformInputs:
        """Random values and logits, with points as at the model's start, moved a little.

        In an encoder the references are the centres of all tokens, in a decoder they are random boxes.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        N, S, Q, M, D = self.frames, self.tokens, self.query_count, self.heads, self.channels
        L, P = len(self.shapes), self.points
        if self.queries is None:
            centres = [
                torch.stack(torch.meshgrid(_centres(h), _centres(w), indexing="ij")[::-1], -1).flatten(0, 1)
                for h, w in self.shapes
            ]
            reference = torch.cat(centres)[None, :, None].expand(N, Q, L, 2)
        else:
            low, high = _BOX_SIDES
            centre = torch.rand(N, Q, 2, generator=generator)
            side = low + (high - low) * torch.rand(N, Q, 2, generator=generator)
            reference = torch.cat((centre, side), -1)[:, :, None].expand(N, Q, L, 4)
        angle = torch.arange(M) * (2 * math.pi / M)
        ring = torch.stack((angle.cos(), angle.sin()), -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        ring_MLP2 = ring[:, None, None] * torch.arange(1, P + 1)[:, None]
        noise = torch.randn(N, Q, M, L, P, 2, generator=generator)
        offsets = ring_MLP2 + noise * self.offset_pixels
        value = torch.randn(N, S, M, D, generator=generator)
        logits = torch.randn(N, Q, M, L, P, generator=generator)
        grad_out = torch.randn(N, Q, M * D, generator=generator)
        shapes_L2 = torch.tensor(self.shapes, dtype=torch.int64)
        areas_L = shapes_L2.prod(1)
        return DeformInputs(
            value.to(device, dtype),
            shapes_L2.to(device),
            reference.contiguous().to(device),
            offsets.to(device, dtype),
            logits.to(device, dtype),
            list(self.shapes),
            grad_out.to(device, dtype),
            shapes_L2.flip(1).float()[:, None].to(device),
            (areas_L.cumsum(0) - areas_L).to(device),
        )


@dataclass(frozen=True)
class TemporalWorkload:
    """SplitTemporalAttn of one clip.

    `kind` says how query, key and value lie in memory:

    `intra`: chunks of one linear's output; `inter`: key and value chunks of one, the query dense, twice as many keys;
    `decoder`: query and key chunks of one, the value dense.
    """

    name: str
    kind: str
    frames: int
    locations: int
    heads: int = 4
    channels: int = 16

    op = "SplitTemporalAttn"

    @property
    def key_frames(self) -> int:
        """U."""
        return self.frames * (2 if self.kind == "inter" else 1)

    def _elements(self) -> tuple[int, int]:
        """Of the query, and of the key."""
        width = self.heads * self.channels
        return self.frames * self.locations * width, self.key_frames * self.locations * width

    def bytes_moved(self, itemsize: int, direction: str) -> int:
        """Every input read once, every output written once."""
        query, key = self._elements()
        return itemsize * ((2 * query + 2 * key) if direction == "forward" else (3 * query + 4 * key))

    def flops(self, direction: str) -> int:
        """FLOPs of the two matrix products, five backward, without the softmax."""
        pairs = self.locations * self.frames * self.key_frames * self.heads * self.channels
        return pairs * (4 if direction == "forward" else 10)

    def output_bytes(self, itemsize: int, direction: str) -> int:
        """Of what the call returns: out, or the gradients of query, key and value."""
        query, key = self._elements()
        return itemsize * (query if direction == "forward" else query + 2 * key)

    def make(self, dtype: torch.dtype, device: str, seed: int) -> TemporalInputs:
        """Random tokens."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        width = self.heads * self.channels

        def rand(frames: int, parts: int) -> Tensor:
            tokens = torch.randn(1, frames, self.locations, parts * width, generator=generator)
            return tokens.to(device, dtype)

        if self.kind == "intra":
            query, key, value = rand(self.frames, 3).chunk(3, -1)
        elif self.kind == "inter":
            query, (key, value) = rand(self.frames, 1), rand(self.key_frames, 2).chunk(2, -1)
        else:
            (query, key), value = rand(self.frames, 2).chunk(2, -1), rand(self.frames, 1)
        return TemporalInputs(query, key, value, self.heads, rand(self.frames, 1))


Workload = DeformWorkload | TemporalWorkload
Inputs = DeformInputs | TemporalInputs


def _centres(cells: int) -> Tensor:
    import torch

    return (torch.arange(cells) + 0.5) / cells


def _levels(height: int, width: int) -> Shapes:
    """The four scales of every backbone, strides 8 to 64, each side rounded up."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64))


def _all() -> list[Workload]:
    small, large, tiny = _levels(360, 640), _levels(720, 1280), _levels(144, 256)
    tokens_small, tokens_large, tokens_tiny = (sum(h * w for h, w in shapes) for shapes in (small, large, tiny))
    return [
        DeformWorkload("encoder_r50_360x640_t5", 5, small),
        DeformWorkload("decoder_r50_360x640_t5", 5, small, queries=300),
        # No preset differs from R50 in scales, heads, points or queries: the backbone alone does.
        DeformWorkload("encoder_swin_l_360x640_t5", 5, small),
        DeformWorkload("encoder_r50_360x640_t1", 1, small),
        DeformWorkload("decoder_r50_360x640_t1", 1, small, queries=300),
        DeformWorkload("encoder_r50_720p_t5", 5, large),
        DeformWorkload("encoder_tiny_144x256_t6", 6, tiny, heads=4),
        DeformWorkload("decoder_tiny_144x256_t6", 6, tiny, queries=20, heads=4),
        TemporalWorkload("temporal_intra_r50_360x640_t5", "intra", 5, tokens_small),
        TemporalWorkload("temporal_inter_r50_360x640_t5", "inter", 5, tokens_small),
        TemporalWorkload("temporal_intra_r50_720p_t5", "intra", 5, tokens_large),
        TemporalWorkload("temporal_inter_r50_720p_t5", "inter", 5, tokens_large),
        TemporalWorkload("temporal_decoder_r50_t5", "decoder", 5, 300, heads=8, channels=32),
        TemporalWorkload("temporal_intra_tiny_144x256_t6", "intra", 6, tokens_tiny, heads=2),
        TemporalWorkload("temporal_inter_tiny_144x256_t6", "inter", 6, tokens_tiny, heads=2),
    ]


WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _all()}
ALL = "all"
DEFAULT = (
    "encoder_r50_360x640_t5",
    "decoder_r50_360x640_t5",
    "temporal_intra_r50_360x640_t5",
    "temporal_inter_r50_360x640_t5",
)


def chosen_workloads(names: list[str]) -> list[Workload]:
    """The workloads of these names, each once (`all` stands for all).

    Raises:
        MsstsError: there is none of a name; the message lists those there are.
    """
    for name in names:
        if name not in WORKLOADS and name != ALL:
            raise MsstsError(f"--workload {name}: there is none; expected {ALL} or any of {', '.join(WORKLOADS)}")
    return [workload for name, workload in WORKLOADS.items() if ALL in names or name in names]
