"""Finds the frames of a video in a folder, and their order."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

from mssts.errors import MsstsError
from mssts.media.images import image_colours

READABLE = frozenset({".jpg", ".jpeg", ".png"})
# Images that people keep beside frames or as frames. They are known so that none is left out in silence.
_UNREADABLE = frozenset({
    ".avif", ".bmp", ".dng", ".exr", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".pgm", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
})  # fmt: skip
_HEADER_BYTES = 1 << 16

# A fraction stands alone: 1.05, but neither the 2.05 of 1.2.05 nor the 30.05 of 12.30.05, which are versions and times.
_NUMBER = re.compile(r"(?<![\d.])\d+\.\d+(?![\d.])|\d+")
_PLAIN_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


def frame_paths(folder: Path) -> list[Path]:
    """The images of a folder, in the order of the numbers in their names.

    Hidden files are passed over.

    Raises:
        MsstsError: there are none, or some of them seem to be something else than the frames of one video: images of
            several kinds, masks, a second series of pictures.
    """
    paths = image_files(folder)
    if not paths:
        hint = "; did you mean its instances.json?" if (folder / "instances.json").exists() else ""
        raise MsstsError(f"{folder}: no images in it; expected the .jpg or .png frames of a video{hint}")
    _check_kinds(folder, paths)
    _check_series(folder, paths)
    _check_colours(folder, paths)
    return in_order(paths)


def image_files(folder: Path) -> list[Path]:
    """The images that lie in a folder, readable or not, in no order."""
    return [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in READABLE | _UNREADABLE and not path.name.startswith(".") and path.is_file()
    ]


def _check_kinds(folder: Path, paths: Sequence[Path]) -> None:
    kinds = Counter(".jpg" if path.suffix.lower() == ".jpeg" else path.suffix.lower() for path in paths)
    found = " and ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    if len(kinds) > 1:
        raise MsstsError(
            f"{folder}: {found} images; the frames of a video must be of one kind. Move the others to another folder"
        )
    if not kinds.keys() <= READABLE:
        raise MsstsError(f"{folder}: {found} images, which are not read; convert them to .jpg or .png")


def _check_series(folder: Path, paths: Sequence[Path]) -> None:
    """Refuses names without a number, and several names with the same numbers.

    A frame and its mask are an example of the latter.
    """
    by_numbers: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in sorted(paths):
        by_numbers[tuple(_NUMBER.findall(path.stem))].append(path.name)
    unnumbered = by_numbers.pop((), [])
    if by_numbers and unnumbered:
        raise MsstsError(
            f"{folder}: {unnumbered[0]} has no number, unlike {_first(by_numbers)}; move what is no frame of the video "
            "to another folder"
        )
    for numbers, names in by_numbers.items():
        shorter = (by_numbers[numbers[:end]][0] for end in range(1, len(numbers)) if numbers[:end] in by_numbers)
        same = [*names, *shorter]
        if len(same) > 1:
            raise MsstsError(
                f"{folder}: {same[0]} and {same[1]} have the same number; if one is a mask or another picture of the "
                "frame, move those to another folder"
            )


def _first(by_numbers: dict[tuple[str, ...], list[str]]) -> str:
    return next(iter(by_numbers.values()))[0]


def _check_colours(folder: Path, paths: Sequence[Path]) -> None:
    """Refuses a palette or one channel beside colours: so masks are stored."""
    plain: list[Path] = []
    for path in sorted(paths):
        try:
            with path.open("rb") as file:
                if image_colours(file.read(_HEADER_BYTES)) != "colour":
                    plain.append(path)
        except (OSError, MsstsError):  # named when it is read as a frame
            continue
    if plain and len(plain) < len(paths):
        raise MsstsError(
            f"{folder}: {len(plain)} of {len(paths)} images have a palette or one channel, as masks have "
            f"({plain[0].name} for one); move masks to another folder, or store frames in colour"
        )


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of the numbers in their names.

    frame_2 comes before frame_10, 1.05 before 1.4.

    A point between two numbers makes a fraction, unless the names count behind it: 1.9, 1.10.
    """
    paths = list(paths)
    stems = [path.stem for path in paths]
    if all(_PLAIN_NUMBER.fullmatch(stem) for stem in stems) and not _counts_behind_point(stems):
        return sorted(paths, key=lambda path: (Decimal(path.stem), path.name))
    whole = _counts_behind_point(stems)
    return sorted(paths, key=lambda path: (_key(path.stem, whole), path.name))


def _counts_behind_point(stems: Sequence[str]) -> bool:
    """Whether the digits behind a point are a counter, not a fraction.

    They are if as fractions two would be the same number, such as 1.1 and 1.10.

    So they are as well where a longer one ends with 0, as 1.10 after 1.9, which nobody writes of a fraction.
    """
    fractions: dict[tuple[str, str], set[str]] = defaultdict(set)
    for stem in stems:
        for number in _NUMBER.finditer(stem):
            whole, point, digits = number[0].partition(".")
            if point:
                fractions[stem[: number.start()], whole].add(digits)
    every = set().union(*fractions.values()) if fractions else set()
    if any(len({digits.rstrip("0") for digits in of_one}) < len(of_one) for of_one in fractions.values()):
        return True
    shortest = min(map(len, every), default=0)
    padded = any(digits.startswith("0") and len(digits) > 1 for digits in every)
    return not padded and any(len(digits) > shortest and digits.endswith("0") for digits in every)


def _key(stem: str, whole: bool) -> list[tuple[int, Decimal, str]]:
    """Texts and numbers in turn."""
    pattern = re.compile(r"\d+") if whole else _NUMBER
    key = []
    end = 0
    for number in pattern.finditer(stem):
        key += [(0, Decimal(0), stem[end : number.start()]), (1, Decimal(number[0]), "")]
        end = number.end()
    return [*key, (0, Decimal(0), stem[end:])]
