"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import pathlib
from collections.abc import Iterator

from anygpt_jax.errors import UserError


@contextlib.contextmanager
def alone(lock: pathlib.Path, refusal: str) -> Iterator[None]:
    """Holds a lock file, which goes with the process, however it ends. UserError with `refusal` if another holds it.

    Where the file system has no locks, as some of networks, there is no refusal.
    """
    with lock.open("a") as file:  # its time stays
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(refusal) from e
        yield
