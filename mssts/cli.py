"""The `mssts` command: one table of subcommands, in the order of the pipeline.

A command is a module with three things: `HELP` (one line), `add_arguments(parser)` and `run(arguments)`, which returns
an exit code or None for 0. Such a module imports nothing heavy at its top, so that `mssts --help` is instant.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import mssts
from mssts.errors import MsstsError
from mssts.files import DISK_FULL, is_disk_full, reason

COMMANDS = {
    "demo": "mssts.commands.demo",
    "data": "mssts.commands.data",
    "train": "mssts.training.command",
    "convert": "mssts.commands.convert",
    "export": "mssts.export.command",
    "quantize": "mssts.export.quantization.command",
    "build-engine": "mssts.export.tensorrt.command",
    "repo": "mssts.commands.repo",
    "serve": "mssts.commands.serve",
    "health": "mssts.commands.health",
    "predict": "mssts.commands.predict",
    "stream": "mssts.commands.stream",
    "evaluate": "mssts.commands.evaluate",
    "bench": "mssts.bench.command",
    "describe": "mssts.commands.describe",
    "info": "mssts.commands.info",
}


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, one subparser a command."""
    root = argparse.ArgumentParser(prog="mssts", description="MS-STS VIS: train, export, serve, measure.")
    root.add_argument("--version", action="version", version=f"mssts {mssts.__version__}")
    subparsers = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, path in COMMANDS.items():
        module = import_module(path)
        sub = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0 done, 1 a check failed, 2 bad input, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name need not be text
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(arguments) or 0)
    except MsstsError as error:
        print(f"mssts {arguments.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as in `mssts … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # a full disk, a folder without write permission
        line = _system_error(error)
        if line is None:
            raise
        print(f"mssts {arguments.command}: error: {line}", file=sys.stderr)
        return MsstsError.exit_code


def _system_error(error: Exception) -> str | None:
    """One line for an error of the operating system, None for a bug."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {reason(error)}"
    return DISK_FULL if is_disk_full(error) else None


if __name__ == "__main__":
    sys.exit(main())
