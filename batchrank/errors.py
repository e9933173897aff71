"""Every way a command can end badly, each with its exit code: the only table of codes.

The command line prints a `BatchrankError`'s message as one line and exits with its code. Any
other exception is a bug and shows its traceback (code 1). The codes follow sysexits where one
fits, and never 99, which Airflow's BashOperator reads as "skip".
"""

from enum import IntEnum
from typing import Any
from unicodedata import category


class ExitCode(IntEnum):
    """What a scheduler sees; `AGAIN` says which deserve the same command again."""

    DONE = 0
    BUG = 1
    USAGE = 2
    ROWS_FAILED = 3
    BOUND_REACHED = 4
    INPUT_BAD = 65
    INPUT_MISSING = 66
    ACCOUNT_REFUSED = 69
    OUTPUT_UNUSABLE = 73
    IO_FAILED = 74
    TRY_LATER = 75
    CONTRACT_BROKEN = 76
    KEY_REFUSED = 77
    CONFIG_INVALID = 78
    INTERRUPTED = 130
    TERMINATED = 143


AGAIN = frozenset(
    {ExitCode.IO_FAILED, ExitCode.TRY_LATER, ExitCode.INTERRUPTED, ExitCode.TERMINATED}
)
"""Codes after which the same command may go on as it is; after the others something must change."""


def escape(text: str, keep: str = "") -> str:
    """Write what a terminal or a reader would obey, and not show, as Python does: `\\x1b`.

    That is all of Unicode's category C (control and bidirectional marks, surrogates, unassigned)
    and the two separators of lines. Whatever a server, a file's name or a configuration says goes
    through here before it is part of a message.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char in keep or not _is_unseen(char) else char.encode("unicode_escape").decode()
        for char in text
    )


def _is_unseen(char: str) -> bool:
    kind = category(char)
    return kind[0] == "C" or kind in ("Zl", "Zp")


class BatchrankError(Exception):
    """A foreseen failure: its text is for the user, its `code` for the scheduler.

    `scores`: what `batchrank.rerank` had bought when it failed, where that is kept nowhere else.
    """

    code = ExitCode.BUG
    scores: Any = None

    def __init__(self, message: str = "") -> None:
        super().__init__(escape(message))


class RowsFailed(BatchrankError):
    """The pass is complete, and more rows failed than were allowed to."""

    code = ExitCode.ROWS_FAILED


class CostReached(BatchrankError):
    """The next request might have cost more than `--max-cost`; the run can be resumed."""

    code = ExitCode.BOUND_REACHED


class DeadlineReached(BatchrankError):
    """The time of `--finish-by` has come; what was in flight is drained; the run can be resumed."""

    code = ExitCode.BOUND_REACHED


class InputBad(BatchrankError):
    """The input cannot be read as rows, or is not the input that the output was begun with."""

    code = ExitCode.INPUT_BAD


class InputMissing(BatchrankError):
    """A path or pattern matches no file."""

    code = ExitCode.INPUT_MISSING


class AccountRefused(BatchrankError):
    """The endpoint will not serve this account, model or workspace, however often it is asked."""

    code = ExitCode.ACCOUNT_REFUSED


class OutputUnusable(BatchrankError):
    """The output folder cannot be written, or holds something that is not this run."""

    code = ExitCode.OUTPUT_UNUSABLE


class StorageFailed(BatchrankError):
    """The disk refused a write or a sync; nothing is sent after that."""

    code = ExitCode.IO_FAILED


class OutOfMemory(BatchrankError):
    """There was not enough memory; the same command goes on where there is more."""

    code = ExitCode.IO_FAILED


class TryLater(BatchrankError):
    """Another process holds the output, or the endpoint was out of reach for too long."""

    code = ExitCode.TRY_LATER


class ContractBroken(BatchrankError):
    """The endpoint answers, but not with what a rerank API answers."""

    code = ExitCode.CONTRACT_BROKEN


class KeyRefused(BatchrankError):
    """The endpoint answered 401: the key is wrong, or of another region."""

    code = ExitCode.KEY_REFUSED


class ConfigInvalid(BatchrankError):
    """The configuration is wrong in itself, or not the one that the output was begun with."""

    code = ExitCode.CONFIG_INVALID


class Stopped(BatchrankError):
    """A signal asked the run to end; what was in flight is drained; the run can be resumed."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code
