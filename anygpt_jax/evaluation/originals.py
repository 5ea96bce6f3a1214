"""Original media, what the tokenizers make of them, and what the judges make of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.evaluation.examples import Example
from anygpt_jax.evaluation.statistics import MetricFn
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.tasks import metrics
from anygpt_jax.tasks.metrics.pitch import pitch_share

JUDGES: dict[str, MetricFn] = {
    "image": metrics.image_attributes,
    "speech": metrics.speech_word_error_rate,
    "music": metrics.music_attributes,
}


FEW = 24  # utterances on which the acoustic variants of speech are compared


def beginning(tokenizer: Any, data: bytes) -> bytes:
    """An encoded medium; of music that is longer than the tokenizer takes, the first seconds that it does take."""
    if tokenizer.name != "music":
        return data
    return tokenizer.save(tokenizer.clip(load_audio(data, sample_rate=48_000)))


class Reconstructor:
    """Encodes and decodes originals, each once, in batches."""

    def __init__(self, tokenizers: Mapping[str, ModalityTokenizer], batch_size: int = 32):
        self._tokenizers = tokenizers
        self._batch_size = batch_size
        self._known: dict[tuple[str, bytes], Any] = {}

    def __call__(self, contents: Sequence[tuple[str, bytes]]) -> list[Any]:
        """What is left of encoded media after their tokenizers."""
        new = [content for content in dict.fromkeys(contents) if content not in self._known]
        for modality in dict.fromkeys(modality for modality, _ in new):
            tokenizer, of_one = self._tokenizers[modality], [content for content in new if content[0] == modality]
            for start in range(0, len(of_one), self._batch_size):
                batch = of_one[start : start + self._batch_size]
                codes = tokenizer.encode([tokenizer.load(data) for _, data in batch])
                self._known.update(zip(batch, tokenizer.decode(codes), strict=True))
        return [self._known[content] for content in contents]


def _acoustic_rows(tokenizer: Any, targets: Sequence[dict], originals: Sequence[Any]) -> dict[str, float]:
    """Word error rates of what the language model does not write: every codebook, and those of the second stage."""
    every = tokenizer.decode(tokenizer.encode_all(originals))
    staged = tokenizer.decode(tokenizer.encode(originals), acoustic=True)
    return {
        "wer_all_codebooks": metrics.speech_word_error_rate(targets, every)["wer"],
        "wer_acoustic_stage": metrics.speech_word_error_rate(targets, staged)["wer"],
        "n_acoustic": len(targets),
    }


def psnr(original: np.ndarray, reconstruction: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images."""
    error = np.mean(np.square(original.astype(np.float64) - reconstruction.astype(np.float64)))
    return float(10 * np.log10(255**2 / max(float(error), 1e-9)))


def tokenizer_table(
    pools: Mapping[str, Sequence[Example]],
    tokenizers: Mapping[str, ModalityTokenizer],
    rebuild: Reconstructor,
    judges: Mapping[str, MetricFn] = JUDGES,
) -> dict[str, dict[str, float]]:
    """By modality: what the judge reads from originals ("judge_…") and from reconstructions of them."""
    table: dict[str, dict[str, float]] = {}
    for modality, examples in pools.items():
        targets = [e.attributes for e in examples]
        before = [e.load_target(tokenizers) for e in examples]
        after = rebuild([e.target for e in examples if e.target])
        lengths = [len(codes) for codes in tokenizers[modality].encode(before[:8])]
        row: dict[str, float] = {"n": len(examples), "codes": float(np.mean(lengths))}
        judge = judges[modality]
        row |= judge(targets, after)
        row |= {f"judge_{name}": value for name, value in judge(targets, before).items()}
        if modality == "image":
            row["psnr"] = float(np.mean([psnr(a, b) for a, b in zip(before, after, strict=True)]))
        if modality == "music":
            kept = np.array(
                [
                    pitch_share(t["notes"], a.samples, b.samples, a.sample_rate)
                    for t, a, b in zip(targets, before, after, strict=True)
                ]
            ).sum(0)
            row |= {"pitch": float(kept[0] / max(kept[1], 1)), "notes": int(kept[1])}
        if modality == "speech" and hasattr(tokenizers[modality], "encode_all"):
            row |= _acoustic_rows(tokenizers[modality], targets[:FEW], before[:FEW])
        table[modality] = row
    return table
