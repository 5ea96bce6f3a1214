"""A full disk, said in one sentence, whichever library and thread met it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from etils import epath

from anygpt_jax.errors import UserError

ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
WORDS = ("No space left", "Disk quota exceeded", "File too large")  # TensorStore's errors carry no number


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that there is no room left: on the disk, or in a quota."""
    if error is None:
        return False
    if (isinstance(error, OSError) and error.errno in ERRORS) or any(word in str(error) for word in WORDS):
        return True
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return any(map(is_full_disk, (*inner, error.__cause__, error.__context__)))


@contextlib.contextmanager
def explained(directory: epath.Path, step: int | None = None) -> Iterator[None]:
    """UserError in the place of what a full disk raises while checkpoint `step` is written."""
    try:
        yield
    except Exception as e:
        if not is_full_disk(e):
            raise
        which = f"checkpoint {step}" if step is not None else "a checkpoint"
        raise UserError(
            f"The disk is full: {which} could not be written to {directory}. Older checkpoints are as they were; free "
            "some room or lower train.keep_checkpoints, and run the same command again: it goes on from the newest."
        ) from e
