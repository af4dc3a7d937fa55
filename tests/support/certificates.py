"""Certificates of two authorities, made by openssl, and client options with them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mssts.segmenters.triton import ClientOptions

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def write_certificates(folder: Path) -> Path:
    """Fills a folder with two authorities, and certificates of the first."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ca", "other"):
        openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
            "-keyout", f"{authority}.key", "-out", f"{authority}.crt",
        )  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
            "-out", f"{name}.csr",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", "2", "-extfile", "names", "-out", f"{name}.crt",
        )  # fmt: skip
    return folder


def options_with(
    certificates: Path, authority: str = "ca", client: str | None = "client", in_flight: int | None = None
) -> ClientOptions:
    """Options with the certificate of an authority, and that of a client."""
    return ClientOptions(
        in_flight=in_flight,
        root_certificates=certificates / f"{authority}.crt",
        certificate=certificates / f"{client}.crt" if client else None,
        key=certificates / f"{client}.key" if client else None,
    )
