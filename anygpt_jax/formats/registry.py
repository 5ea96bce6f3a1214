"""Prompt formats by name."""

from __future__ import annotations

from anygpt_jax.errors import UserError
from anygpt_jax.formats.anygpt_base import AnyGPTBase
from anygpt_jax.formats.anygpt_chat import AnyGPTChat
from anygpt_jax.formats.base import Format
from anygpt_jax.formats.own import Own
from anygpt_jax.formats.released import HEARD, REPLY, TURNS
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.vocabulary import Vocabulary

OWN = "own"
_RELEASED: dict[str, tuple[type[AnyGPTBase] | type[AnyGPTChat], tuple[str, ...]]] = {
    "anygpt-base": (AnyGPTBase, TURNS),
    "anygpt-chat": (AnyGPTChat, (*TURNS, HEARD, REPLY)),
}
NAMES = (OWN, *_RELEASED)


def by_name(name: str, vocabulary: Vocabulary, text: TextTokenizer, *, legacy: bool = True) -> Format:
    """The format of a name. UserError if there is none, or the vocabulary has not its markers.

    `legacy` is for the released ones: `released.is_legacy` of the folder with their tokenizer's files.
    """
    if name == OWN:
        return Own(vocabulary, text)
    if name not in _RELEASED:
        raise UserError(f"Unknown format '{name}'; known ones: {', '.join(NAMES)}.")
    make, markers = _RELEASED[name]
    known = {marker for marker, _ in vocabulary.markers}
    if missing := [marker for marker in markers if marker not in known]:
        raise UserError(
            f"The format {name} needs {' '.join(missing)}, which the model's vocabulary lacks; "
            f"set config.format to what the model was trained with: {', '.join(NAMES)}."
        )
    return make(vocabulary, text, legacy)
