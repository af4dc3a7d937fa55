"""A server as the container starts it: clips, metrics, Prometheus, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.deployment import DEPLOY, Entrypoint, Ports, answer_of, free_ports, read_yaml
from support.serving import assert_same, clip_with_rectangles, needs_server
from support.tools import needs_tool, tool

from mssts.errors import MsstsError
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import ClientOptions, TritonSegmenter

RULES = DEPLOY / "monitoring" / "rules.yml"
DASHBOARD = DEPLOY / "monitoring" / "dashboard.json"
# What Prometheus makes itself.
ITS_OWN = {"up", "ALERTS"}
METRIC = re.compile(r"\b(?:nv_|mssts_|mssts:)[a-z_:0-9]+\b|\bup\b|\bALERTS\b")


def rules() -> list[dict[str, Any]]:
    (document,) = read_yaml(RULES)
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


def expressions() -> list[str]:
    """Every expression of the rules, the dashboard and the scaling."""
    (scaled,) = read_yaml(DEPLOY / "kubernetes" / "scaledobject.yaml")
    return [
        *(rule["expr"] for rule in rules()),
        *(target["expr"] for panel in panels() for target in panel["targets"]),
        *(trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]),
    ]


@pytest.fixture(scope="session")
def prometheus(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Prometheus with the rules and configuration of compose.

    It looks twice a second. It takes five seconds until it reads a server, so it starts before that.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    (config,) = read_yaml(DEPLOY / "compose" / "prometheus.yml")
    config["rule_files"] = [str(RULES)]
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    (job,) = config["scrape_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{ports.metrics}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [tool("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=(folder / "log").open("w"),
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while True:
            try:
                answer_of(f"{url}/-/ready")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """The samples of an expression."""
    answer = json.loads(answer_of(f"{prometheus}/api/v1/query?query={urllib.parse.quote(expression)}"))
    assert answer["status"] == "success", answer
    return answer["data"]["result"]


def wait_for(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """The samples of an expression as soon as it has some."""
    deadline = time.monotonic() + 30
    while not (samples := ask(prometheus, expression)):
        assert time.monotonic() < deadline, expression
        time.sleep(0.2)
    return samples


@needs_server
@needs_tool("prometheus")
def test_a_real_prometheus_scrapes_it_and_evaluates_the_rules(prometheus: str, entrypoint: Entrypoint) -> None:
    wait_for(prometheus, "mssts:clips_answered:rate1m")
    wait_for(prometheus, "mssts:clips_waiting")
    assert [sample["value"][1] for sample in ask(prometheus, 'up{job="mssts-triton"}')] == ["1"]
    state = json.loads(answer_of(f"{prometheus}/api/v1/rules"))["data"]["groups"]
    found = {rule["name"]: rule for group in state for rule in group["rules"]}
    assert set(found) == {rule.get("record") or rule["alert"] for rule in rules()}
    assert {name: rule["lastError"] for name, rule in found.items() if rule.get("lastError")} == {}
    for expression in expressions():
        ask(prometheus, expression)
    assert ask(prometheus, "mssts:clips_refused:rate1m")[0]["value"][1] == "0"


@needs_server
def test_clips_are_answered_as_by_the_local_pipeline(entrypoint: Entrypoint) -> None:
    clip_THWC = clip_with_rectangles()
    with TritonSegmenter(f"grpc://127.0.0.1:{entrypoint.grpc}") as client:
        found = [client.segment(clip_THWC) for _ in range(4)]
    local = LocalSegmenter(entrypoint.engine, threads=1)
    for instances in found:
        assert_same(instances, local.segment(clip_THWC))
    local.close()


@needs_server
@needs_tool("promtool")
def test_promtool_reads_the_metrics(entrypoint: Entrypoint) -> None:
    page = entrypoint.metrics_page
    done = subprocess.run(
        [tool("promtool"), "check", "metrics"], input=page, capture_output=True, text=True, check=False
    )
    # 3: it dislikes names, which are Triton's. 1: it cannot read the page.
    assert done.returncode in (0, 3), done.stderr
    assert "mssts_clips_refused_full" in page and "error while linting" not in done.stderr


@needs_server
def test_every_metric_that_is_named_is_there(entrypoint: Entrypoint) -> None:
    names = set(re.findall(r"^([a-z_0-9]+)[{ ]", entrypoint.metrics_page, re.M))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    without_values = (re.sub(r'".*?"', "", expression) for expression in expressions())
    named = {name for expression in without_values for name in METRIC.findall(expression)}
    assert len(named & names) > 8
    assert named - names - recorded - ITS_OWN == set()
    # So are those of the page on serving.
    page = (DEPLOY.parent / "docs" / "serving.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(nv_\w+|mssts_clips\w+)", page)) <= names


@needs_server
@needs_tool("prometheus")
def test_when_a_model_dies_the_alert_fires_and_the_server_ends(entrypoint: Entrypoint, prometheus: str) -> None:
    """The server is gone afterwards.

    Docker starts a container again that has ended, not one that is unhealthy.
    """
    engine = entrypoint.stub("engine")
    os.kill(engine, signal.SIGKILL)
    options = ClientOptions(timeout=1.5, reconnect=0)
    with TritonSegmenter(f"grpc://127.0.0.1:{entrypoint.grpc}", options) as client, pytest.raises(MsstsError):
        client.segment(clip_with_rectangles())
    # Three probes that fail.
    assert entrypoint.process.wait(timeout=30) == 128 + signal.SIGKILL
    log = (entrypoint.engine.parent / "log").read_text(encoding="utf-8")
    assert log.count(f"mssts health: the process of a model (pid {engine}) was killed") >= 3, log[-2000:]
    assert "the server is killed, as three probes failed" in log
    wait_for(prometheus, 'up{job="mssts-triton"} == 0')
    (alert,) = wait_for(prometheus, 'ALERTS{alertname="MsstsModelDead", alertstate="firing"}')
    assert alert["metric"]["model"] == "engine"


def test_each_alert_is_in_the_page_and_has_a_text() -> None:
    for rule in rules():
        if "alert" in rule:
            assert set(rule["annotations"]) == {"summary", "description"}
            assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_dashboard_has_the_data_source_that_is_provisioned() -> None:
    (source,) = read_yaml(DEPLOY / "compose" / "grafana" / "datasource.yml")
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["datasources"][0]["uid"]}
    assert len({panel["id"] for panel in panels()}) == len(panels())
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels()]
    assert len(set(places)) == len(places)


@needs_tool("promtool")
@pytest.mark.parametrize(
    "arguments",
    [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]],
    ids=["check rules", "test rules"],
)
def test_promtool_on_the_rules(arguments: list[str]) -> None:
    done = subprocess.run([tool("promtool"), *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_is_tested() -> None:
    text = (RULES.parent / "rules_test.yml").read_text(encoding="utf-8")
    assert [rule for rule in rules() if (rule.get("record") or rule["alert"]) not in text] == []


@needs_tool("promtool")
def test_promtool_on_the_expressions_of_dashboard_and_scaling(tmp_path: Path) -> None:
    records = [{"record": f"x{i}", "expr": expression} for i, expression in enumerate(expressions())]
    (tmp_path / "all.yml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": records}]}))
    done = subprocess.run(
        [tool("promtool"), "check", "rules", str(tmp_path / "all.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_tool("promtool")
def test_promtool_on_the_configuration(tmp_path: Path) -> None:
    (config,) = read_yaml(DEPLOY / "compose" / "prometheus.yml")
    assert [Path(name).name for name in config["rule_files"]] == [RULES.name]
    config["rule_files"] = [str(RULES)]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
