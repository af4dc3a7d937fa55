"""A camera: GStreamer's RTSP server, with the pictures of a file.

Run by the system's Python, which has GStreamer's bindings and not this project:
`gst_camera.py PORT EPOCH FILE WIDTH HEIGHT RATE [USER PASSWORD]`. Prints a line when it listens.

At EPOCH + k/RATE seconds it takes picture k of FILE, plain RGB, and after the last the first again.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

PIPELINE = (
    "( appsrc name=camera is-live=true format=time caps=video/x-raw,format=RGB,width={width},height={height},"
    "framerate={rate}/1 ! videoconvert ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={rate} "
    "bitrate=2000 ! rtph264pay name=pay0 )"
)


class Camera:
    """Pushes pictures at their times, for as long as someone looks."""

    def __init__(self, source: Any, pictures: list[bytes], rate: int, epoch: float) -> None:
        self._source, self._pictures, self._rate, self._epoch = source, pictures, rate, epoch
        self._first = self._next = int((time.time() - epoch) * rate) + 1
        GLib.timeout_add(5, self._push)

    def _push(self) -> bool:
        while time.time() >= self._epoch + self._next / self._rate:
            buffer = Gst.Buffer.new_wrapped(self._pictures[self._next % len(self._pictures)])
            buffer.pts = (self._next - self._first) * Gst.SECOND // self._rate
            buffer.duration = Gst.SECOND // self._rate
            if self._source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                return False
            self._next += 1
        return True


def main() -> None:
    """Serves until it is killed."""
    port, epoch, file, width, height, rate, *account = sys.argv[1:]
    with open(file, "rb") as opened:
        data = opened.read()
    size = 3 * int(width) * int(height)
    pictures = [data[at : at + size] for at in range(0, len(data), size)]
    Gst.init(None)
    server = GstRtspServer.RTSPServer(service=port, address="127.0.0.1")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE.format(width=width, height=height, rate=rate))
    factory.set_shared(True)
    cameras = []

    def configure(_: Any, media: Any) -> None:
        source = media.get_element().get_by_name("camera")
        cameras.append(Camera(source, pictures, int(rate), float(epoch)))

    factory.connect("media-configure", configure)
    if account:
        auth = GstRtspServer.RTSPAuth()
        token = GstRtspServer.RTSPToken()
        token.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*account), token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        for permission in ("media.factory.access", "media.factory.construct"):
            permissions.add_permission_for_role("user", permission, True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/camera", factory)
    if not server.attach(None):
        sys.exit("cannot listen")
    print("listening", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
