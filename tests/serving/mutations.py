"""Broken requests, made of good ones."""

from __future__ import annotations

import json
import random
import struct
import zlib
from typing import Any

import numpy as np
from support.serving import clip_with_rectangles, encoded
from tritonclient.grpc import service_pb2

_INTEGERS = (0, 1, 2, 3, 4, 5, 64, 65, 8192, 10000, -1, -2, 2**31 - 1, 2**31, 2**32, 2**62, -(2**63))
_TYPES = ("UINT8", "BYTES", "FP32", "INT32", "INT64", "FP16", "BF16", "BOOL", "", "nonsense")
_NAMES = (
    "frames_raw",
    "frames_jpeg",
    "score_threshold",
    "frame_size",
    "frames",
    "",
    "x" * 300,
    "../../etc/passwd",
    "\u2603",
)
_MODELS = ("mssts_vis", "preprocess", "engine", "postprocess", "", "absent", "../engine")


class Mutations:
    """Requests of each kind, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._clip_THWC = clip_with_rectangles(2, 64, 96)
        self._jpegs = encoded(self._clip_THWC)
        self._pngs = encoded(self._clip_THWC, ".png")

    def good(self) -> service_pb2.ModelInferRequest:
        """A good request, raw or encoded."""
        request = service_pb2.ModelInferRequest(model_name="mssts_vis")
        if self.random.random() < 0.5:
            self._add(request, "frames_raw", "UINT8", self._clip_THWC.shape, self._clip_THWC.tobytes())
        else:
            frames = self.random.choice((self._jpegs, self._pngs))
            self._add(request, "frames_jpeg", "BYTES", [len(frames)], _byte_strings(frames))
        self._add(request, "score_threshold", "FP32", [1], struct.pack("<f", 0.1))
        return request

    def largest(self) -> list[bytes]:
        """Good clips of the largest and of the most frames: their memory is no leak."""
        large, many = (service_pb2.ModelInferRequest(model_name="mssts_vis") for _ in range(2))
        frames = encoded(np.full((2, 2160, 3840, 3), 90, np.uint8))
        self._add(large, "frames_jpeg", "BYTES", [len(frames)], _byte_strings(frames))
        self._add(many, "frames_raw", "UINT8", (64, 8, 8, 3), bytes(64 * 8 * 8 * 3))  # the engine's are larger
        return [large.SerializeToString(), many.SerializeToString()]

    def protobuf(self) -> bytes:
        """A good message with bytes changed, left out, repeated or put in."""
        return self._damaged(self.good().SerializeToString())

    def tensors(self) -> bytes:
        """A message whose tensors lie: names, types, shapes, lengths."""
        request = self.good()
        for _ in range(self.random.randint(1, 3)):
            tensor = self.random.choice(request.inputs)
            match self.random.randrange(8):
                case 0:
                    tensor.datatype = self.random.choice(_TYPES)
                case 1:
                    tensor.name = self.random.choice(_NAMES)
                case 2:
                    del tensor.shape[:]
                    tensor.shape.extend(self.random.choices(_INTEGERS, k=self.random.randint(0, 6)))
                case 3 if tensor.shape:
                    tensor.shape[self.random.randrange(len(tensor.shape))] = self.random.choice(_INTEGERS)
                case 4:
                    at = self.random.randrange(len(request.raw_input_contents))
                    raw = request.raw_input_contents[at]
                    request.raw_input_contents[at] = self.random.choice((b"", raw[:-1], raw + b"\0", raw * 2, raw[:7]))
                case 5:
                    request.inputs.add().CopyFrom(tensor)
                case 6:
                    tensor.contents.uint_contents.extend([1, 2, 3])
                case _ if len(request.raw_input_contents) > 1:
                    request.raw_input_contents.pop()
        return request.SerializeToString()

    def options(self) -> bytes:
        """A good clip with strange model, version, outputs, parameters, shared memory."""
        request = self.good()
        match self.random.randrange(7):
            case 0:
                request.model_name = self.random.choice(_MODELS)
            case 1:
                request.model_version = self.random.choice(("1", "2", "-1", "999999999999999999999", "x"))
            case 2:
                request.outputs.add().name = self.random.choice((*_NAMES, "scores", "mask_rles"))
            case 3:
                request.parameters[
                    self.random.choice(("timeout", "priority", "sequence_id"))
                ].int64_param = self.random.choice(_INTEGERS[:-1])
            case 4:
                request.parameters["sequence_start"].bool_param = True
                request.parameters["triton_enable_empty_final_response"].bool_param = True
            case 5:
                tensor = request.inputs[0].parameters
                tensor["shared_memory_region"].string_param = self.random.choice(("region", "/dev/shm/x", ""))
                tensor["shared_memory_byte_size"].int64_param = self.random.choice(_INTEGERS)
                tensor["shared_memory_offset"].int64_param = self.random.choice(_INTEGERS)
            case _:
                request.id = self.random.choice(("mssts-canary", "x" * 100_000, "\u2603\n"))
        return request.SerializeToString()

    def images(self) -> bytes:
        """Encoded frames that are damaged, differ in size, are enormous or too many."""
        frames = list(self.random.choice((self._jpegs, self._pngs)))
        at = self.random.randrange(len(frames))
        match self.random.randrange(9):
            case 0 | 1 | 2:
                frames[at] = self._damaged(frames[at])
            case 3:
                frames[at] = _jpeg_of_size(
                    self._jpegs[0], *self.random.choice(((10000, 10000), (65500, 65500), (0, 5)))
                )
            case 4:
                frames[at] = _png_bomb(*self.random.choice(((10000, 10000), (2**31 - 1, 2**31 - 1), (64, 96))))
            case 5:
                frames = frames[:1] * self.random.choice((0, 64, 65, 1000))
            case 6:
                frames[at] = self.random.choice((b"", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n", bytes(100_000)))
            case 7:
                frames[at] = (
                    frames[at][:-2] + self._jpegs[0][self._jpegs[0].rfind(b"\xff\xda") : -2] * 200 + b"\xff\xd9"
                )
            case _:
                frames.append(encoded(clip_with_rectangles(1, 32, 32))[0])
        request = service_pb2.ModelInferRequest(model_name="mssts_vis")
        raw = _byte_strings(frames)
        if self.random.random() < 0.1:  # a length that points beyond the end, or back
            raw = struct.pack("<I", self.random.choice((2**32 - 1, 2**31, len(raw), 0))) + raw[4:]
        self._add(request, "frames_jpeg", "BYTES", [len(frames)], raw)
        return request.SerializeToString()

    def pixels(self) -> bytes:
        """Raw frames of odd sizes, and thresholds that are no numbers."""
        shape = self.random.choice(
            ((1, 1, 1, 3), (1, 1, 4000, 3), (64, 8, 8, 3), (65, 8, 8, 3), (0, 8, 8, 3), (1, 0, 8, 3), (2, 7, 9, 3),
             (1, 10000, 10000, 3))
        )  # fmt: skip
        pixels = int(np.prod(shape))
        request = service_pb2.ModelInferRequest(model_name="mssts_vis")
        self._add(request, "frames_raw", "UINT8", shape, self.random.randbytes(pixels if pixels < 10**6 else 1000))
        if self.random.random() < 0.3:
            size = struct.pack("<ii", *self.random.choices((0, 1, 8, -1, 720, 10000, 2**31 - 1), k=2))
            self._add(request, "frame_size", "INT32", [2], size)
        threshold = self.random.choice((float("nan"), float("inf"), float("-inf"), -1.0, 2.0, 1e-45))
        self._add(request, "score_threshold", "FP32", [1], struct.pack("<f", threshold))
        return request.SerializeToString()

    def http(self) -> bytes:
        """A whole HTTP request with a damaged JSON header, wrong lengths, or garbage."""
        header: dict[str, Any] = {
            "inputs": [
                {
                    "name": "frames_raw",
                    "shape": [1, 8, 8, 3],
                    "datatype": "UINT8",
                    "parameters": {"binary_data_size": 192},
                }
            ]
        }
        tensor = header["inputs"][0]
        binary = bytes(192)
        extra: dict[str, Any] = {}
        match self.random.randrange(8):
            case 0:
                tensor["shape"] = self.random.choices([*_INTEGERS, "1", None, 1.5], k=4)
            case 1:
                tensor["parameters"]["binary_data_size"] = self.random.choice([*_INTEGERS, "192", None])
            case 2:
                del tensor["parameters"]
                tensor["data"] = self.random.choice(([], [1] * 192, ["a"] * 192, [[[]]], "x", None, [1e400], {}))
            case 3:
                extra["Inference-Header-Content-Length"] = self.random.choice((-1, 0, 1, 2**31, 2**63, "x"))
            case 4:
                header = self.random.choice(([], "x", {"inputs": 5}, {"inputs": [5]}, {}, {"id": 5, "inputs": []}))  # type: ignore[assignment]
            case 5:
                extra["Content-Encoding"] = self.random.choice(("gzip", "deflate", "br"))
            case 6:
                tensor["datatype"] = self.random.choice(_TYPES)
            case _:
                header["outputs"] = self.random.choice(([{"name": "scores"}], [{"name": 5}], 5, [[]]))
        text = json.dumps(header).encode()
        if self.random.random() < 0.3:
            text = self._damaged(text)
        body = text + binary
        lines = {
            "Host": "x",
            "Content-Length": len(body),
            "Inference-Header-Content-Length": len(text),
            "Connection": "close",
            **extra,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        path = f"/v2/models/{self.random.choice((*['mssts_vis'] * 8, 'engine', 'absent', '%00', 'x' * 3000))}/infer"
        request = f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body
        return self._damaged(request) if self.random.random() < 0.1 else request

    def _damaged(self, data: bytes) -> bytes:
        changed = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 8))):
            # Half of the damage at the start, where headers are.
            end = min(len(changed), 64) if self.random.random() < 0.5 else len(changed)
            at = self.random.randrange(max(end, 1))
            match self.random.randrange(5):
                case 0 | 1 if changed:
                    changed[min(at, len(changed) - 1)] = self.random.randrange(256)
                case 2:
                    del changed[at : at + self.random.choice((1, 2, 50))]
                case 3:
                    changed[at:at] = self.random.randbytes(self.random.choice((1, 4, 100)))
                case _ if self.random.random() < 0.3:
                    del changed[at:]
        return bytes(changed)

    @staticmethod
    def _add(request: Any, name: str, datatype: str, shape: Any, raw: bytes) -> None:
        tensor = request.inputs.add()
        tensor.name, tensor.datatype = name, datatype
        tensor.shape.extend(shape)
        request.raw_input_contents.append(raw)


def _byte_strings(frames: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(frame)) + frame for frame in frames)


def _jpeg_of_size(jpeg: bytes, height: int, width: int) -> bytes:
    """The same JPEG whose header states another size."""
    at = jpeg.find(b"\xff\xc0")
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def _png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that states a size, with zeros for pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height * (3 * width + 1), 1_000_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
