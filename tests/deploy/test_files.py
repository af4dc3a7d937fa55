"""The files of `deploy/`, by tools that read such files, and against one another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.deployment import DEPLOY, ENTRYPOINT, ROOT, assert_silent, read_yaml, run, write_program
from support.plan import write_plan
from support.tools import needs_tool, tool
from support.toy_engine import write_toy_engine

from mssts import contract
from mssts.cli import parser
from mssts.contract import LIMITS

DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
KUBERNETES = DEPLOY / "kubernetes"
CUSTOM = {"PodMonitor", "PrometheusRule", "ScaledObject"}  # whose schemas come with their operators


# --- Docker ---------------------------------------------------------------------------------------------------------


@needs_tool("hadolint")
def test_hadolint_on_the_dockerfile() -> None:
    assert_silent(tool("hadolint"), "--failure-threshold", "style", DOCKERFILE)


@needs_tool("shellcheck")
def test_shellcheck_on_the_scripts() -> None:
    assert_silent(tool("shellcheck"), ENTRYPOINT, ROOT / ".ci" / "run")


def test_the_build_context_holds_what_the_dockerfile_needs() -> None:
    """The wheel, the plugins and the entry point are built from it."""
    ignored = (DOCKERFILE.with_name("Dockerfile.dockerignore")).read_text(encoding="utf-8").split("\n")
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert {path for path in let_in if not (ROOT / path).exists()} == set()
    tracked = run("git", "ls-files", cwd=ROOT)
    if tracked.returncode:
        pytest.skip("not a checkout of git")
    needed = ("mssts/", "training/", "export/", "bench/", "plugins/", "triton_repo/")
    missing = [
        name
        for name in tracked.stdout.splitlines()
        if name.startswith(needed) and not any(name == path or name.startswith(f"{path}/") for path in let_in)
    ]
    assert missing == []
    (readme,) = re.findall(r'^readme = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert {readme, "LICENSE", "setup.py", "constraints.txt"} <= let_in


def test_versions_in_the_dockerfile_are_the_tested_ones() -> None:
    pinned = dict(re.findall(r"^(\w+)==([\d.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
    used = dict(re.findall(r"\b(cmake|ninja)==([\d.]+)", DOCKERFILE.read_text(encoding="utf-8")))
    assert used == {name: pinned[name] for name in ("cmake", "ninja")}


# --- the entry point -------------------------------------------------------------------------------------------------


@pytest.fixture
def container(tmp_path: Path) -> dict[str, str]:
    """The environment of the entry point.

    Its programs write what they were called with. `mssts build-engine` copies a plan that is there; `mssts repo build`
    is the real one.
    """
    programs = tmp_path / "bin"
    write_program(programs / "tritonserver", f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/tritonserver.called\n')
    write_program(programs / "nvidia-smi", '#!/bin/sh\necho "NVIDIA H100 80GB HBM3, 9.0"\n')
    write_program(
        programs / "mssts",
        f"""#!/bin/sh
printf "%s\\n" "$*" >> {tmp_path}/mssts.called
[ "$1" = build-engine ] || exec {sys.executable} -m mssts.cli "$@"
while [ "$1" != --out ]; do shift; done
cp -r {tmp_path}/plan "$2"
""",
    )
    (tmp_path / "cache").mkdir()
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MSSTS_MODEL": str(tmp_path / "model"),
        "MSSTS_CACHE": str(tmp_path / "cache"),
        "MSSTS_REPOSITORY": str(tmp_path / "run" / "models"),
    }


def calls(tmp_path: Path, program: str) -> list[str]:
    return (tmp_path / f"{program}.called").read_text(encoding="utf-8").splitlines()


def test_the_entry_point_builds_a_plan_for_the_gpu(container: dict[str, str], tmp_path: Path) -> None:
    write_plan(tmp_path / "plan")
    container["MSSTS_PLAN_SHAPES"] = "--opt 1x5x64x112 --max 1x5x128x128"
    done = run(ENTRYPOINT, "--log-verbose=1", env=container)
    assert done.returncode == 0, done.stderr
    built, repository = (parser().parse_args(call.split()) for call in calls(tmp_path, "mssts"))
    assert (built.command, built.target, built.reuse) == ("build-engine", "tensorrt", True)
    assert built.model_dir == tmp_path / "model"
    assert (built.opt, built.max) == ("1x5x64x112", "1x5x128x128")
    assert built.out.parent == tmp_path / "cache" and built.out.name == "plan-NVIDIA-H100-80GB-HBM3-9.0"
    assert (repository.artefact, repository.target) == (built.out, "tensorrt")
    flags = calls(tmp_path, "tritonserver")
    assert f"--model-repository={tmp_path}/run/models" in flags and flags[-1] == "--log-verbose=1"
    assert "--allow-client-shm=false" in flags
    (closed,) = (flag for flag in flags if flag.startswith("--grpc-restricted-protocol="))
    assert re.fullmatch(r".*=model-repository,shared-memory,trace,logging:mssts=[0-9a-f]{32}", closed)


def test_the_entry_point_starts_again_without_a_gpu(container: dict[str, str], tmp_path: Path) -> None:
    write_toy_engine(tmp_path / "model")
    container |= {"MSSTS_TARGET": "python", "MSSTS_THREADS": "2", "MSSTS_MAX_QUEUE": "4"}
    for _ in range(2):  # the second finds the repository of the first
        done = run(ENTRYPOINT, env=container)
        assert done.returncode == 0, done.stderr
    *_, call = (parser().parse_args(call.split()) for call in calls(tmp_path, "mssts"))
    assert (call.command, call.target, call.threads, call.max_queue) == ("repo", "python", 2, 4)


def test_the_entry_point_ends_when_the_repository_cannot_be_made(container: dict[str, str], tmp_path: Path) -> None:
    container["MSSTS_TARGET"] = "python"
    done = run(ENTRYPOINT, env=container)
    assert done.returncode == 2 and "no such file or folder" in done.stderr
    assert not (tmp_path / "tritonserver.called").exists()


def test_the_entry_point_lets_no_more_clips_in_before_the_server_ends(
    container: dict[str, str], tmp_path: Path
) -> None:
    write_toy_engine(tmp_path / "model")
    write_program(
        tmp_path / "bin" / "tritonserver",
        f"""#!/bin/bash
trap 'basename $MSSTS_STOPPING_FILE; [ -e $MSSTS_STOPPING_FILE ] && echo closed; exit 7' TERM
[ -e $MSSTS_STOPPING_FILE ] || echo open
touch {tmp_path}/started
while true; do sleep 0.05; done
""",
    )
    container |= {"MSSTS_TARGET": "python", "MSSTS_WATCH": "0.2", "MSSTS_DRAIN": "0.3"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stopping").touch()  # of a start before this one
    process = subprocess.Popen([ENTRYPOINT], env=container, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    start = time.monotonic()
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 7 and time.monotonic() - start >= 0.3
    assert output.splitlines()[-3:] == ["open", "stopping", "closed"]


# --- compose ---------------------------------------------------------------------------------------------------------


@needs_tool("check-jsonschema")
def test_compose_against_its_schema(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"  # the check does check
    broken.write_text("services: {triton: {image: x, red_only: true}}")
    schema = ("--builtin-schema", "vendor.compose-spec")
    done = run(tool("check-jsonschema"), *schema, DEPLOY / "compose" / "compose.yaml", broken)
    assert done.returncode == 1 and "red_only" in done.stdout
    assert "compose.yaml::" not in done.stdout, done.stdout


def compose() -> dict[str, Any]:
    (document,) = read_yaml(DEPLOY / "compose" / "compose.yaml")
    return document


def test_compose_names_files_that_are_there() -> None:
    for service in compose()["services"].values():
        for volume in service["volumes"]:
            if volume.startswith("."):
                assert (DEPLOY / "compose" / volume.split(":")[0]).is_file(), volume
    build = compose()["services"]["triton"]["build"]
    context = (DEPLOY / "compose" / build["context"]).resolve()
    assert context == ROOT and (context / build["dockerfile"]) == DOCKERFILE


def test_nothing_of_compose_faces_the_network() -> None:
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]


def test_the_server_is_confined_everywhere() -> None:
    triton = compose()["services"]["triton"]
    assert triton["read_only"] and triton["user"] == "1000:1000"
    assert "USER 1000:1000" in DOCKERFILE.read_text(encoding="utf-8")
    (deployment,) = read_yaml(KUBERNETES / "deployment.yaml")
    (runtime,) = read_yaml(DEPLOY / "kserve" / "servingruntime.yaml")
    containers = [*deployment["spec"]["template"]["spec"]["containers"], *runtime["spec"]["containers"]]
    for container in containers:
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
    # Every folder that the entry point writes is a volume.
    written = {"/cache", "/run/mssts", "/tmp", "/dev/shm"}
    for container in containers:
        assert written <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {"/run/mssts", "/cache"} <= {volume.split(":")[-1] for volume in triton["volumes"]}
    # A clip of raw frames of the largest size fits into the shared memory.
    assert triton["shm_size"] == "1gb" and 3 * LIMITS.total_pixels < 2**30


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.y*ml")), ids=lambda path: path.name)
def test_probes_are_commands_of_ours(path: Path) -> None:
    """Each `mssts health` parses, and the entry point reads each variable."""
    text = path.read_text(encoding="utf-8")
    for arguments in re.findall(r"(?:command|test): \[(?:CMD, )?mssts, ([^\]]*)\]", text):
        parser().parse_args(arguments.split(", "))
    script = ENTRYPOINT.read_text(encoding="utf-8")
    assert {name for name in re.findall(r"\bMSSTS_[A-Z_]+", text) if f"${{{name}" not in script} == set()


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kustomized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What `kubectl apply -k` would send: the file, and its documents."""
    done = run(tool("kubectl"), "kustomize", KUBERNETES)
    assert done.returncode == 0, done.stderr
    path = tmp_path_factory.mktemp("kustomized") / "all.yaml"
    path.write_text(done.stdout, encoding="utf-8")
    return path, list(yaml.safe_load_all(done.stdout))


@needs_tool("kubectl", "kubernetes-validate")
def test_what_kustomize_makes_against_the_schemas_of_kubernetes(
    kustomized: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    native = [document for document in kustomized[1] if document["kind"] not in CUSTOM]
    assert {document["kind"] for document in kustomized[1]} - {document["kind"] for document in native} == CUSTOM
    path = tmp_path / "native.yaml"
    path.write_text(yaml.safe_dump_all(native), encoding="utf-8")
    assert_silent(tool("kubernetes-validate"), "--strict", path)
    (deployment,) = (document for document in native if document["kind"] == "Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}  # the check does check
    path.write_text(yaml.safe_dump(deployment), encoding="utf-8")
    assert run(tool("kubernetes-validate"), "--strict", path).returncode == 1


@needs_tool("kubectl")
def test_the_parts_of_kubernetes_find_one_another(kustomized: tuple[Path, list[dict[str, Any]]]) -> None:
    documents = {(document["kind"], document["metadata"]["name"]): document for document in kustomized[1]}
    assert {document["metadata"].get("namespace", "mssts") for document in documents.values()} == {"mssts"}
    name = "mssts-triton"
    pod = documents["Deployment", name]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry.example.com/mssts-triton:1"
    ports = {port["name"] for port in container["ports"]}
    selectors = [
        documents["Service", name]["spec"]["selector"],
        *(documents[kind, name]["spec"]["selector"]["matchLabels"] for kind in ("PodDisruptionBudget", "PodMonitor")),
        documents["NetworkPolicy", name]["spec"]["podSelector"]["matchLabels"],
        documents["Deployment", name]["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= pod["metadata"]["labels"].items() for selector in selectors)
    rules = documents["NetworkPolicy", name]["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == ports
    assert documents["Service", name]["spec"]["ports"][0]["targetPort"] in ports
    assert documents["PodMonitor", name]["spec"]["podMetricsEndpoints"][0]["port"] in ports
    claims = {volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"] if
              "persistentVolumeClaim" in volume}  # fmt: skip
    assert all(("PersistentVolumeClaim", claim) in documents for claim in claims)
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["spec"]["volumes"]
    }
    scaled = documents["ScaledObject", name]["spec"]
    assert ("Deployment", scaled["scaleTargetRef"]["name"]) in documents
    assert "replicas" not in documents["Deployment", name]["spec"]  # a change of the files would undo KEDA's
    # On the models that wait, and never on the ensemble.
    models = re.findall(r'model="(\w+)"', " ".join(trigger["metadata"]["query"] for trigger in scaled["triggers"]))
    assert models == ["engine", "preprocess"] and contract.ENSEMBLE not in models


def test_the_rules_are_the_same_for_compose_and_kubernetes() -> None:
    """To write them again: the groups of `rules.yml`, two spaces deeper."""
    (rules,) = read_yaml(DEPLOY / "monitoring" / "rules.yml")
    (resource,) = read_yaml(KUBERNETES / "prometheusrule.yaml")
    assert resource["spec"] == rules


def test_the_rules_know_the_job_by_the_names_that_it_has() -> None:
    (rules,) = read_yaml(DEPLOY / "monitoring" / "rules.yml")
    (pattern,) = {
        match
        for group in rules["groups"]
        for rule in group["rules"]
        for match in re.findall(r'job=~"(.+?)"', rule["expr"])
    }
    (monitor,) = read_yaml(KUBERNETES / "podmonitor.yaml")
    (config,) = read_yaml(DEPLOY / "compose" / "prometheus.yml")
    # The operator names a PodMonitor's job by its namespace and name.
    for job in (config["scrape_configs"][0]["job_name"], f"mssts/{monitor['metadata']['name']}"):
        assert re.fullmatch(pattern, job)
