"""Workers as actors of Ray, and Ray started so that it tells nobody about itself.

Ray is imported when a run begins: `mssts` works without it.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mssts.bulk.driver import WorkerLost
from mssts.bulk.options import BulkOptions
from mssts.bulk.worker import Job, Worker
from mssts.errors import MsstsError, first_line
from mssts.machine import cpu_count
from mssts.media.sources import VideoItem

LOCAL = "local"
AUTO = "auto"
_OBJECT_STORE_BYTES = 128 << 20  # what goes through it is a few hundred bytes a video
_CONNECT_SECONDS = 10.0


@contextmanager
def connected(address: str, options: BulkOptions, job: Job) -> Iterator[RayCluster]:
    """Joins a cluster, or makes one of this machine, for the block.

    Args:
        address: `local`, `auto` for the cluster that runs on this machine, or HOST:PORT of its head.
        options: the size of a worker.
        job: of every worker.

    Raises:
        MsstsError: Ray is not installed, or there is no such cluster.
    """
    _check_address(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MsstsError("ray is not installed: `pip install 'mssts[ray]'`") from None
    arguments: dict[str, Any] = {"address": address}
    if address == LOCAL:
        arguments |= {
            "include_dashboard": False,
            "num_cpus": max(cpu_count(), options.threads),
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            ray.init(**arguments, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise MsstsError(f"--ray {address}: {first_line(error)}") from None
    try:
        yield RayCluster(options, job)
    except ray.exceptions.RaySystemError as error:
        raise MsstsError(
            f"--ray {address}: the cluster is gone ({first_line(error)}). What is done is kept: go on with --resume"
        ) from None
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Refuses an address at which nobody listens: Ray would wait for minutes."""
    if address in (LOCAL, AUTO):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise MsstsError(f"--ray {address}: expected local, auto, or HOST:PORT of the head of a cluster")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise MsstsError(f"--ray {address}: no cluster answers there ({first_line(error)})") from None


class RayCluster:
    """The cluster that this process is connected to, see `mssts.bulk.driver.Cluster`."""

    def __init__(self, options: BulkOptions, job: Job) -> None:
        import ray

        self._ray = ray
        self._options = options
        # What is lost is counted by the driver, so nothing starts again by itself.
        self._actor: Any = ray.remote(
            num_cpus=options.threads, num_gpus=options.gpus, max_restarts=0, max_task_retries=0
        )(Worker)
        self._job = ray.put(job)

    def room(self) -> dict[str, int]:
        """How many workers each node that is alive can hold, running ones included."""
        found = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                resources = node["Resources"]
                slots = int(resources.get("CPU", 0) / self._options.threads)
                if self._options.gpus:
                    slots = min(slots, int(resources.get("GPU", 0) / self._options.gpus + 1e-6))
                found[node["NodeID"]] = slots
        return found

    def start(self, node: str) -> tuple[Any, Any]:
        """Starts an actor on a node, and returns it with the reference to its `Started`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        place = NodeAffinitySchedulingStrategy(node, soft=False)
        handle = self._actor.options(scheduling_strategy=place).remote(self._job)
        return handle, handle.start.remote()

    def predict(self, worker: Any, index: int, item: VideoItem) -> Any:
        """Gives an actor a video, and returns the reference to its `Outcome`."""
        return worker.predict.remote(index, item)

    def wait(self, references: Sequence[Any], seconds: float) -> list[Any]:
        """The references that have an answer."""
        if not references:
            time.sleep(seconds)
            return []
        ready, _ = self._ray.wait(list(references), num_returns=1, timeout=seconds)
        if ready:  # all of them, or those at the end of the list would starve
            ready, _ = self._ray.wait(list(references), num_returns=len(references), timeout=0)
        return ready

    def result(self, reference: Any) -> Any:
        """The answer, see `mssts.bulk.driver.Cluster`."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            raise error.cause from None
        except errors.OutOfMemoryError:
            raise WorkerLost("its machine ran out of memory") from None
        except (errors.ActorUnavailableError, errors.ActorUnschedulableError, errors.NodeDiedError):
            raise WorkerLost("its machine is gone") from None
        except errors.RayActorError as error:
            raise WorkerLost(_why(str(error))) from None

    def kill(self, worker: Any) -> None:
        """Ends an actor's process."""
        self._ray.kill(worker, no_restart=True)


def _why(message: str) -> str:
    """The cause of an actor's death, from a message of many lines."""
    if "its node has died" in message:
        return "its machine is gone"
    # Ray's own monitor says so; a kernel that kills leaves no word.
    return "its machine ran out of memory" if "running low on memory" in message else "its process died"
