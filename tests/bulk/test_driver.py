"""The driver of bulk prediction, on machines in memory."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter

import pytest
from support.fake_cluster import FakeCluster, items

from mssts.bulk.driver import Driver
from mssts.bulk.options import BulkOptions
from mssts.errors import MsstsError


def drive(cluster: FakeCluster, lengths: list[float], options: BulkOptions | None = None) -> tuple[Driver, list[int]]:
    """The driver after its run, and the indices of the videos that are done."""
    frames: list[int | None] = []
    driver = Driver(
        cluster,
        items(lengths),
        range(len(lengths)),
        options or BulkOptions(),
        on_video=frames.append,
        clock=cluster.clock,
    )
    driver.run()
    done = [index for index in range(len(lengths)) if index not in driver.failures]
    assert len(frames) == len(lengths), "each video is reported once"
    assert frames.count(None) == len(driver.failures)
    assert not any(worker.alive for worker in cluster.started), "workers are ended"
    return driver, done


def test_longest_first_on_all_machines() -> None:
    cluster = FakeCluster({"a": 2, "b": 1})
    driver, done = drive(cluster, [3, 5, 1, 4, 2])
    assert done == [0, 1, 2, 3, 4]
    assert cluster.given[:3] == [1, 3, 0]
    assert Counter(worker.node for worker in cluster.started) == {"a": 2, "b": 1}
    assert sum(record.videos for record in driver.records) == 5
    assert sum(record.frames for record in driver.records) == 50
    assert sum(record.busy_seconds for record in driver.records) == pytest.approx(15)


def test_no_more_workers_than_videos_or_asked_for() -> None:
    cluster = FakeCluster({"a": 8, "b": 8})
    drive(cluster, [1, 1, 1])
    assert Counter(worker.node for worker in cluster.started) == {"a": 2, "b": 1}, "spread over the machines"
    cluster = FakeCluster({"a": 8, "b": 8})
    drive(cluster, [1] * 20, BulkOptions(workers=4))
    assert len(cluster.started) == 4


def test_a_lost_worker_costs_one_try_of_one_video() -> None:
    cluster = FakeCluster({"a": 2}, kills=Counter({1: 1}))
    driver, done = drive(cluster, [3, 9, 3, 3])
    assert done == [0, 1, 2, 3] and driver.retries == 1
    assert cluster.given[-1] == 1, "tried again when all others were done"
    assert [record.lost for record in driver.records if record.lost] == ["its process died"]


def test_a_video_that_kills_its_worker_each_time_is_given_up() -> None:
    cluster = FakeCluster({"a": 2}, kills=Counter({1: 99}))
    driver, done = drive(cluster, [3, 9, 3, 3])
    assert done == [0, 2, 3]
    assert driver.failures[1].attempts == 3 and "its process died" in driver.failures[1].reason
    assert Counter(cluster.given) == {0: 1, 1: 3, 2: 1, 3: 1}


def test_a_broken_video_is_not_tried_again() -> None:
    cluster = FakeCluster({"a": 1}, broken={0: "x.mp4: a corrupt video"})
    driver, done = drive(cluster, [1, 1])
    assert done == [1] and cluster.given.count(0) == 1
    assert (driver.failures[0].reason, driver.failures[0].attempts) == ("x.mp4: a corrupt video", 1)
    assert len(cluster.started) == 1, "its worker goes on"


def test_an_endless_video_is_ended_and_its_worker_replaced() -> None:
    cluster = FakeCluster({"a": 1})
    driver, done = drive(cluster, [1e9, 5, 5], BulkOptions(video_timeout=30))
    assert done == [1, 2] and "30 seconds" in driver.failures[0].reason
    assert cluster.given.count(0) == 1 and len(cluster.started) == 2
    assert cluster.now < 60


def test_a_lost_machine_takes_no_video_along() -> None:
    cluster = FakeCluster({"a": 2, "b": 2}, dies={"b": 12.0})
    driver, done = drive(cluster, [5.0] * 12)
    assert done == list(range(12)) and driver.retries == 2
    assert {record.node for record in driver.records if record.lost} == {"b"}


def test_a_machine_that_joins_is_used() -> None:
    cluster = FakeCluster({"a": 1, "late": 1}, joins={"late": 20.0})
    driver, done = drive(cluster, [5.0] * 12)
    assert done == list(range(12))
    assert next(record for record in driver.records if record.node == "late").videos >= 3


def test_a_machine_that_cannot_load_the_engine_is_left_out() -> None:
    cluster = FakeCluster({"a": 1, "b": 3}, unable={"b": "no CUDA there"})
    driver, done = drive(cluster, [5.0] * 6)
    assert done == list(range(6)) and driver.left_out == {"b": ("b", "no CUDA there")}
    assert sum(worker.node == "b" for worker in cluster.started) == 3, "not tried again"


def test_no_machine_can_load_the_engine() -> None:
    cluster = FakeCluster({"a": 1, "b": 1}, unable={"a": "no engine", "b": "no engine"})
    with pytest.raises(MsstsError, match=r"no machine can work: a: no engine .*1 more"):
        drive(cluster, [5.0] * 6)


def test_a_machine_whose_workers_die_as_they_start_is_left_out() -> None:
    class Dying(FakeCluster):
        def result(self, reference: int) -> object:
            worker, _ = self._answers[reference]
            if worker.node == "b":
                self._answers[reference] = (worker, RuntimeError("illegal instruction\nsecond line"))
            return super().result(reference)

    cluster = Dying({"a": 1, "b": 1})
    driver, done = drive(cluster, [5.0] * 6)
    assert done == list(range(6))
    assert "illegal instruction" in driver.left_out["b"][1] and "second" not in driver.left_out["b"][1]
    assert sum(worker.node == "b" for worker in cluster.started) == 3


def test_a_full_disk_ends_the_run() -> None:
    cluster = FakeCluster({"a": 1}, full_after=2)
    with pytest.raises(MsstsError, match=r"the disk is full\. .*--resume"):
        drive(cluster, [1.0] * 50)
    assert len(cluster.given) == 3


def test_no_machine_is_left() -> None:
    cluster = FakeCluster({"a": 1}, dies={"a": 10.0})
    with pytest.raises(MsstsError, match=r"all are gone.*--resume"):
        drive(cluster, [4.0] * 6)
    assert 600 < cluster.now < 700, "it waits for one to come back"


class Forgetful(list[int]):
    """A list that holds nothing: what the fake remembers is no memory of the driver."""

    def append(self, value: int) -> None:
        pass


def cost(workers: int, videos: int) -> tuple[float, float]:
    """Seconds and bytes (at the peak) that the driver spends on each video."""
    listed = items([20.0 + n % 37 for n in range(videos)])
    results: Counter[bool] = Counter()

    def run() -> Driver:
        cluster = FakeCluster(
            {f"machine{n}": 10 for n in range(workers // 10)}, kills=Counter({5: 99, 77: 1}), given=Forgetful()
        )

        def count(frames: int | None) -> None:
            results[frames is None] += 1

        driver = Driver(
            cluster, listed, range(videos), BulkOptions(video_timeout=600), on_video=count, clock=cluster.clock
        )
        driver.run()
        return driver

    begun = time.process_time()
    driver = run()
    seconds = time.process_time() - begun
    assert results == {False: videos - 1, True: 1} and list(driver.failures) == [5]
    assert sum(record.videos for record in driver.records) == videos - 1
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return seconds / videos, peak / videos


@pytest.mark.parametrize(
    ("workers", "videos"),
    [(50, 3000), pytest.param(1000, 100_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])],
)
def test_what_a_video_costs_the_driver_does_not_grow(workers: int, videos: int) -> None:
    few, many = cost(workers, videos // 10), cost(workers, videos)
    print(
        f"\n{workers} workers, {videos // 10} and {videos} videos: {few[0] * 1e6:.0f} and {many[0] * 1e6:.0f} µs, "
        f"{few[1]:.0f} and {many[1]:.0f} bytes a video"
    )
    assert many[0] < 2 * few[0]
    assert many[1] < 1.2 * few[1]
