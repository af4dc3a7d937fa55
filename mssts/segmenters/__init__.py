"""Segmenters: frames of a clip in, instances out, locally or on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mssts.errors import MsstsError

if TYPE_CHECKING:
    from mssts.segmenters.base import Segmenter
    from mssts.segmenters.triton import ClientOptions


def load(
    target: Path | str,
    *,
    threads: int | None = None,
    runner: str = "auto",
    as_released: bool = False,
    client: ClientOptions | None = None,
) -> Segmenter:
    """Opens a segmenter, to be used in a `with` block or closed.

    Args:
        target: an export's or plan's folder or file, a checkpoint (which needs torch), or a server as
            `grpc://host:port`, several as `grpc://a:8001,b:8001`, with TLS as `grpcs://host:port`.
        threads: cores that a local engine uses, all that this process may use if None.
        runner: what runs a local engine, one of `mssts.runners.RUNNERS`.
        as_released: resize frames and masks as the released `inference.py` does; for a local engine only.
        client: deadline, retries, clips in flight, certificates and transfer of a server's client.

    Raises:
        MsstsError: the engine is absent or broken, no server answers at that address, or `as_released` was asked of a
            server.
    """
    # Imported here: a client has no engine library, and a local engine needs no gRPC.
    if str(target).startswith(("grpc://", "grpcs://")):
        if as_released:
            raise MsstsError(
                f"{target}: a server resizes frames itself, not as released; load the checkpoint or the export here"
            )
        from mssts.segmenters.triton import TritonSegmenter

        return TritonSegmenter(str(target), client)
    from mssts.segmenters.local import LocalSegmenter

    return LocalSegmenter(target, threads, runner, as_released=as_released)
