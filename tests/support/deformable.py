"""Deformable attention by loops in float64, and inputs for it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch


def deformable_inputs(shapes, N=2, Q=7, M=3, D=5, P=4, R=2, spread=3.0, dtype=torch.float64, seed=0):
    gen = torch.Generator().manual_seed(seed)

    def rand(*size):
        return torch.randn(*size, generator=gen, dtype=torch.float64)

    S, L = sum(h * w for h, w in shapes), len(shapes)
    reference = torch.rand(N, Q, L, R, generator=gen, dtype=torch.float64)
    value, offsets, logits = rand(N, S, M, D), rand(N, Q, M, L, P, 2) * spread, rand(N, Q, M, L, P)
    shapes_L2 = torch.tensor(shapes, dtype=torch.int64)
    return value.to(dtype), shapes_L2, reference.to(dtype), offsets.to(dtype), logits.to(dtype), list(shapes)


def deformable_by_loops(value, shapes_L2, reference, offsets, logits, shapes):
    """Equation 3 of arXiv 2010.04159, one number at a time."""
    value, reference, offsets, logits = (x.double().numpy() for x in (value, reference, offsets, logits))
    N, _, M, D = value.shape
    Q, P = offsets.shape[1], offsets.shape[4]
    out = np.zeros((N, Q, M, D))
    for n, q, m in itertools.product(range(N), range(Q), range(M)):
        weights = np.exp(logits[n, q, m] - logits[n, q, m].max())
        weights /= weights.sum()
        start = 0
        for level, (h, w) in enumerate(shapes):
            ref = reference[n, q, level]
            for p in range(P):
                dx, dy = offsets[n, q, m, level, p]
                if len(ref) == 2:
                    x, y = ref[0] + dx / w, ref[1] + dy / h
                else:
                    x, y = ref[0] + dx / P * ref[2] / 2, ref[1] + dy / P * ref[3] / 2
                x, y = x * w - 0.5, y * h - 0.5
                for i, j in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
                    if 0 <= i < h and 0 <= j < w:
                        share = (1 - abs(y - i)) * (1 - abs(x - j)) * weights[level, p]
                        out[n, q, m] += share * value[n, start + i * w + j, m]
            start += h * w
    return out.reshape(N, Q, M * D)


SHAPES = {
    "one level": ((4, 5),),
    "four levels": ((9, 12), (5, 6), (3, 3), (2, 2)),
    "single pixels": ((1, 1), (1, 3)),
}
