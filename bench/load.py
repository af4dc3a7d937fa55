"""`mssts bench load`: a server under load, at several concurrencies and rates.

Closed loop: so many clients, each sends the next clip when it has the answer to the last. Open loop: clips are sent at
random moments, at a mean rate, whether the last ones are answered or not, as the world does. Nothing is sent again:
what a server refuses counts as `rejected`, and latencies are those of answered clips.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mssts.bench.arguments import check_outputs, check_positive, frame_size
from mssts.bench.plotting import pyplot, save_figure
from mssts.bench.records import save_record
from mssts.commands.options import add_tls, client_options, server_url
from mssts.errors import MsstsError

if TYPE_CHECKING:
    import numpy as np

    from mssts.segmenters.triton import ClientOptions, StageTime

HELP = "a server under load: clips per second, latency and refusals by concurrency and rate"

_REFUSED_PAUSE = 0.05  # seconds that a client of the closed loop waits after a refusal
_MOST_OPEN = 128  # clips of the open loop on their way at once; above, the load generator itself is the limit
_MEMORY_SECONDS = 0.2
_CLIP_SECONDS = 120.0


@dataclass(frozen=True)
class Row:
    """Figures of one setting.

    Attributes:
        mode: `closed` or `open`.
        concurrency: clients of the closed loop; of the open one, the most clips that were on their way at once.
        rate: clips a second that the open loop sent on average, None for the closed one.
        clips_per_second: answered ones.
        frames_per_second: of those.
        ms_p50: latency of the answered clips, as the next two; None where there was none.
        ms_p90: see `ms_p50`.
        ms_p99: see `ms_p50`.
        errors: clips that failed, refused ones left out.
        rejected: clips that the server refused because its queue was full or too slow.
        server_rss_mb: the most resident memory of the tritonserver process, None where it runs on another machine.
        stage_ms: mean milliseconds of an answered clip in each of the server's stages, its queues included.
    """

    mode: str
    concurrency: int
    rate: float | None
    clips_per_second: float
    frames_per_second: float
    ms_p50: float | None
    ms_p90: float | None
    ms_p99: float | None
    errors: int
    rejected: int
    server_rss_mb: float | None
    stage_ms: dict[str, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument("--url", required=True, metavar="grpc://HOST:PORT", help="a running server")
    add_tls(parser)
    parser.add_argument(
        "--concurrency", default="1,2,4,8", metavar="N,N", help="clients of the closed loop (default: %(default)s)"
    )
    parser.add_argument("--rates", default="", metavar="R,R", help="clips a second of the open loop (default: none)")
    parser.add_argument("--seconds", type=int, default=20, help="for each setting (default: %(default)s)")
    parser.add_argument("--size", default="360x640", metavar="HxW", help="of the frames (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=5, help="of a clip (default: %(default)s)")
    parser.add_argument("--encoding", choices=("raw", "jpeg"), default="raw", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="latency and throughput as a picture")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the table and writes the files.

    The exit code is 1 if a clip failed for another reason than a full server."""
    check_positive(arguments, "seconds", "frames")
    check_outputs(arguments)
    height, width = frame_size(arguments.size)
    options = client_options(arguments, jpeg_quality=95 if arguments.encoding == "jpeg" else None)
    assert options is not None
    settings: list[tuple[str, float]] = [
        *(("closed", value) for value in _numbers("--concurrency", arguments.concurrency, whole=True)),
        *(("open", value) for value in _numbers("--rates", arguments.rates)),
    ]
    if not settings:
        raise MsstsError("give --concurrency, --rates, or both")
    clip_THWC = _clip(arguments.frames, height, width)
    load = _Load(server_url(arguments.url), clip_THWC, options)
    rows = []
    try:
        load.warm()
        print(f"{'mode':8}{'at once':>8}{'clips/s':>9}{'frames/s':>10}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}"
              f"{'errors':>8}{'refused':>9}{'MB':>7}")  # fmt: skip
        for mode, value in settings:
            row = load.measure(mode, value, arguments.seconds)
            rows.append(row)
            _print_row(row)
        described = load.segmenter.describe()
    finally:
        load.close()
    report = {
        "url": arguments.url,
        "server": described,
        "frames": arguments.frames,
        "size": [height, width],
        "encoding": arguments.encoding,
        "seconds": arguments.seconds,
        "rows": [asdict(row) for row in rows],
    }
    save_record("load", report, arguments.out)
    if arguments.plot is not None:
        _plot(rows, arguments.plot)
    return int(any(row.errors for row in rows))


@dataclass
class _Tally:
    """Answers as the clients saw them. Their threads share it."""

    milliseconds: list[float] = field(default_factory=list)
    errors: int = 0
    rejected: int = 0
    flying: int = 0
    most_flying: int = 0
    last_error: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Load:
    """A server, a clip to send to it, and the measurements."""

    def __init__(self, url: str, clip_THWC: np.ndarray, options: ClientOptions) -> None:
        import tritonclient.grpc as triton

        from mssts.segmenters.triton import TritonSegmenter
        from mssts.segmenters.triton.addresses import parse_urls
        from mssts.segmenters.triton.messages import request_inputs

        addresses = parse_urls(url)
        if len(addresses) != 1:
            raise MsstsError(f"--url {url}: name one server; each is measured alone")
        (address,) = addresses
        self.segmenter = TritonSegmenter(url, options)
        self._client = triton.InferenceServerClient(**address.channel_arguments(options))
        self._exception = triton.InferenceServerException
        self._inputs = request_inputs(clip_THWC, 0.0, options)
        self._frames = len(clip_THWC)
        self._process = _server_process(int(address.name.rpartition(":")[2])) if address.is_loopback else None

    def warm(self) -> None:
        """Sends the clip until it is answered as quickly as it will be."""
        for _ in range(3):
            self._send(_Tally())

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()
        self.segmenter.close()

    def measure(self, mode: str, value: float, seconds: float) -> Row:
        """One row, where `value` is a concurrency (closed loop) or a rate (open loop)."""
        tally = _Tally()
        before = self.segmenter.statistics()
        memory = _Memory(self._process)
        start = time.perf_counter()
        deadline = start + seconds
        (self._closed if mode == "closed" else self._open)(tally, value, deadline)
        elapsed = time.perf_counter() - start
        rss = memory.stop()
        time.sleep(0.3)  # Triton counts a request a moment after it has answered it
        spent = {name: after - before[name] for name, after in self.segmenter.statistics().items()}
        answered = len(tally.milliseconds)
        quantiles = _quantiles(tally.milliseconds)
        if tally.last_error:
            print(f"  the last error: {tally.last_error}")
        return Row(
            mode=mode,
            concurrency=int(value) if mode == "closed" else tally.most_flying,
            rate=None if mode == "closed" else value,
            clips_per_second=answered / elapsed,
            frames_per_second=answered * self._frames / elapsed,
            ms_p50=quantiles[0],
            ms_p90=quantiles[1],
            ms_p99=quantiles[2],
            errors=tally.errors,
            rejected=tally.rejected,
            server_rss_mb=rss,
            stage_ms=_stage_ms(spent),
        )

    def _closed(self, tally: _Tally, concurrency: float, deadline: float) -> None:
        def client() -> None:
            while time.perf_counter() < deadline:
                if not self._send(tally):
                    time.sleep(_REFUSED_PAUSE)

        threads = [threading.Thread(target=client) for _ in range(int(concurrency))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _open(self, tally: _Tally, rate: float, deadline: float) -> None:
        chance = random.Random(0)
        threads: list[threading.Thread] = []
        due = time.perf_counter()
        while due < deadline:
            time.sleep(max(0.0, due - time.perf_counter()))
            threads = [thread for thread in threads if thread.is_alive()]
            if len(threads) >= _MOST_OPEN:
                raise MsstsError(
                    f"{_MOST_OPEN} clips are on their way at {rate:g} a second; a server that neither answers nor "
                    "refuses them has no bounded queue: lower --rates"
                )
            threads.append(threading.Thread(target=self._send, args=(tally,)))
            threads[-1].start()
            due += chance.expovariate(rate)
        for thread in threads:
            thread.join()

    def _send(self, tally: _Tally) -> bool:
        """Sends the clip once and returns whether it was answered."""
        from mssts import contract
        from mssts.segmenters.triton.failures import Kind, failure_of

        with tally.lock:
            tally.flying += 1
            tally.most_flying = max(tally.most_flying, tally.flying)
        start = time.perf_counter()
        failure = None
        try:
            self._client.infer(contract.ENSEMBLE, self._inputs, client_timeout=_CLIP_SECONDS)
        except self._exception as error:
            failure = failure_of(error)
        milliseconds = 1e3 * (time.perf_counter() - start)
        with tally.lock:
            tally.flying -= 1
            if failure is None:
                tally.milliseconds.append(milliseconds)
            elif failure.kind is Kind.FULL:
                tally.rejected += 1
            else:
                tally.errors += 1
                tally.last_error = failure.message
        return failure is None


class _Memory:
    """The most resident memory of a process, looked at from a thread until `stop`."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._most = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while self._pid is not None:
            self._most = max(self._most, _resident_mb(self._pid))
            if self._over.wait(_MEMORY_SECONDS):
                return

    def stop(self) -> float | None:
        """Megabytes, None without a process."""
        self._over.set()
        self._thread.join()
        return None if self._pid is None else self._most


def _resident_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS:")), 0.0)


def _server_process(grpc_port: int) -> int | None:
    from mssts.serving.processes import servers

    return next(iter(servers("grpc", grpc_port)), None)


def _stage_ms(spent: dict[str, StageTime]) -> dict[str, float]:
    from mssts import contract
    from mssts.segmenters.triton.statistics import STAGE_MODELS

    count = spent[contract.ENSEMBLE].count
    if not count:
        return {}
    # `preprocess` counts refused clips too, which cost it next to nothing.
    stages = {stage: spent[model].compute_ns / 1e6 / count for stage, model in STAGE_MODELS.items()}
    queued = sum(spent[model].queue_ns for model in STAGE_MODELS.values()) / 1e6 / count
    return {**stages, "queue": queued, "server": spent[contract.ENSEMBLE].total_ns / 1e6 / count}


def _quantiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The 50th, 90th and 99th percentile."""
    if not values:
        return None, None, None
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[89], cuts[98]


def _numbers(option: str, text: str, whole: bool = False) -> list[float]:
    try:
        numbers = [float(int(part) if whole else float(part)) for part in text.split(",") if part]
    except ValueError:
        numbers = [0.0]
    if any(not 0 < number <= 10_000 for number in numbers):
        raise MsstsError(f"{option} {text}: expected {'whole numbers' if whole else 'numbers'} from 1 on, as 1,2,4")
    return numbers


def _clip(frames: int, height: int, width: int) -> np.ndarray:
    """Frames [T, H, W, 3] with soft shapes, so that JPEG and model have work."""
    import numpy as np

    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    clip_THWC = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        for channel, (cy, cx) in enumerate(((0.2, 0.2), (0.4, 0.6), (0.3, 0.8))):
            distance = np.hypot(y - cy, x - cx - 0.02 * t)
            clip_THWC[t, :, :, channel] = np.clip(90 + 400 * (0.15 - distance), 60, 250)
    return clip_THWC


def _print_row(row: Row) -> None:
    milliseconds = "".join("        -" if ms is None else f"{ms:9.1f}" for ms in (row.ms_p50, row.ms_p90, row.ms_p99))
    memory = "-" if row.server_rss_mb is None else f"{row.server_rss_mb:.0f}"
    name = row.mode if row.rate is None else f"{row.rate:g}/s"
    print(
        f"{name:8}{row.concurrency:8d}{row.clips_per_second:9.2f}{row.frames_per_second:10.1f}{milliseconds}"
        f"{row.errors:8d}{row.rejected:9d}{memory:>7}"
    )


def _plot(rows: Sequence[Row], path: Path) -> None:
    """Draws latency against clips per second, a line a mode."""
    figure, axes = pyplot().subplots(figsize=(7, 4.5))
    for mode in ("closed", "open"):
        drawn = [row for row in rows if row.mode == mode and row.ms_p50 is not None]
        for name, style in (("ms_p50", "o-"), ("ms_p99", "o--")):
            if drawn:
                x, y = [row.clips_per_second for row in drawn], [getattr(row, name) for row in drawn]
                axes.plot(x, y, style, label=f"{mode}, {name.removeprefix('ms_')}")
        for row in drawn:
            text = f"{row.concurrency}" if row.rate is None else f"{row.rate:g}/s"
            axes.annotate(text, (row.clips_per_second, row.ms_p50), textcoords="offset points", xytext=(4, 4))
    axes.set_xlabel("clips per second")
    axes.set_ylabel("latency, ms")
    axes.set_ylim(bottom=0)
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)
