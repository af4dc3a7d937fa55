"""A camera: an RTSP server whose pictures tell when they were taken.

Run by the system's Python, which has GStreamer's bindings: `rtsp_server.py PORT EPOCH [USER PASSWORD]`. Prints a line
when it listens.

At EPOCH + k/12 seconds it takes picture k: a red square that is always there, and a blue bar of 4 · (1 + k mod 24)
pixels.
"""

import sys
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

WIDTH, HEIGHT, RATE, PERIOD, STEP = 160, 96, 12, 24, 4
PIPELINE = (
    f"( appsrc name=camera is-live=true format=time caps=video/x-raw,format=RGB,width={WIDTH},height={HEIGHT},"
    f"framerate={RATE}/1 ! videoconvert ! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={RATE} "
    "bitrate=2000 ! rtph264pay name=pay0 )"
)


def picture(k: int) -> bytes:
    rows = []
    for y in range(HEIGHT):
        row = bytearray(b"\x3c\x3c\x3c" * WIDTH)
        if 16 <= y < 48:
            row[3 * 64 : 3 * 96] = b"\xff\x00\x00" * 32
        if 64 <= y < 80:
            bar = STEP * (1 + k % PERIOD)
            row[: 3 * bar] = b"\x00\x00\xff" * bar
        rows.append(bytes(row))
    return b"".join(rows)


class Camera:
    """Pushes pictures at their times, for as long as someone looks."""

    def __init__(self, source: Gst.Element, epoch: float) -> None:
        self._source = source
        self._epoch = epoch
        self._first = self._next = int((time.time() - epoch) * RATE) + 1
        GLib.timeout_add(5, self._push)

    def _push(self) -> bool:
        while time.time() >= self._epoch + self._next / RATE:
            buffer = Gst.Buffer.new_wrapped(picture(self._next))
            buffer.pts = (self._next - self._first) * Gst.SECOND // RATE
            buffer.duration = Gst.SECOND // RATE
            if self._source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                return False
            self._next += 1
        return True


def main() -> None:
    port, epoch, *account = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer(service=port, address="127.0.0.1")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE)
    factory.set_shared(True)
    cameras = []

    def configure(_: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
        cameras.append(Camera(media.get_element().get_by_name("camera"), float(epoch)))

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
