"""Lines of JSON that several processes add to: FOLDER/NAME-HOST-PID-RANDOM.jsonl, one file a process."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import threading
import uuid
from collections.abc import Iterator
from typing import Any


class Ledger:
    """Threads of a process may add at the same time. A line that was added survives the process, not the machine."""

    def __init__(self, folder: str | pathlib.Path, name: str):
        self._folder, self._name = pathlib.Path(folder), name
        own = f"{name}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._own = self._folder / own
        self._read: dict[pathlib.Path, int] = {}  # bytes of each file that `rows` has given
        self._lock = threading.Lock()

    def rows(self, *needed: str) -> Iterator[dict[str, Any]]:
        """What processes have added since the last call, if it has these names.

        A line that was cut off by a kill, or is damaged, is left out.
        """
        for path in sorted(self._folder.glob(f"{self._name}-*.jsonl")):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and all(name in row for name in needed):
                    yield row

    def add(self, **row: Any) -> None:
        """As the last line of this process's own file; what of a text is no Unicode becomes "?"."""
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._own, "ab") as file:  # a file of its own, so that no other's line is cut into
                file.write(line)
