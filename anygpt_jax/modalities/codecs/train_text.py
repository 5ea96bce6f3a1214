"""The recipe of the text tokenizer: a unigram SentencePiece model in which every common word is one piece."""

from __future__ import annotations

import io
from collections.abc import Iterable

import ml_collections
import sentencepiece


def train(config: ml_collections.ConfigDict, texts: Iterable[str]) -> bytes:
    """The model's bytes. Text is case-folded and NFKC-normalized; what no piece covers becomes bytes."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=config.vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=1.0,
        num_threads=1,  # the same pieces on every machine
        shuffle_input_sentence=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def pieces_per_word(model: bytes, texts: Iterable[str]) -> float:
    """Mean number of pieces of a word."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = words = 0
    for text in texts:
        pieces += len(processor.encode(text))
        words += len(text.split())
    return pieces / max(words, 1)
