"""Options that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.errors import MsstsError

if TYPE_CHECKING:
    from mssts.segmenters.triton import ClientOptions

_TLS = ("--tls-authority", "--tls-certificate", "--tls-key")


def add_exif(parser: argparse.ArgumentParser) -> None:
    """`--exif`, of every command that reads a data set's frames."""
    parser.add_argument(
        "--exif", choices=("apply", "ignore"),
        help="whether images are turned as their EXIF orientation says, or read as stored (default: apply; an image of "
        "a data set with masks that has one is refused until this is given)",
    )  # fmt: skip


def add_tls(parser: argparse.ArgumentParser) -> None:
    """The certificates of every command that takes `--url`."""
    for name, meaning in zip(
        _TLS,
        (
            "PEM file of the authority that signed a grpcs:// server's certificate (default: those of this system)",
            "PEM file of this client's own certificate, where the server asks for one",
            "PEM file of that certificate's private key",
        ),
        strict=True,
    ):
        parser.add_argument(name, type=Path, metavar="FILE", help=meaning)


def server_url(url: str) -> str:
    """The URL of `--url`, whose scheme is `grpc` if it has none."""
    return url if url.startswith(("grpc://", "grpcs://")) else f"grpc://{url}"


def client_options(arguments: argparse.Namespace, **others: Any) -> ClientOptions | None:
    """The client's options for `--url`, None where that was not given.

    Args:
        arguments: of a command with `add_tls`.
        others: fields of `ClientOptions`.

    Raises:
        MsstsError: certificates without `--url`, or half of a pair.
    """
    given = [arguments.tls_authority, arguments.tls_certificate, arguments.tls_key]
    if arguments.url is None:
        for name, value in zip(_TLS, given, strict=True):
            if value is not None:
                raise MsstsError(f"{name} is for a server; give its --url")
        return None
    from mssts.segmenters.triton import ClientOptions

    return ClientOptions(root_certificates=given[0], certificate=given[1], key=given[2], **others)
