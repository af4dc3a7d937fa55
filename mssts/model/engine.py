"""The model as an engine: uint8 frames in, the K best instances out.

This is what is exported, and the reference for parity.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mssts.model.layers import at_least_fp32
from mssts.model.mssts_vis import MSSTSVIS

# ImageNet's statistics, in units of pixel values.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def normalise(frames_BTHWC: Tensor, sizes_B2: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 RGB frames → normalised images [B, T, 3, H, W], zero where padded."""
    device = frames_BTHWC.device
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    B, T, H, W, _ = frames_BTHWC.shape
    rows_BH = torch.arange(H, device=device) < sizes_B2[:, :1]
    columns_BW = torch.arange(W, device=device) < sizes_B2[:, 1:]
    valid_BHW = (rows_BH[:, :, None] & columns_BW[:, None, :]).float()
    images_BTHWC = ((frames_BTHWC.float() - mean) / std * valid_BHW[:, None, :, :, None]).to(dtype)
    # Transposed last, frame by frame: a runtime whose convolutions want channels last then leaves it out.
    return images_BTHWC.flatten(0, 1).permute(0, 3, 1, 2).unflatten(0, (B, T))


class Engine(nn.Module):
    """`MSSTSVIS` with the inputs and outputs of `mssts.contract`.

    Frames come in as uint8, and masks are those of the last layer's best K alone.
    """

    def __init__(self, model: MSSTSVIS, top_k: int) -> None:
        super().__init__()
        self.model = model
        self.top_k = top_k

    def forward(self, frames: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors of `mssts.contract.ENGINE_OUTPUTS`.

        They are the top K of class × query, as in the released inference.
        """
        images = normalise(frames, sizes, self.model.encoder.level_embed.weight.dtype)
        prediction = self.model(images, sizes)
        classes = self.model.config.classes
        scores_BK, index_BK = at_least_fp32(prediction.logits[-1]).sigmoid().flatten(1).topk(self.top_k)
        queries_BK = torch.div(index_BK, classes, rounding_mode="floor")
        labels_BK = (index_BK - queries_BK * classes).to(torch.int32)
        boxes_BTQ4 = prediction.layers[-1].boxes_BTQ4
        T = boxes_BTQ4.shape[1]
        boxes = boxes_BTQ4.gather(2, queries_BK[:, None, :, None].expand(-1, T, -1, 4)).transpose(1, 2)
        masks = self.model.masks(prediction, -1, queries_BK)
        return scores_BK, labels_BK, boxes, masks
