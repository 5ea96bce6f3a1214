"""How much of its codebooks a cache uses: a collapsed codebook or a wrong offset shows here before training does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Int

from anygpt_jax.modalities.base import Grammar
from anygpt_jax.records import TokenRecord
from anygpt_jax.templates import TEXT
from anygpt_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class CodebookUse:
    """Of the codes `low` … `high` - 1 of a modality: how many were seen, what share of them, how evenly."""

    modality: str
    low: int
    high: int
    codes: int
    used: float  # share of the codebook that occurs at all
    perplexity: float  # exp of the entropy: as many codes, used evenly, would say as much

    def line(self) -> str:
        """A row of the table; the last code is inclusive there: 0..1023."""
        return (
            f"{self.modality:<10}{self.low:>7}..{self.high - 1:<7}{self.codes:>12,} codes{self.used:>8.1%} used"
            f"  perplexity {self.perplexity:,.1f}"
        )


def count_codes(records: Iterable[TokenRecord], vocabulary: Vocabulary) -> dict[str, Int[np.ndarray, " K"]]:
    """modality -> how often each of its codes occurs."""
    counts = {block.modality: np.zeros(block.size, np.int64) for block in vocabulary.blocks}
    for record in records:
        start = 0
        for span in record.spans:
            if span.modality != TEXT and span.length > 2:
                codes = vocabulary.decode_codes(span.modality, record.tokens[start + 1 : start + span.length - 1])
                counts[span.modality] += np.bincount(codes, minlength=len(counts[span.modality]))
            start += span.length
    return counts


def codebook_use(counts: Mapping[str, Int[np.ndarray, " K"]], grammars: Mapping[str, Grammar]) -> list[CodebookUse]:
    """One row a codebook; codebooks are the ranges of the modality's grammar, without one all its codes."""
    rows = []
    for modality, of_code in counts.items():
        grammar = grammars.get(modality)
        ranges = sorted({*grammar.prefix, *grammar.cycle}) if grammar else [(0, len(of_code))]
        for low, high in ranges:
            seen = of_code[low:high]
            if not (total := int(seen.sum())):
                continue
            p = seen[seen > 0] / total
            perplexity = float(np.exp(-(p * np.log(p)).sum()))
            rows.append(CodebookUse(modality, low, high, total, float((seen > 0).mean()), perplexity))
    return rows
