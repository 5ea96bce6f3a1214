"""Paths that data give for its media: whoever wrote them may not be whoever reads them."""

from __future__ import annotations

import os
import pathlib

OUTSIDE = "its path leads out of the folder of media"


def below(root: pathlib.Path, path: str) -> pathlib.Path | None:
    """`path` from `root` on; None if it leads out of it, by ".." or from the root of the disk on.

    What is below is decided by the names: symbolic links were made by whoever keeps the folder, and are followed.
    """
    folder = os.path.abspath(root)
    whole = pathlib.Path(os.path.abspath(os.path.join(folder, path)))
    return whole if whole.is_relative_to(folder) else None
