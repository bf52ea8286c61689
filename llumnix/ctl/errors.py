"""How llumnixctl ends: exit codes, and errors of one sentence."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_ALLOWED = 4
    NOT_IN_TIME = 5
    NOT_SERVING = 6


HELP = """Exit codes: 0 done; 1 refused or failed, the server's reason is on standard error; 2 wrong usage; \
3 the admin API does not answer; 4 the token is missing, unknown or may not do this; \
5 what was waited for did not happen in time; 6 `status`: the cluster does not serve as it should."""


class CtlError(Exception):
    """What went wrong in one sentence, and the exit code that goes with it."""

    def __init__(self, message: str, code: Exit) -> None:
        super().__init__(message)
        self.code = code
