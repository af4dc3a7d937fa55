"""Errors that a user can act on: one line, no traceback, an exit code."""


class MsstsError(Exception):
    """An error in what a user gave.

    The message says what was wrong, what was expected and what to do.

    `mssts` prints the message on one line of stderr and exits with `exit_code`.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or its type's name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class CheckFailed(MsstsError):
    """A failed check (parity, a built layer) of an artefact, which was not written."""

    exit_code = 1
