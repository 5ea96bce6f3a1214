"""`python -m anygpt_jax.shipped.card RUN`: the scores that a run measured, into the model card.

RUN/report/metrics.json is kept as metrics.json beside the card, with the scores of the model of text alone in it, and
the card's tables are made of it and of nothing else.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from anygpt_jax import shipped
from anygpt_jax.cache import write_atomically

CARD = pathlib.Path(__file__).with_name("CARD.md")
# What is told of a pair beside its main score, where its judge says it.
DETAILS = (
    "object", "colour", "size", "place", "second", "relation", "all", "tempo_within_10", "on_scale", "tempo", "dance",
    "key", "unspoken_recall",
)  # fmt: skip

Entry = Mapping[str, Any]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _scored(score: float, interval: Sequence[float]) -> str:
    return f"{score:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _perplexity(entry: Entry | None) -> str:
    return "–" if entry is None else f"{entry['perplexity_per_word']:.3f}"


def _details(result: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {result[name]:.3f}" for name in DETAILS if name in result)


def _trained_row(name: str, entry: Entry) -> list[str]:
    return [
        name, entry["metric"], _scored(entry["score"], entry["interval"]), str(entry["n"]), _number(entry["ceiling"]),
        _number(entry["chance"]), _details(entry["details"]["direct"]),
    ]  # fmt: skip


def _never_row(name: str, entry: Entry) -> list[str]:
    share = entry.get("share_of_legs", {})
    return [
        name, entry["metric"], _scored(entry["via_text"], entry["via_text_interval"]), _number(share.get("via_text")),
        _scored(entry["score"], entry["interval"]), _number(share.get("direct")), _number(entry.get("legs")),
        _number(entry["chance"]), str(entry["n"]),
    ]  # fmt: skip


def tables(measured: Mapping[str, Any]) -> str:
    """Markdown of what `anygpt evaluate` measured: `metrics["shipped"]`."""
    pairs = [(f"{s} → {t}", entry) for s, row in measured["matrix"].items() for t, entry in row.items()]
    header = ["pair", "metric", "score (95 % interval)", "n", "tokenizers alone", "chance", "in detail"]
    hard = [
        (f"{task.replace('_to_', ' → ')}, `{split}`", entry)
        for task, splits in measured["hard"].items()
        for split, entry in splits.items()
    ]
    parts = [
        "Trained pairs, on held-out combinations, sentences and tunes:",
        _table(header, [_trained_row(name, entry) for name, entry in pairs if entry["trained"]]),
        "Pairs that were never trained, asked for by way of text as the dialogues do it, and directly; `legs` is the "
        "product of the scores of the two trained pairs between which text stands:",
        _table(
            ["pair", "metric", "by way of text", "of legs", "directly", "of legs", "legs", "chance", "n"],
            [_never_row(name, entry) for name, entry in pairs if not entry["trained"]],
        ),
        "Harder splits:",
        _table(header, [_trained_row(name, entry) for name, entry in hard]),
    ]
    if dialogues := measured.get("dialogues"):
        several = dialogues["several_turns"]
        parts.append(
            "Dialogues, the last answer after the true history: it holds exactly the modalities asked for, in their "
            f"order, in {_scored(dialogues['exact'], dialogues['interval'])} of {dialogues['n']}; of those with several "
            f"turns in {_scored(several['exact'], several['interval'])} of {several['n']}."
        )
    if text := measured.get("text"):
        alone = measured.get("text_only", {})
        rows = [[t, _perplexity(e), _perplexity(alone.get(t)), str(e["words"]), str(e["n"])] for t, e in text.items()]
        header = ["task", "perplexity a word", "of a model of text alone", "words", "n"]
        parts += [
            "Text alone, beside a model of the same size that learned from the texts of the first three alone "
            "(`configs/tiny.py:text`):",
            _table(header, rows),
        ]
    return "\n\n".join(parts)


def insert(card: str, found: str) -> str:
    """The card with its tables, between the marks, replaced."""
    return re.sub(r"(<!-- scores -->\n).*?(<!-- /scores -->)", lambda m: f"{m[1]}\n{found}\n\n{m[2]}", card, flags=re.S)


def _metrics(run: pathlib.Path) -> dict[str, Any]:
    return json.loads((run / "report" / "metrics.json").read_text(encoding="utf-8"))


def main() -> None:
    """Writes metrics.json and the tables of CARD.md; with --text that run's perplexities are among them."""
    parser = argparse.ArgumentParser(prog="python -m anygpt_jax.shipped.card", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="the folder of a run that was evaluated")
    parser.add_argument("--text", metavar="RUN", type=pathlib.Path, help="that of the model of text alone")
    args = parser.parse_args()
    metrics = _metrics(args.run)
    if args.text:
        metrics["shipped"]["text_only"] = _metrics(args.text)["quickstart"]["text"]
    write_atomically(shipped.METRICS, json.dumps(metrics, indent=1).encode() + b"\n")
    write_atomically(CARD, insert(CARD.read_text(encoding="utf-8"), tables(metrics["shipped"])).encode())


if __name__ == "__main__":
    main()
