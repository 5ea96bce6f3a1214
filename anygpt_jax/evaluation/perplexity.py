"""Text by itself: how well the decoder predicts held-out text, by teacher forcing."""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from anygpt_jax.cache import CacheReader
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.records import TokenRecord
from anygpt_jax.templates import TEXT
from anygpt_jax.training.loss import token_losses
from anygpt_jax.vocabulary import Vocabulary

TEXTS = ("image_captions", "music_captions", "sentences")  # text alone
TASKS = (*TEXTS, "dialogues")
BATCH_TOKENS = 4096  # at most in a batch, padding among them
LENGTH_MULTIPLE = 64  # rows are padded to it: few shapes, few compilations


@functools.partial(jax.jit, static_argnames=("graph",))
def _losses(
    graph: nnx.GraphDef, weights: nnx.State, tokens: Int32[Array, "B L"], lengths: Int32[Array, " B"]
) -> Float[Array, "B L-1"]:
    """-log p of every token but the first, in nats."""
    decoder: Decoder = nnx.merge(graph, weights)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    logits = decoder(tokens, positions, (positions < lengths[:, None]).astype(jnp.int32))
    return token_losses(logits[:, :-1], tokens[:, 1:])[0]


def token_nll(decoder: Decoder, records: Sequence[TokenRecord]) -> Iterator[tuple[TokenRecord, np.ndarray]]:
    """Every record, the shortest first, with float32[L] in nats: -log p of each token after those before it.

    The first token's is 0: nothing predicts it.
    """
    graph, weights = nnx.split(decoder)
    order = sorted(records, key=lambda record: len(record.tokens))
    start = 0
    while start < len(order):
        # As many as fit at the length of the longest among them; the number of rows depends on that length alone.
        rows, length = 0, 0
        while start + rows < len(order):
            longest = -(-len(order[start + rows].tokens) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            if rows and (rows + 1) * longest > BATCH_TOKENS:
                break
            rows, length = rows + 1, longest
        batch = order[start : start + rows]
        tokens = np.zeros((max(rows, BATCH_TOKENS // length), length), np.int32)
        lengths = np.zeros(len(tokens), np.int32)
        for row, record in enumerate(batch):
            lengths[row] = len(record.tokens)
            tokens[row, : lengths[row]] = record.tokens
        nll = np.asarray(_losses(graph, weights, tokens, lengths))
        for row, record in enumerate(batch):
            yield record, np.append(np.float32(0), nll[row, : lengths[row] - 1])
        start += rows


def scored(record: TokenRecord) -> np.ndarray:
    """bool[L]: the text that is trained, with the tokens that close it."""
    lengths = [span.length for span in record.spans]
    return np.repeat([span.loss and span.modality == TEXT for span in record.spans], lengths)


def count_words(record: TokenRecord, vocabulary: Vocabulary, text: TextTokenizer) -> int:
    """Words, as spaces part them, in the text that is trained."""
    count, start = 0, 0
    closing = (vocabulary.pad, vocabulary.bos, vocabulary.eos)
    for span in record.spans:
        ids = record.tokens[start : start + span.length]
        start += span.length
        if span.loss and span.modality == TEXT:
            count += len(text.decode(ids[(ids < vocabulary.text_size) & ~np.isin(ids, closing)]).split())
    return count


def text_perplexity(
    decoder: Decoder, vocabulary: Vocabulary, text: TextTokenizer, cache: pathlib.Path, task: str, split: str
) -> dict[str, float]:
    """Of the whole split: exp(nats a token) and exp(nats a word), over the text on which loss falls.

    The closing tokens' nats are in both, so that a word's are those of writing the text and ending it. All ids of the
    vocabulary take part, those of media too. UserError if the cache has no such split.
    """
    reader = CacheReader(cache, task, split)
    nats, tokens, words = 0.0, 0, 0
    for record, nll in token_nll(decoder, [reader[i] for i in range(len(reader))]):
        mask = scored(record)
        mask[0] = False
        nats += float(nll[mask].astype(np.float64).sum())
        tokens += int(mask.sum())
        words += count_words(record, vocabulary, text)
    return {
        "perplexity_per_word": math.exp(nats / max(words, 1)),
        "perplexity_per_token": math.exp(nats / max(tokens, 1)),
        "nats": nats,
        "n": len(reader),
        "tokens": tokens,
        "words": words,
    }
