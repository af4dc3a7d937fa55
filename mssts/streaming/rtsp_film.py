"""The film of a camera, as it describes it."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from mssts.streaming.rtp import Codec


class RtspUnsupportedError(Exception):
    """The camera asks for more than is here."""


@dataclass(frozen=True)
class Film:
    """What the description of a session says of its film.

    Attributes:
        codec: of it.
        parameter_sets: NAL units, each without a start code.
        control: its address, perhaps relative; `*` is that of the session.
        clock_rate: timestamps a second.
        fps: frames a second, None if it does not say.
    """

    codec: Codec
    parameter_sets: tuple[bytes, ...]
    control: str
    clock_rate: int
    fps: float | None

    @classmethod
    def of_description(cls, text: str) -> Film:
        """The first film of a session's description (SDP, RFC 4566).

        Raises:
            RtspUnsupportedError: there is none, it has another codec, or it is a recording.
        """
        head, *media = re.split(r"^m=", text, flags=re.MULTILINE)
        if re.search(r"^a=range:npt=[\d.:]+-[\d.:]+", head, re.MULTILINE):
            raise RtspUnsupportedError("a recording")
        lines = next((section.splitlines() for section in media if section.startswith("video ")), [])
        said = {name: value for name, _, value in (line[2:].partition(":") for line in lines if line.startswith("a="))}
        mapped = re.fullmatch(r"\d+ +(H264|H265)/([1-9]\d*)\s*", said.get("rtpmap", ""), re.IGNORECASE)
        if mapped is None:
            raise RtspUnsupportedError("no film, or another codec")
        pairs = (pair.strip().partition("=") for pair in said.get("fmtp", "").partition(" ")[2].split(";"))
        options = {name: value for name, _, value in pairs}
        if options.get("packetization-mode") == "2" or options.get("sprop-max-don-diff", "0") != "0":
            raise RtspUnsupportedError("packets out of their order")
        sets = ",".join(options.get(f"sprop-{name}", "") for name in ("vps", "sps", "pps", "parameter-sets"))
        try:
            parameter_sets = tuple(base64.b64decode(each) for each in sets.split(",") if each)
            fps = float(said.get("framerate", 0)) or None
        except ValueError:
            raise RtspUnsupportedError("a description that is none") from None
        codec: Codec = "h264" if mapped[1].upper() == "H264" else "hevc"
        return cls(codec, parameter_sets, said.get("control", "*").strip(), int(mapped[2]), fps)
