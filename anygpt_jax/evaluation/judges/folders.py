"""What is alike in the folders of Hugging Face's networks: their JSON files, and the tokenizer that ends and pads texts."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from anygpt_jax.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_json(path: pathlib.Path, network: str) -> dict[str, Any]:
    """UserError if there is no such file, or it is no JSON object. `network` is Transformers' class, for the remedy."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as e:
        raise UserError(f"There is no {path}; copy the whole folder of a Hugging Face {network}.") from e
    except (ValueError, TypeError) as e:
        raise UserError(f"{path} is not a JSON object ({e}); copy or download it again.") from e


def read_tokenizer(path: pathlib.Path, network: str, length: int) -> Tokenizer:
    """A tokenizer.json that cuts texts to `length` ids and pads none. UserError if it cannot be read."""
    if importlib.util.find_spec("tokenizers") is None:
        raise UserError(
            f"{network.removesuffix('Model').upper()} reads texts with the package tokenizers; run `pip install tokenizers`."
        )
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError(f"There is no {path}; copy the whole folder of a Hugging Face {network}.")
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises Exception itself
        raise UserError(f"{path} is not a tokenizer ({e}); copy or download it again.") from e
    loaded.no_padding()
    loaded.enable_truncation(length)
    return loaded


def padded(loaded: Tokenizer, length: int, pad: int) -> Callable[[Sequence[str]], Int[np.ndarray, "B N"]]:
    """Texts → int32[B, length], `pad` after their end."""

    def ids(texts: Sequence[str]) -> np.ndarray:
        found = np.full((len(texts), length), pad, np.int32)
        for row, encoding in zip(found, loaded.encode_batch(list(texts)), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return found

    return ids
