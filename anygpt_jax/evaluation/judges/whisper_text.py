"""How Whisper writes: what it is asked, which tokens it may not write, the likeliest one after another, and their text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges import folders
from anygpt_jax.evaluation.judges.whisper_files import Files
from anygpt_jax.evaluation.judges.whisper_network import MULTILINGUAL, KeysValues, WhisperConfig, WhisperNetwork

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
START, LANGUAGE_AND_TASK, UNTIMED = "<|startoftranscript|>", ("<|en|>", "<|transcribe|>"), "<|notimestamps|>"

# The number of ids, the ids, keys and values of their tokens.
State: TypeAlias = tuple[Int[Array, ""], Int[Array, "B most"], list[KeysValues]]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """`suppressed`: ids that are never written, `first_suppressed`: that are not written first; `most`: ids of a text."""

    prompt: tuple[int, ...]
    end: int
    suppressed: tuple[int, ...]
    first_suppressed: tuple[int, ...]
    most: int

    def allowed(self, vocabulary: int, first: bool) -> Float[np.ndarray, " V"]:
        """What is added to the logits."""
        found = np.zeros(vocabulary, np.float32)
        found[list(self.suppressed + (self.first_suppressed if first else ()))] = -np.inf
        return found


class Writing:
    """A network's tokenizer and how it decodes English without times."""

    def __init__(self, tokenizer: Tokenizer, decoding: Decoding):
        self._tokenizer, self.decoding = tokenizer, decoding

    @classmethod
    def of(cls, files: Files) -> Writing:
        """UserError if the tokenizer is not there, or not the network's.

        A text has at most half the decoder's positions, as in OpenAI's own program.
        """
        config, path = files.network.config, files.tokenizer
        loaded = folders.read_tokenizer(path, "WhisperModel", config.text)
        many = files.settings.get("is_multilingual", config.vocabulary >= MULTILINGUAL)
        prompt = (START, *(LANGUAGE_AND_TASK if many else ()), UNTIMED)
        ids = {token: i for token in (*prompt, END) if (i := loaded.token_to_id(token)) is not None}
        if missing := [t for t in (*prompt, END) if not ids.get(t, config.vocabulary) < config.vocabulary]:
            raise UserError(
                f"{path} has no {missing[0]}, or with a number beyond the network's {config.vocabulary} tokens; take the "
                "tokenizer.json that came with it."
            )
        suppressed, first = (_ids(files.settings, n, config) for n in ("suppress_tokens", "begin_suppress_tokens"))
        most = config.text // 2
        return cls(loaded, Decoding(tuple(ids[t] for t in prompt), ids[END], suppressed, first, most))

    def text(self, ids: Int[np.ndarray, " N"]) -> str:
        """Of ids up to the end; what follows it in the vocabulary are marks and times, which are no text."""
        return str(self._tokenizer.decode([i for i in ids.tolist() if i < self.decoding.end])).strip()


def _ids(settings: Mapping[str, Any], name: str, config: WhisperConfig) -> tuple[int, ...]:
    found = tuple(settings.get(name) or ())
    if wrong := [i for i in found if not isinstance(i, int) or not 0 <= i < config.vocabulary]:
        raise UserError(
            f"The {name} of this Whisper name {wrong[0]!r}, which is none of its {config.vocabulary} tokens."
        )
    return found


def greedy(network: WhisperNetwork, mels: Float[Array, "B F M"], decoding: Decoding) -> Int[Array, "B most"]:
    """The likeliest token after each, from the prompt's end on; `decoding.end` from where a text ends."""
    d, vocabulary, batch = decoding, network.config.vocabulary, mels.shape[0]
    begun, most = len(d.prompt), d.most
    sound = network.heard(network.encode(mels))
    prompt = jnp.broadcast_to(jnp.asarray(d.prompt, jnp.int32), (batch, begun))
    logits, kept = network.decode(prompt, 0, network.unwritten(batch, begun + most), sound)
    first = jnp.argmax(logits[:, -1] + d.allowed(vocabulary, True), -1).astype(jnp.int32)
    ids = jnp.full((batch, most), d.end, jnp.int32).at[:, 0].set(first)

    def unfinished(state: State) -> Array:
        i, ids, _ = state
        return (i < most) & jnp.any(jax.lax.dynamic_index_in_dim(ids, i - 1, 1) != d.end)

    def write(state: State) -> State:
        i, ids, kept = state
        last = jax.lax.dynamic_index_in_dim(ids, i - 1, 1)
        logits, kept = network.decode(last, begun + i - 1, kept, sound)
        likeliest = jnp.argmax(logits + d.allowed(vocabulary, False), -1).astype(jnp.int32)
        now = jnp.where(last == d.end, d.end, likeliest)
        return i + 1, jax.lax.dynamic_update_slice(ids, now, (0, i)), kept

    return jax.lax.while_loop(unfinished, write, (jnp.int32(1), ids, kept))[1]
