"""The errors a user can act on: one line each, no traceback, an exit code other than 0."""


class MsstsError(Exception):
    """Something a user gave is wrong. The message says what was wrong, what was expected and what to do.

    `mssts` prints the message on one line of stderr and exits with `exit_code`.
    """

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of another library's message, for a message of ours; its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class CheckFailed(MsstsError):
    """A check that guards an artefact (parity, a built layer) did not hold; the artefact was not written."""

    exit_code = 1
