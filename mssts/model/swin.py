"""Swin Transformer backbone (arXiv 2103.14030) with Microsoft's names.

With the names of its state dict, its weights load.

Letters: N images, H and W of a map in tokens, C channels, G windows of L tokens each, M heads, D channels a head.

As in the released code (Microsoft's detection version), maps are padded with zero tokens to whole windows in every
block, after the norm. Padding is masked only where the shift brings other parts of the map beside it; elsewhere the
tokens of a window at the border attend to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mssts.model.layers import LayerNorm, at_least_fp32

_MASKED = -100.0  # added to the logits of what is masked; not −∞, as trained weights know it


@dataclass(frozen=True)
class SwinConfig:
    """Swin's architecture.

    `width` is C of the first stage and doubles with each, `window` is in tokens.
    """

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int
    drop_path: float  # of the last block; it grows from 0 linearly with depth (arXiv 1603.09382)


def _ceil_div(length: int, divisor: int) -> int:
    # Not −(−a // b): exported to ONNX, a division rounds to zero.
    return (length + divisor - 1) // divisor


@dataclass(frozen=True)
class Grid:
    """The grid of tokens of an image of `height` × `width` pixels.

    One token for each square of `stride` pixels, incomplete ones included.

    Each map's size follows from the image's, not from the map before: ⌈⌈H/4⌉/2⌉ is ⌈H/8⌉, but under export, where sizes
    are symbols, the nested form grows from stage to stage, and the time of the export with it.
    """

    height: int
    width: int
    stride: int

    def cells(self, tokens: int = 1) -> tuple[int, int]:
        """Rows and columns of squares of `tokens` × `tokens` tokens."""
        side = self.stride * tokens
        return _ceil_div(self.height, side), _ceil_div(self.width, side)

    def merged(self) -> Grid:
        """The grid of twice the stride."""
        return Grid(self.height, self.width, 2 * self.stride)


class Windows:
    """The partition of a cyclically shifted grid into windows.

    The map is shifted up and to the left, then cut into windows of `window` × `window` tokens.

    Sizes may be symbolic (under export): nothing here branches on them.
    """

    def __init__(self, grid: Grid, window: int, shift: int) -> None:
        self.window, self.shift = window, shift
        self.height, self.width = grid.cells()
        self.rows, self.columns = grid.cells(window)

    def split(self, x_NHWC: Tensor) -> Tensor:
        """[N, H, W, C] → [N, G, L, C]."""
        below, right = self.rows * self.window - self.height, self.columns * self.window - self.width
        x = F.pad(x_NHWC, (0, 0, 0, right, 0, below))
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        return self._cut(x)

    def _cut(self, padded_NHWC: Tensor) -> Tensor:
        N, C = padded_NHWC.shape[0], padded_NHWC.shape[3]
        x = padded_NHWC.view(N, self.rows, self.window, self.columns, self.window, C).transpose(2, 3)
        return x.reshape(N, self.rows * self.columns, self.window**2, C)

    def join(self, windows_NGLC: Tensor) -> Tensor:
        """[N, G, L, C] → [N, H, W, C]: what `split` did, undone."""
        N, C = windows_NGLC.shape[0], windows_NGLC.shape[3]
        x = windows_NGLC.view(N, self.rows, self.columns, self.window, self.window, C).transpose(2, 3)
        x = x.reshape(N, self.rows * self.window, self.columns * self.window, C)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), (1, 2))
        return x[:, : self.height, : self.width]

    def mask(self, like: Tensor) -> Tensor:
        """Attention mask [G, L, L], to be added to the logits.

        Tokens that only the shift made neighbours do not see one another.
        """

        def part(length: int) -> Tensor:
            # 0: before the last window; 1: in it; 2: what the shift brought there from the other end.
            index = torch.arange(length, device=like.device)
            return (index >= length - self.window).long() + (index >= length - self.shift).long()

        part_HW = 3 * part(self.rows * self.window)[:, None] + part(self.columns * self.window)
        part_GL = self._cut(part_HW[None, :, :, None])[0, :, :, 0]
        apart_GLL = part_GL[:, :, None] != part_GL[:, None, :]
        return apart_GLL.to(like.dtype) * _MASKED


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, with a learned relative position bias."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", _relative_position_index(window), persistent=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    relative_position_index: Tensor

    def forward(self, windows_NGLC: Tensor, mask_GLL: Tensor | None) -> Tensor:
        qkv = self.qkv(windows_NGLC).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.transpose(-4, -2).unbind(-3)  # each [N, G, M, L, D]
        bias_MLL = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        logits = (query * self.scale) @ key.transpose(-2, -1) + bias_MLL
        if mask_GLL is not None:
            logits = logits + mask_GLL[:, None]
        attended = at_least_fp32(logits).softmax(-1).to(value.dtype) @ value
        return self.proj(attended.transpose(-3, -2).flatten(-2))


def _relative_position_index(window: int) -> Tensor:
    """[L, L]: the bias table's row for the offset of tokens i and j of a window."""
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    down, right = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return down * (2 * window - 1) + right


class Mlp(nn.Module):
    """Two linear layers, four times as wide between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Norm → window attention → residual → norm → MLP → residual.

    Training drops the residuals of random images.
    """

    def __init__(self, width: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = LayerNorm(width)
        self.attn = WindowAttention(width, heads, window)
        self.norm2 = LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x_NHWC: Tensor, windows: Windows, mask_GLL: Tensor | None) -> Tensor:
        attended = windows.join(self.attn(windows.split(self.norm1(x_NHWC)), mask_GLL))
        x = x_NHWC + self._drop(attended)
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x_NHWC: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return x_NHWC
        kept = 1 - self.drop_path
        return x_NHWC * x_NHWC.new_empty(len(x_NHWC), 1, 1, 1).bernoulli_(kept).div_(kept)


class PatchMerging(nn.Module):
    """Merges four neighbouring tokens into one of twice the width.

    Odd maps are padded with zeros.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_NHWC: Tensor, grid: Grid) -> Tensor:
        """[N, H, W, C], the map of `grid` → [N, ⌈H/2⌉, ⌈W/2⌉, 2C]."""
        (H, W), (rows, columns) = grid.cells(), grid.cells(2)
        x = F.pad(x_NHWC, (0, 0, 0, columns * 2 - W, 0, rows * 2 - H))
        x = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))  # column-major, as it was trained


class SwinStage(nn.Module):
    """Blocks with alternately shifted windows, then (but for the last stage) merging.

    The shift is half a window.
    """

    def __init__(self, width: int, heads: int, window: int, drop_paths: list[float], merge: bool) -> None:
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(SwinBlock(width, heads, window, probability) for probability in drop_paths)
        self.downsample = PatchMerging(width) if merge else None

    def forward(self, x_NHWC: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """The map of `grid` → features [N, H, W, C] and the next stage's input."""
        still, shifted = Windows(grid, self.window, 0), Windows(grid, self.window, self.window // 2)
        mask_GLL = shifted.mask(x_NHWC)
        for i, block in enumerate(self.blocks):
            x_NHWC = block(x_NHWC, shifted, mask_GLL) if i % 2 else block(x_NHWC, still, None)
        return x_NHWC, x_NHWC if self.downsample is None else self.downsample(x_NHWC, grid)


class PatchEmbedding(nn.Module):
    """4×4 pixels become a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 4, 4)
        self.norm = LayerNorm(width)

    def forward(self, images_N3HW: Tensor) -> tuple[Tensor, Grid]:
        """→ the map [N, ⌈H/4⌉, ⌈W/4⌉, C], and its grid."""
        H, W = images_N3HW.shape[2:]
        grid = Grid(H, W, stride=4)
        rows, columns = grid.cells()
        images = F.pad(images_N3HW, (0, columns * 4 - W, 0, rows * 4 - H))
        return self.norm(self.proj(images).permute(0, 2, 3, 1)), grid


class SwinTransformer(nn.Module):
    """Swin without its classifier.

    It returns the normalised features of strides 8, 16 and 32.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        widths = [config.width << stage for stage in range(4)]
        self.channels = tuple(widths[1:])
        self.patch_embed = PatchEmbedding(config.width)
        blocks = sum(config.depths)
        drop_paths = [config.drop_path * i / (blocks - 1) for i in range(blocks)]
        self.layers = nn.ModuleList()
        for stage, (width, depth, heads) in enumerate(zip(widths, config.depths, config.heads, strict=True)):
            first = sum(config.depths[:stage])
            probabilities = drop_paths[first : first + depth]
            self.layers.append(SwinStage(width, heads, config.window, probabilities, merge=stage < 3))
        for stage in (1, 2, 3):
            self.add_module(f"norm{stage}", LayerNorm(widths[stage]))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # linear layers and the tables of biases
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, images_N3HW: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] → features [N, C_i, ⌈H/s⌉, ⌈W/s⌉] for s = 8, 16, 32.

        Images are normalised.
        """
        x_NHWC, grid = self.patch_embed(images_N3HW)
        features = []
        for stage, layer in enumerate(self.layers):
            stage_NHWC, x_NHWC = layer(x_NHWC, grid)
            grid = grid.merged()
            if stage > 0:
                features.append(self.get_submodule(f"norm{stage}")(stage_NHWC).permute(0, 3, 1, 2))
        return features
