"""`anygpt inspect`: what a token cache holds, and its records as a person can read them."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import ml_collections
import numpy as np

from anygpt_jax.cache import CacheReader, Manifest, load_vocabulary, write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.records import TokenRecord
from anygpt_jax.vocabulary import Vocabulary

PERCENTILES = (5, 50, 95)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", metavar="NAME", help="show records of this task")
    parser.add_argument("--split", default="train", metavar="NAME", help="of this split; default: train")
    parser.add_argument("--limit", type=int, default=3, metavar="N", help="how many records; default: 3")
    parser.add_argument("--json", metavar="PATH", help="write the summary and the records there as JSON")


def summary(cache: pathlib.Path, manifest: Manifest) -> list[dict[str, Any]]:
    """One row a task and split: records, tokens, rejects, and the lengths' minimum, percentiles, maximum."""
    rows = []
    for task, splits in sorted(manifest.tasks.items()):
        for split, shards in splits.items():
            lengths = np.concatenate([np.load(cache / s.lengths_path) for s in shards] or [np.zeros(0)])
            quantiles = (
                [int(lengths.min()), *np.percentile(lengths, PERCENTILES), int(lengths.max())] if len(lengths) else []
            )
            rows.append(
                {
                    "task": task,
                    "split": split,
                    "shards": len(shards),
                    "records": sum(s.records for s in shards),
                    "tokens": sum(s.tokens for s in shards),
                    "rejects": sum(s.rejects for s in shards),
                    "lengths": [int(q) for q in quantiles],
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    width = max([len("task/split"), *(len(f"{r['task']}/{r['split']}") for r in rows)])
    head = f"{'task/split':{width}}  {'records':>9} {'tokens':>12} {'rejects':>7}  length: min p5 p50 p95 max"
    lines = [
        f"{r['task'] + '/' + r['split']:{width}}  {r['records']:9,} {r['tokens']:12,} {r['rejects']:7,}  "
        + " ".join(map(str, r["lengths"]))
        for r in rows
    ]
    records, tokens = sum(r["records"] for r in rows), sum(r["tokens"] for r in rows)
    return "\n".join([head, *lines, f"{'all':{width}}  {records:9,} {tokens:12,} {sum(r['rejects'] for r in rows):7,}"])


def readable(record: TokenRecord, vocabulary: Vocabulary, text: TextTokenizer) -> str:
    """Text decoded, markers by name, codes counted; what is trained stands between « and »."""
    names = {token: marker for marker, token in vocabulary.markers} | {vocabulary.bos: "<s>", vocabulary.eos: "</s>"}
    parts, start, trained = [], 0, False
    for span in record.spans:
        ids = record.tokens[start : start + span.length]
        start += span.length
        if span.loss != trained:
            parts.append("«" if span.loss else "»")
            trained = span.loss
        if span.modality != "text":
            parts.append(f"<{span.modality}:{len(ids) - 2} codes>")
        elif len(ids) == 1 and int(ids[0]) in names:
            parts.append(names[int(ids[0])])
        else:
            parts.append(text.decode(ids))
    return " ".join(parts + ["»"] * trained)


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    cache = pathlib.Path(config.workdir) / "cache"
    manifest, vocabulary = Manifest.load(cache), load_vocabulary(cache)
    rows = summary(cache, manifest)
    found: dict[str, Any] = {
        "vocabulary": {
            "fingerprint": vocabulary.fingerprint,
            "size": vocabulary.size,
            "modalities": vocabulary.modalities,
        },
        "tokenizers": manifest.tokenizers,
        "summary": rows,
    }
    blocks = ", ".join(("text", *vocabulary.modalities))
    print(f"{cache}: vocabulary {vocabulary.fingerprint[:12]} of {vocabulary.size:,} ids ({blocks})")
    print(table(rows))
    if args.task:
        found["records"] = []
        reader, text = CacheReader(cache, args.task, args.split), TextTokenizer.load()
        if text.fingerprint != vocabulary.text_fingerprint:
            raise UserError(
                f"{cache} was made with another text tokenizer than this program's; tokenize again to read its text."
            )
        for i in range(min(args.limit, len(reader))):
            record = reader[i]
            shown = readable(record, vocabulary, text)
            found["records"].append({"key": record.key, "tokens": len(record.tokens), "text": shown})
            print(f"\n{record.key} ({len(record.tokens)} tokens)\n  {shown}")
    if args.json:
        write_atomically(pathlib.Path(args.json), json.dumps(found, indent=1, ensure_ascii=False).encode())
