"""Options of bulk prediction."""

from __future__ import annotations

from dataclasses import dataclass

from mssts.errors import MsstsError


@dataclass(frozen=True)
class BulkOptions:
    """Options of bulk prediction.

    Attributes:
        threads: cores of a worker.
        gpus: GPUs of a worker; 0.25 puts four workers on one.
        workers: at most so many; as many as the machines have room for if None.
        retries: how often a video is tried again after its worker was lost.
        video_timeout: seconds after which a video is given up; None for never.
        resume: go on with what an earlier run left in the output folder.
    """

    threads: int = 1
    gpus: float = 0
    workers: int | None = None
    retries: int = 2
    video_timeout: float | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise MsstsError(f"--threads must be at least 1, not {self.threads}")
        if self.gpus < 0:
            raise MsstsError(f"--gpus must be at least 0, not {self.gpus:g}")
        if self.workers is not None and self.workers < 1:
            raise MsstsError(f"--workers must be at least 1, not {self.workers}")
        if self.retries < 0:
            raise MsstsError(f"--retries must be at least 0, not {self.retries}")
        if self.video_timeout is not None and not self.video_timeout > 0:
            raise MsstsError(f"--video-timeout must be above 0 seconds, not {self.video_timeout:g}")
