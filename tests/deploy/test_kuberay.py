"""The files of `deploy/kuberay/`, by tools that read such files.

The schema of a RayJob comes with KubeRay. Here its pods are checked, which are Kubernetes' own.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from support.deployment import DEPLOY, ROOT, assert_silent, read_yaml, run
from support.tools import needs_tool, tool

from mssts.cli import parser

DOCKERFILE = DEPLOY / "kuberay" / "Dockerfile"


def documents() -> dict[str, dict[str, Any]]:
    """The documents by kind."""
    return {document["kind"]: document for document in read_yaml(DEPLOY / "kuberay" / "rayjob.yaml")}


def pods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The templates of the pods of head and workers."""
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    return {"head": cluster["headGroupSpec"]["template"], "worker": workers["template"]}


@needs_tool("kubernetes-validate")
def test_the_pods_and_the_rest_against_the_schemas_of_kubernetes(tmp_path: Path) -> None:
    found = documents()
    native = [document for kind, document in found.items() if kind != "RayJob"]
    for name, template in pods(found["RayJob"]).items():
        metadata = {**template["metadata"], "name": name}
        native.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    path = tmp_path / "native.yaml"
    path.write_text(yaml.safe_dump_all(native), encoding="utf-8")
    assert_silent(tool("kubernetes-validate"), "--strict", path)
    native[-1]["spec"]["containers"][0]["imagePolicy"] = "Always"  # the check does check
    path.write_text(yaml.safe_dump(native[-1]), encoding="utf-8")
    assert run(tool("kubernetes-validate"), "--strict", path).returncode == 1


@needs_tool("hadolint")
def test_hadolint_on_the_dockerfile() -> None:
    assert_silent(tool("hadolint"), "--failure-threshold", "style", DOCKERFILE)


def test_the_job_is_a_run_that_goes_on_where_the_last_one_was() -> None:
    found = documents()
    spec = found["RayJob"]["spec"]
    program, *arguments = shlex.split(spec["entrypoint"])
    options = parser().parse_args(arguments)
    assert (program, options.command, options.ray, options.resume) == ("mssts", "predict", "auto", True)
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    head, worker = pods(found["RayJob"]).values()
    (container,) = worker["spec"]["containers"]
    assert int(container["resources"]["limits"]["cpu"]) % options.threads == 0
    for template in (head, worker):
        (container,) = template["spec"]["containers"]
        assert container["image"] == "registry.example.com/mssts-bulk:1"
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == volumes.keys()
        claim = volumes[mounts["/data"]]["persistentVolumeClaim"]["claimName"]
        assert found["PersistentVolumeClaim"]["metadata"]["name"] == claim
    for path in (options.source, options.model, options.out):
        assert path.is_relative_to("/data"), "seen by all pods"
    assert found["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_cluster_is_closed_to_others() -> None:
    found = documents()
    assert found["RayJob"]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    policy = found["NetworkPolicy"]["spec"]
    chosen = policy["podSelector"]["matchLabels"]
    for template in pods(found["RayJob"]).values():
        assert chosen.items() <= template["metadata"]["labels"].items()
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        assert not template["spec"]["automountServiceAccountToken"]
    own, operator = policy["ingress"]
    assert own["from"] == [{"podSelector": {"matchLabels": chosen}}]
    assert operator["ports"] == [{"port": 8265}], "the dashboard, which the operator asks"


def test_versions_of_ray_are_the_tested_one() -> None:
    (pinned,) = re.findall(r"^ray==([\d.]+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert documents()["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == pinned
    assert f"rayproject/ray:{pinned}-" in DOCKERFILE.read_text(encoding="utf-8")
