"""A plan on disk that no TensorRT has built."""

from __future__ import annotations

from dataclasses import replace

from mssts.files import sha256
from mssts.manifest import Manifest
from support.contract_graph import OUR_NODE, write_export

OPTIONS = {"version_compatible": False, "hardware_compatible": "none", "compute_capabilities": []}


def write_plan(folder, options=None, **engine):
    """A plan of four kilobytes and a manifest as `mssts build-engine` writes them."""
    write_export(folder)
    plan = folder / "model.plan"
    plan.write_bytes(bytes(4096))
    built = {"target": "tensorrt", "tensorrt": "11.1.0", "gpu": {"name": "GPU A", "capability": "8.9"}, "bytes": 4096,
             "plugin_sha256": None, "options": {**OPTIONS, **(options or {})}, **engine}  # fmt: skip
    manifest = Manifest.read(folder)
    checks = {"network": {"plugins": [OUR_NODE, f"{OUR_NODE}_2"] if built["plugin_sha256"] else []}}
    replace(
        manifest, artefact=plan.name, artefact_sha256=sha256(plan), shape=None, checks=checks,
        provenance={"engine": built},
    ).write(folder)  # fmt: skip
    return plan
