"""Choosing among answers by how well the model finds the request again in them.

A description is judged by the log probability, under the same model asked the other way round, of the medium that was
described: P(medium | text) beside P(text | medium), the noisy-channel model (arXiv 1908.05731). A model that draws
better than it describes corrects itself so.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from anygpt_jax.formats.base import Format
from anygpt_jax.generation.answer import Answer
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.templates import TEXT
from anygpt_jax.vocabulary import Block, Vocabulary

_MULTIPLE = 64  # lengths are rounded up to it: few compilations
_ROWS = 64  # at a time


def medium_of(prompt: Int32[np.ndarray, " N"], vocabulary: Vocabulary) -> tuple[Block, np.ndarray] | None:
    """The block and codes int32[M] of the only medium in a prompt; None if there is none, or more than one."""
    begins = {block.begin: block for block in vocabulary.blocks}
    found = [i for i, token in enumerate(prompt.tolist()) if token in begins]
    if len(found) != 1:
        return None
    block = begins[int(prompt[found[0]])]
    ends = np.flatnonzero(prompt[found[0] :] == block.end)
    if not len(ends):
        return None
    return block, vocabulary.decode_codes(block.modality, prompt[found[0] + 1 : found[0] + int(ends[0])])


def scores(
    decoder: Decoder, formatter: Format, media: Sequence[tuple[Block, np.ndarray]], answers: Sequence[Answer]
) -> Float[np.ndarray, " N"]:
    """log P(medium i | text of answer i), its end included, after one and the same instruction."""
    rows, firsts = [], []
    for (block, codes), answer in zip(media, answers, strict=True):
        text = str(answer.first(TEXT) or "")
        asked = formatter.prompt(formatter.ask(TEXT, block.modality, text), answer=block.modality)
        written = np.append(formatter.vocabulary.encode_codes(block.modality, codes), block.end)
        rows.append(np.concatenate([asked, written]).astype(np.int32))
        firsts.append(len(asked))
    graph, weights = nnx.split(decoder)
    length = -(-max(map(len, rows)) // _MULTIPLE) * _MULTIPLE
    found = []
    for start in range(0, len(rows), _ROWS):
        tokens = np.zeros((_ROWS, length), np.int32)
        spans = np.zeros((_ROWS, 2), np.int32)
        for j, row in enumerate(rows[start : start + _ROWS]):
            tokens[j, : len(row)], spans[j] = row, (firsts[start + j], len(row))
        found.append(np.asarray(_log_probabilities(graph, weights, tokens, spans)))
    return np.concatenate(found)[: len(rows)]


@functools.partial(jax.jit, static_argnames=("graph",))
def _log_probabilities(
    graph: nnx.GraphDef, weights: nnx.State, tokens: Int32[Array, "B L"], spans: Int32[Array, "B 2"]
) -> Float[Array, " B"]:
    """Of the tokens of each row from spans[b, 0] on, before spans[b, 1]."""
    decoder: Decoder = nnx.merge(graph, weights)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = (positions < spans[:, 1:]).astype(jnp.int32)
    chances = jax.nn.log_softmax(decoder(tokens, positions, segments).astype(jnp.float32), axis=-1)
    told = jnp.take_along_axis(chances[:, :-1], tokens[:, 1:, None], axis=2)[:, :, 0]
    wanted = (positions[:, 1:] >= spans[:, :1]) & (positions[:, 1:] < spans[:, 1:])
    return jnp.sum(jnp.where(wanted, told, 0), axis=1)
