"""`python -m mssts.bench …`: `mssts bench` without an installed package."""

from __future__ import annotations

import argparse
import sys

from mssts.bench import command
from mssts.errors import MsstsError


def main() -> int:
    """Runs a benchmark. The exit codes are those of `mssts`."""
    parser = argparse.ArgumentParser(prog="mssts bench", description=command.HELP)
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args())
    except MsstsError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
