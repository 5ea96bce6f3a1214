"""When a job that lost a process is started again: one rule for all targets.

Exit codes (docs/resuming.md): 0 the run is done, 143 or 130 it saved after SIGTERM or Ctrl-C, 2 a UserError, which would
come again; all else, a signal too, is a loss that "run the same command again" repairs.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

USER_ERROR = 2
SAVED = (143, 130)  # 128 + SIGTERM, 128 + SIGINT


class Verdict(enum.Enum):
    """What becomes of a job whose processes have all ended."""

    DONE = "done"
    STOPPED = "stopped"  # as it was asked to
    USER_ERROR = "user error"
    RESTART = "restart"
    GIVEN_UP = "given up"  # it was restarted as often as it may be


def judge(codes: Sequence[int | None], restarts: int, max_restarts: int, asked: bool = False) -> Verdict:
    """What to do after all processes of a job ended, `restarts` restarts after its first start.

    `codes` are exit codes, negative for a signal (as of subprocess), one a process; None for a process that says nothing
    of itself: lost with its host, or ended by the launcher or by the loss of another. Who can tell the order gives the
    codes of those that ended first, and None for the others. `asked`: the launcher itself was told to end the job.
    """
    if codes and all(code == 0 for code in codes):
        return Verdict.DONE
    if USER_ERROR in codes:
        return Verdict.USER_ERROR
    if asked:
        return Verdict.STOPPED
    return Verdict.RESTART if restarts < max_restarts else Verdict.GIVEN_UP


def saved(codes: Sequence[int | None]) -> bool:
    """Whether the job lost nothing: every process left after it had saved, or at the end."""
    return bool(codes) and all(code == 0 or code in SAVED for code in codes)
