"""Servers' URLs, and the gRPC channels to them."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mssts.errors import MsstsError
from mssts.segmenters.triton.options import ClientOptions

_URL = re.compile(r"(?:(grpcs?)://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})/?")


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        name: host:port, as gRPC takes it.
        is_loopback: whether it is this machine.
        is_encrypted: whether it speaks TLS.
    """

    name: str
    is_loopback: bool
    is_encrypted: bool

    def __str__(self) -> str:
        return self.name

    def channel_arguments(self, options: ClientOptions) -> dict[str, Any]:
        """The arguments of tritonclient's `InferenceServerClient`, sync or not.

        Raises:
            MsstsError: a certificate's file is not there.
        """
        channel: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # We decide when to try again; gRPC's own pauses grow to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 2000),
            ("grpc.max_reconnect_backoff_ms", 500),
            # A server may compute for long without a word, so any number of pings is sent while it has clips.
            ("grpc.keepalive_time_ms", round(1000 * options.keepalive)),
            ("grpc.keepalive_timeout_ms", round(1000 * options.keepalive)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.ping_timeout_ms", round(1000 * options.keepalive)),  # 60 s would go before keepalive's own
        ]
        if self.is_loopback:  # gRPC would send even these to the proxy of the environment
            channel.append(("grpc.enable_http_proxy", 0))
        arguments: dict[str, Any] = {"url": self.name, "channel_args": channel, "ssl": self.is_encrypted}
        for name, path in (
            ("root_certificates", options.root_certificates),
            ("certificate_chain", options.certificate),
            ("private_key", options.key),
        ):
            if path is None:
                continue
            if not self.is_encrypted:
                raise MsstsError(f"{self.name}: certificates are for TLS; write grpcs://{self.name}")
            if not Path(path).is_file():
                raise MsstsError(f"{path}: no such file; expected a PEM file for TLS")
            arguments[name] = str(path)
        return arguments


def parse_urls(urls: str) -> list[Address]:
    """The servers of a URL: `grpc://host:port`, `grpcs://…`, or several with commas.

    The scheme of the first holds for those without one.

    Raises:
        MsstsError: a URL is not of that form, or a server is named twice.
    """
    scheme = "grpc"
    addresses: list[Address] = []
    for url in urls.split(","):
        match = _URL.fullmatch(url.strip())
        if match is None:
            raise MsstsError(f"{url}: not a server's URL; expected grpc://host:port")
        scheme = match[1] or scheme
        address = Address(f"{match[2]}:{match[3]}", _is_loopback(match[2].strip("[]")), scheme == "grpcs")
        if address in addresses:
            raise MsstsError(f"{urls}: names {address} twice; name each server once")
        addresses.append(address)
    return addresses


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
