"""HDR video as SDR, and that SDR video stays what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.media_files import write_video

from mssts.media.sources import open_source

SDR, PQ, HLG = 1, 16, 18
BT709, BT601, BT2020 = 1, 5, 9
WEIGHTS = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593)}  # of red and blue in luma
WHITE = 203.0

# The colours of BT.709 as seen by BT.2020 (ITU-R BT.2087, table 1).
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])


def patches(count: int = 96) -> np.ndarray:
    """Colours in squares of 8 pixels, float [3, 16, 8·count]."""
    colours = np.random.default_rng(0).uniform(0, 1, (3, count))
    colours[:, :8] = np.linspace(0, 1, 8)  # greys
    return np.repeat(np.repeat(colours[:, None], 16, 1), 8, 2)


def pq(light: np.ndarray) -> np.ndarray:
    """PQ's signal of light in cd/m² (SMPTE ST 2084)."""
    power = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(light: np.ndarray) -> np.ndarray:
    """HLG's signal of displayed light in cd/m².

    At a peak of 1000 and a system gamma of 1.2 (ITU-R BT.2100).
    """
    displayed = light / 1000
    luminance = np.tensordot([0.2627, 0.6780, 0.0593], displayed, 1)
    scene = displayed * np.maximum(luminance, 1e-12) ** (1 / 1.2 - 1)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-12)) + c)


def ycc(rgb: np.ndarray, matrix: int, pix_fmt: str = "yuv444p10le") -> list[np.ndarray]:
    """The Y'CbCr planes of R'G'B' in 0…1."""
    bits, full = 10 if "10" in pix_fmt else 8, pix_fmt.startswith("yuvj")
    unit, most = 2 ** (bits - 8), 2**bits - 1
    red, blue = WEIGHTS[matrix]
    luma = np.tensordot([red, 1 - red - blue, blue], rgb, 1)
    cb, cr = (rgb[2] - luma) / (2 - 2 * blue), (rgb[0] - luma) / (2 - 2 * red)
    if full:
        planes = [most * luma, most * cb + 128 * unit, most * cr + 128 * unit]
    else:
        planes = [(219 * luma + 16) * unit, (224 * cb + 128) * unit, (224 * cr + 128) * unit]
    if "420" in pix_fmt:  # the patches are several pixels of colour wide
        planes = [planes[0], planes[1][::2, ::2], planes[2][::2, ::2]]
    return [np.rint(plane).clip(0, most).astype(np.uint16 if bits > 8 else np.uint8) for plane in planes]


def read(path: Path) -> np.ndarray:
    """The first frame's colours, [3, H, W] in 0…255."""
    return np.moveaxis(next(open_source(path).videos[0].frames()).rgb_HWC, -1, 0).astype(float)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_sdr_colours_in_an_hdr_video_come_back(transfer: int, tmp_path: Path) -> None:
    """White at HDR's reference white.

    Below the knee of BT.2390's curve light stays as it is, above it is dimmed.
    """
    sdr = patches()
    light = WHITE * np.tensordot(TO_BT2020, sdr**2.4, 1)
    signal = pq(light) if transfer == PQ else hlg(light)
    path = write_video(
        tmp_path / "hdr.mp4", [ycc(signal, BT2020)] * 2, pix_fmt="yuv444p10le", colours=(9, transfer, 9, 1)
    )
    seen, expected = read(path), 255 * sdr
    # Of a bright colour's weakest component, a step of 10 bits is many of 8 bits.
    sound = expected > 0.3 * expected.max(0)
    dark = sound & (light.max(0) < 85)
    assert dark.mean() > 0.2
    assert np.abs(seen - expected)[dark].max() <= 5
    # Brighter light is dimmed, by at most a tenth of the signal, and never brightened. One factor keeps the hue.
    assert (seen - expected)[sound].max() <= 5
    assert (expected - seen)[sound].max() <= 30
    order = np.argsort(expected[0, 0, :64:8])
    assert (np.diff(seen[0, 0, :64:8][order]) > 0).all()


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_highlights_are_compressed_and_not_cut_at_white(transfer: int, tmp_path: Path) -> None:
    light = np.repeat(np.array([0, 203, 400, 700, 1000.0]), 16)[None, None].repeat(3, 0).repeat(16, 1)
    signal = pq(light) if transfer == PQ else hlg(light)
    path = write_video(tmp_path / "hdr.mkv", [ycc(signal, BT2020)], pix_fmt="yuv444p10le", colours=(9, transfer, 9, 1))
    black, white, bright, brighter, peak = read(path)[0, 8, 8::16]
    assert black <= 1
    assert 220 <= white <= 240
    assert white < bright < brighter <= peak
    assert peak >= 254


def test_an_hdr_video_is_known_by_its_transfer_function(tmp_path: Path) -> None:
    planes = ycc(pq(np.full((3, 16, 64), 50.0)), BT2020, "yuv420p10le")
    means = {}
    for transfer in (PQ, SDR):
        colours = (9, transfer, 9, 1)
        path = write_video(tmp_path / f"{transfer}.mp4", [planes], pix_fmt="yuv420p10le", colours=colours)
        means[transfer] = read(path).mean()
    assert means[PQ] == pytest.approx(255 * (50 / WHITE) ** (1 / 2.4), abs=2)
    assert means[SDR] < means[PQ] - 20


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuvj420p", "yuv420p10le", "yuv444p10le"])
@pytest.mark.parametrize("matrix", [BT709, BT601])
def test_sdr_colours_are_those_of_the_file(matrix: int, pix_fmt: str, tmp_path: Path) -> None:
    sdr = patches()
    colours = (matrix, SDR, matrix, 2 if pix_fmt.startswith("yuvj") else 1)
    path = write_video(tmp_path / "sdr.mp4", [ycc(sdr, matrix, pix_fmt)], pix_fmt=pix_fmt, colours=colours)
    inside = read(path)[:, 4:12].reshape(3, 8, -1, 8)[..., 3:5]  # a decoder may blend colours across an edge
    expected = 255 * sdr[:, 4:12].reshape(3, 8, -1, 8)[..., 3:5]
    assert np.abs(inside - expected).max() <= (4 if "420" in pix_fmt else 3)
