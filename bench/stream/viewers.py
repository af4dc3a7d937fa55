"""Viewers of a stream's page, in a process of their own.

`python -m mssts.bench.stream.viewers URL N` reads the page's pictures and its state as N browsers do. It prints a line
when all of them watch, and when the page has ended, how many pictures each got.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys

from mssts.errors import MsstsError

_STATE_SECONDS = 0.5
_END_SECONDS = 20


class Viewers:
    """So many viewers of one page after the other."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._process: subprocess.Popen[str] | None = None

    def start(self, address: str) -> None:
        """Lets them watch, and waits until all do.

        Raises:
            MsstsError: they cannot.
        """
        program = [sys.executable, "-m", "mssts.bench.stream.viewers", address, str(self._count)]
        self._process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "watching\n":
            self._process.kill()
            self._process.communicate()
            raise MsstsError(f"{address}: the viewers of the benchmark cannot watch it")

    def end(self) -> list[int]:
        """The pictures that each got until the page ended."""
        assert self._process is not None
        try:
            written, _ = self._process.communicate(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            raise MsstsError("the viewers of the benchmark did not end with the page") from None
        return list(json.loads(written))


async def _watch(address: str, count: int) -> list[int]:
    import aiohttp

    watching = 0
    all_watch = asyncio.Event()

    async def ask(session: aiohttp.ClientSession, name: str) -> None:
        while True:
            async with session.get(f"{address}state?viewer={name}") as answer:
                await answer.read()
            await asyncio.sleep(_STATE_SECONDS)

    async def look(session: aiohttp.ClientSession, name: str) -> int:
        nonlocal watching
        pictures = 0
        asking = asyncio.create_task(ask(session, name))
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"{address}picture?viewer={name}") as answer:
                watching += 1
                if watching == count:
                    all_watch.set()
                async for chunk in answer.content.iter_chunked(1 << 16):
                    pictures += chunk.count(b"Content-Length")
        asking.cancel()
        return pictures

    async def say() -> None:
        await all_watch.wait()
        print("watching", flush=True)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        saying = asyncio.create_task(say())
        found = await asyncio.gather(*(look(session, f"viewer{number}") for number in range(count)))
        saying.cancel()
        return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_watch(sys.argv[1], int(sys.argv[2])))))
