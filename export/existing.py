"""Reuse of an artefact that would be made again unchanged.

One rule for `mssts export`, `quantize` and `build-engine`: they make what they are asked for, and with `--reuse` they
keep what `--out` holds if it was made from the same input by this code with the same options, its files are unchanged,
and, with `--data`, it was scored on these very data within the bound.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import mssts
from mssts.artefact import unchanged
from mssts.export.average_precision import ApGate
from mssts.export.options import ExportOptions
from mssts.files import sha256
from mssts.manifest import Manifest
from mssts.model.config import preset

# What decides an export besides the checkpoint: the source of these packages.
_SOURCES = ("model", "ops", "contract.py", "export")


def source_sha256() -> str:
    """A hash of the source code that an export depends on."""
    root = Path(mssts.__file__).parent
    digest = hashlib.sha256()
    for source in _SOURCES:
        path = root / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def existing_export(
    checkpoint: Path, out: Path, options: ExportOptions | None = None, gate: ApGate | None = None
) -> Manifest | None:
    """The manifest in `out` if this export would be the same again, else None.

    It must be an unchanged export of this checkpoint, by this code, with these options. Where there is a gate, it must
    have been scored on its data and pass."""
    found = unchanged(out)
    if found is None or found.manifest is None or not checkpoint.is_file():
        return None
    manifest = found.manifest
    same = (
        manifest.provenance.get("checkpoint_sha256") == sha256(checkpoint)
        and manifest.provenance.get("source_sha256") == source_sha256()
        and _same_options(manifest, options or ExportOptions())
        and (gate is None or gate.has_measured(manifest.checks))
    )
    return manifest if same else None


def _same_options(manifest: Manifest, options: ExportOptions) -> bool:
    """Whether the export was made with these options."""
    asked, made = options.to_json(), dict(manifest.provenance.get("options", {}))
    if asked["top_k"] is None:
        asked["top_k"] = preset(manifest.preset).top_k
    made["top_k"] = manifest.top_k
    return asked == made
