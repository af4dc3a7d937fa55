"""Clients of one or several Triton servers."""

from __future__ import annotations

from mssts.segmenters.triton.asynchronous import AsyncTritonSegmenter
from mssts.segmenters.triton.options import ClientOptions
from mssts.segmenters.triton.segmenter import TritonSegmenter
from mssts.segmenters.triton.statistics import STAGE_MODELS, StageTime

__all__ = ["STAGE_MODELS", "AsyncTritonSegmenter", "ClientOptions", "StageTime", "TritonSegmenter"]
