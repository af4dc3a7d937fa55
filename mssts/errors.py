"""The errors a user can act on: one line each, no traceback, an exit code other than 0."""


class MsstsError(Exception):
    """Something a user gave is wrong. The message says what was wrong, what was expected and what to do.

    `mssts` prints the message on one line of stderr and exits with `exit_code`.
    """

    exit_code = 2


class CheckFailed(MsstsError):
    """A check that guards an artefact (parity, a built layer) did not hold; the artefact was not written."""

    exit_code = 1
