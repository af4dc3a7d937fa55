"""HDR video (PQ and HLG) as SDR: what a monitor of 203 cd/m² white shows of it.

Networks are trained on SDR pictures. Read as if it were SDR, HDR is grey and pale. The steps are those of ITU-R BT.2100
and BT.2390: signal → linear light of the display → highlights compressed → primaries of BT.709 → BT.1886.

H, W: height and width.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

PQ, HLG = 16, 18  # the codes of the transfer functions in ITU-T H.273
WHITE = 203.0  # cd/m², of HDR's reference white (BT.2408) and so of SDR's white
_PEAK = 1000.0  # cd/m², for which nearly all PQ is graded, and at which HLG is defined. Brighter light is clipped.
_HLG_GAMMA = 1.2  # of the system, at this peak

_CODES = 1 << 12  # steps of a signal that tables are made for; HDR video has 10 or 12 bits
_STEPS = 1 << 12  # of the tables over linear light, which are spaced evenly in its square root

_LUMINANCE = (0.2627, 0.6780, 0.0593)  # of BT.2020's primaries
# BT.2020's primaries in BT.709's (ITU-R BT.2087).
_TO_BT709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)


def to_sdr(signal_HWC: np.ndarray, transfer: int) -> np.ndarray:
    """An HDR frame as SDR.

    Args:
        signal_HWC: uint16 RGB [H, W, 3] of BT.2020's primaries, full range.
        transfer: `PQ` or `HLG`.

    Returns:
        uint8 RGB [H, W, 3] of BT.709's primaries.
    """
    light_HWC = np.take(_light_table(transfer), signal_HWC >> 4)
    if transfer == HLG:  # scene light until here; the system's gamma is that of luminance
        luminance_HW = cv2.transform(light_HWC, np.array([_LUMINANCE], np.float32))
        light_HWC *= (cv2.pow(luminance_HW, _HLG_GAMMA - 1) * np.float32(_PEAK / WHITE))[..., None]
    # One factor for all three colours keeps the hue.
    greatest_HW = np.maximum(np.maximum(light_HWC[..., 0], light_HWC[..., 1]), light_HWC[..., 2])
    light_HWC *= np.take(_gain_table(), _step(greatest_HW, _PEAK / WHITE))[..., None]
    return np.take(_display_table(), _step(cv2.transform(light_HWC, _TO_BT709), 1.0))


def _step(light: np.ndarray, most: float) -> np.ndarray:
    """The index of linear light, from 0 to `most`, in a table."""
    scaled = np.clip(light, 0, most)
    cv2.sqrt(scaled, scaled)
    return np.rint(scaled * np.float32((_STEPS - 1) / most**0.5)).astype(np.int32)


@lru_cache(maxsize=2)
def _light_table(transfer: int) -> np.ndarray:
    """Linear light of each signal.

    Light of the display where 1 is white (PQ), light of the scene from 0 to 1 (HLG).
    """
    signal = np.linspace(0, 1, _CODES)
    if transfer == PQ:
        light = np.minimum(_pq_to_light(signal), _PEAK) / WHITE
    else:
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light.astype(np.float32)


@lru_cache(maxsize=1)
def _gain_table() -> np.ndarray:
    """The factor that dims light, by its greatest colour.

    The curve is that of ITU-R BT.2390, section 5.4.1.

    It works on PQ's signal: below a knee light stays as it is, above it a Hermite spline leads to SDR's white at the
    peak. Black stays black.
    """
    light = np.linspace(0, 1, _STEPS) ** 2 * _PEAK
    most = _light_to_pq(np.array(_PEAK))
    signal, white = _light_to_pq(light) / most, float(_light_to_pq(np.array(WHITE)) / most)
    knee = 1.5 * white - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * white
    mapped = _pq_to_light(np.where(signal < knee, signal, spline) * most)
    return np.where(light > 0, mapped / np.maximum(light, 1e-9), 1).astype(np.float32)


@lru_cache(maxsize=1)
def _display_table() -> np.ndarray:
    """The 8-bit signal of linear light.

    It is the inverse of BT.1886, by which displays raise the signal to the power of 2.4.
    """
    light = np.linspace(0, 1, _STEPS) ** 2
    return np.rint(255 * light ** (1 / 2.4)).astype(np.uint8)


_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32


def _pq_to_light(signal: np.ndarray) -> np.ndarray:
    """Light in cd/m² of PQ's signal, 0 to 1 (SMPTE ST 2084)."""
    root = signal ** (1 / _M2)
    return 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _light_to_pq(light: np.ndarray) -> np.ndarray:
    """PQ's signal, 0 to 1, of light in cd/m²."""
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2
