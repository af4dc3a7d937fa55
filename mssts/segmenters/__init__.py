"""Segmenters: frames of a clip in, instances out, on a local engine or on a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mssts.segmenters.base import Segmenter
    from mssts.segmenters.triton import ClientOptions


def load(
    target: Path | str, *, threads: int | None = None, runner: str = "auto", client: ClientOptions | None = None
) -> Segmenter:
    """Opens a segmenter, to be used in a `with` block or closed.

    Args:
        target: an export's or plan's folder or file, a checkpoint (which needs torch), or a server as
            `grpc://host:port`, several as `grpc://a:8001,b:8001`, with TLS as `grpcs://host:port`.
        threads: cores that a local engine uses, all that this process may use if None.
        runner: what runs a local engine, one of `mssts.runners.RUNNERS`.
        client: deadline, retries, clips in flight, certificates and transfer of a server's client.

    Raises:
        MsstsError: the engine is absent or broken, or no server answers at that address.
    """
    # Imported here: a client has no engine library, and a local engine needs no gRPC.
    if str(target).startswith(("grpc://", "grpcs://")):
        from mssts.segmenters.triton import TritonSegmenter

        return TritonSegmenter(str(target), client)
    from mssts.segmenters.local import LocalSegmenter

    return LocalSegmenter(target, threads, runner)
