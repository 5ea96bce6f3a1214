"""What was generated, kept in files: WORKDIR/predictions/TASK/{KEY.png, KEY.wav, …, predictions.jsonl, result.json}."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from anygpt_jax.cache import write_atomically
from anygpt_jax.generation.media import extension
from anygpt_jax.modalities.base import ModalityTokenizer


class Predictions:
    """The folder of one task and split. `result.json` comes last: with it, the pair is finished."""

    def __init__(self, folder: pathlib.Path, tokenizers: Mapping[str, ModalityTokenizer]):
        self.folder = folder
        self._tokenizers = tokenizers
        self._rows: list[dict[str, Any]] = []

    def finished(self, recipe: str) -> dict[str, Any] | None:
        """The result of an earlier run by the same recipe."""
        try:
            result = json.loads((self.folder / "result.json").read_text())
        except (OSError, ValueError):
            return None
        return result if result.get("recipe") == recipe else None

    def start(self) -> None:
        """Removes what an earlier run left in the folder, and forgets the rows."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._rows = []

    def media(self, key: str, role: str, modality: str, medium: Any) -> dict[str, str] | None:
        """Saves one medium and returns how a row names it; `role` is "", "via_text", "source" or "truth"."""
        if medium is None:
            return None
        stem = re.sub(r"[^\w.-]", "_", key) + (f".{role}" if role else "")
        tokenizer = self._tokenizers.get(modality)
        path = self.folder / f"{stem}{extension(modality, tokenizer)}"
        named = {"modality": modality, "file": path.name}
        if tokenizer is None:
            path.write_bytes(str(medium).encode())
            return {**named, "text": str(medium)}
        path.write_bytes(tokenizer.save(medium))
        shown = getattr(tokenizer, "html", None)
        return named if shown is None else {**named, "html": shown(medium)}

    def add(self, row: dict[str, Any]) -> None:
        """One line of predictions.jsonl, which must be JSON; it is kept in memory until `finish`."""
        self._rows.append(row)

    def finish(self, result: Mapping[str, Any], recipe: str) -> None:
        """Writes the rows, then result.json: the result with its recipe, by which `finished` knows it again."""
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self._rows)
        write_atomically(self.folder / "predictions.jsonl", lines.encode())
        write_atomically(self.folder / "result.json", json.dumps({**result, "recipe": recipe}, indent=1).encode())
