"""`anygpt inspect`: what a token cache holds, its records as a person can read them, and whether it is whole."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import numpy as np

from anygpt_jax.cache import CacheReader, Manifest, load_vocabulary, write_atomically
from anygpt_jax.data import inspect_codebooks, inspect_page, inspect_verify
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.records import TokenRecord
from anygpt_jax.vocabulary import Vocabulary

PERCENTILES = (5, 50, 95)
SAMPLE = 2000  # records of every task and split that the codebooks' use is counted in
SHOWN_REASONS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All are optional. `training.inspect`, behind the same verb, takes them too."""
    parser.add_argument("place", nargs="?", metavar="CACHE", help="a cache, a run's folder, or a config")
    parser.add_argument("--config", metavar="FILE", help="a Python file with get_config(); its workdir has the cache")
    parser.add_argument("--workdir", metavar="DIR", help="the run's folder; default: the config's workdir")
    parser.add_argument("--task", metavar="NAME", help="show records of this task")
    parser.add_argument("--split", default="train", metavar="NAME", help="of this split; default: train")
    parser.add_argument("--limit", type=int, default=3, metavar="N", help="how many records; default: 3")
    parser.add_argument("--record", type=int, metavar="N", help="write record N of the task and split as an HTML page")
    parser.add_argument("--html", metavar="PATH", help="where to; default: inspect/ beside the cache")
    parser.add_argument(
        "--sample", type=int, default=SAMPLE, metavar="N",
        help="records of each task and split that the use of codebooks is counted in, 0 for none; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="read every byte; status 2 if anything is damaged")
    parser.add_argument("--json", metavar="PATH", help="write the summary and the records there as JSON")


def summary(cache: pathlib.Path, manifest: Manifest) -> list[dict[str, Any]]:
    """One row a task and split: what became of its inputs, tokens by modality, and the lengths' quantiles."""
    rows = []
    for task, splits in sorted(manifest.tasks.items()):
        for split, shards in splits.items():
            lengths = np.concatenate([np.load(cache / s.lengths_path) for s in shards] or [np.zeros(0)])
            quantiles = (
                [int(lengths.min()), *np.percentile(lengths, PERCENTILES), int(lengths.max())] if len(lengths) else []
            )
            tokens = {m: sum(s.modalities.get(m, 0) for s in shards) for s in shards for m in s.modalities}
            rows.append(
                {
                    "task": task,
                    "split": split,
                    "shards": len(shards),
                    **manifest.counts(task, split).to_json(),
                    "modalities": tokens,
                    "lengths": [int(q) for q in quantiles],
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Plain text of `summary`'s rows: under each its rules and most frequent reasons, at the end the sums."""
    width = max([len("task/split"), *(len(f"{r['task']}/{r['split']}") for r in rows)])
    columns = f"{'inputs':>9} {'records':>9} {'filtered':>9} {'rejects':>7} {'tokens':>12}"
    lines = [f"{'task/split':{width}}  {columns}  length: min p5 p50 p95 max  tokens by modality"]
    total = dict.fromkeys(("inputs", "records", "filtered", "rejects", "tokens"), 0)
    for r in rows:
        numbers = {name: sum(r[name].values()) if name == "filtered" else r[name] for name in total}
        total = {name: total[name] + numbers[name] for name in total}
        mix = ", ".join(f"{m} {n / max(1, r['tokens']):.0%}" for m, n in sorted(r["modalities"].items()))
        lengths = " ".join(map(str, r["lengths"]))
        lines.append(f"{r['task'] + '/' + r['split']:{width}}  {_numbers(numbers)}  {lengths}  {mix}")
        lines += [f"    filtered {times:,}: {rule}" for rule, times in r["filtered"].items()]
        lines += [f"    rejected {n:,}: {reason}" for reason, n in list(r["rejected"].items())[:SHOWN_REASONS]]
    return "\n".join([*lines, f"{'all':{width}}  {_numbers(total)}"])


def _numbers(row: Mapping[str, int]) -> str:
    return f"{row['inputs']:9,} {row['records']:9,} {row['filtered']:9,} {row['rejects']:7,} {row['tokens']:12,}"


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


def place_of(
    config: ml_collections.ConfigDict | None, args: argparse.Namespace
) -> tuple[pathlib.Path, ml_collections.ConfigDict | None]:
    """The cache's folder, and the config if there is one. Raises UserError if nothing is named."""
    place = getattr(args, "place", None)
    if config is None and place and place.partition(":")[0].endswith(".py"):
        from anygpt_jax.cli import load_config  # here, because the command line imports this module

        config = load_config(place)
        config.workdir = args.workdir or config.workdir
        place = None
    if place:
        folder = pathlib.Path(place)
        return (folder / "cache" if (folder / "cache").is_dir() else folder), config
    workdir = config.workdir if config is not None else getattr(args, "workdir", None)
    if not workdir:
        raise UserError("Name a cache, a run's folder, or a config with --config=FILE.")
    return pathlib.Path(workdir) / "cache", config


def tokenizers_of(config: ml_collections.ConfigDict | None, manifest: Manifest) -> dict[str, ModalityTokenizer]:
    """The cache's own codecs, as far as they are at hand: of the config, else the registered ones of those names."""
    found = {}
    for modality, fingerprint in manifest.tokenizers.items():
        try:
            tokenizer = base.of_config(config)[modality] if config is not None else base.get(modality)
        except (UserError, KeyError):
            continue
        if tokenizer.fingerprint == fingerprint:
            found[modality] = tokenizer
    return found


def _sampled(cache: pathlib.Path, rows: list[dict[str, Any]], limit: int) -> Iterator[TokenRecord]:
    """Up to `limit` records of every task and split, evenly apart."""
    for row in rows:
        if not row["records"]:
            continue
        reader = CacheReader(cache, row["task"], row["split"])
        for i in np.unique(np.linspace(0, len(reader) - 1, min(limit, len(reader))).astype(int)):
            yield reader[int(i)]


def _text_of(cache: pathlib.Path, vocabulary: Vocabulary) -> TextTokenizer:
    text = TextTokenizer.load()
    if text.fingerprint != vocabulary.text_fingerprint:
        raise UserError(
            f"{cache} was made with another text tokenizer than this program's; tokenize again to read its text."
        )
    return text


def verify(cache: pathlib.Path) -> None:
    """Raises UserError, after naming every damaged file, if the cache is not as it was written."""
    found = 0
    for problem in inspect_verify.problems(cache):
        found += 1
        print(problem)
    if found:
        raise UserError(
            f"{cache} is damaged in {found} places, listed above; `anygpt tokenize` makes the shards of these again."
        )
    manifest = Manifest.load(cache)
    for path in inspect_verify.unlisted(cache, manifest):
        print(f"{path}: not in the manifest")
    shards = sum(len(shards) for splits in manifest.tasks.values() for shards in splits.values())
    print(f"{cache}: {shards} shards are whole")


def run(config: ml_collections.ConfigDict | None, args: argparse.Namespace) -> None:
    """Prints what the cache holds and, with --json, writes it; `config` is None where --config is not given.
    UserError if nothing names a cache, --verify finds damage, or the task or the record asked for is not there.
    """
    cache, config = place_of(config, args)
    if getattr(args, "verify", False):
        verify(cache)
        return
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
    record = getattr(args, "record", None)
    limit = getattr(args, "sample", 0)
    tokenizers = tokenizers_of(config, manifest) if limit or record is not None else {}
    if limit:
        grammars = {name: tokenizer.grammar for name, tokenizer in tokenizers.items()}
        counts = inspect_codebooks.count_codes(_sampled(cache, rows, limit), vocabulary)
        use = inspect_codebooks.codebook_use(counts, grammars)
        found["codebooks"] = [dataclasses.asdict(row) for row in use]
        print(f"\nuse of codebooks, in up to {limit:,} records of each task and split")
        print("\n".join(row.line() for row in use))
    if record is not None:
        path = _write_page(cache, manifest, vocabulary, tokenizers, args)
        print(f"\nrecord {record}: {path}")
    elif args.task:
        reader, text = CacheReader(cache, args.task, args.split), _text_of(cache, vocabulary)
        found["records"] = []
        for i in range(min(args.limit, len(reader))):
            shown = readable(reader[i], vocabulary, text)
            found["records"].append({"key": reader[i].key, "tokens": len(reader[i].tokens), "text": shown})
            print(f"\n{reader[i].key} ({len(reader[i].tokens)} tokens)\n  {shown}")
    if args.json:
        write_atomically(pathlib.Path(args.json), json.dumps(found, indent=1, ensure_ascii=False).encode())


def _write_page(
    cache: pathlib.Path,
    manifest: Manifest,
    vocabulary: Vocabulary,
    tokenizers: Mapping[str, ModalityTokenizer],
    args: argparse.Namespace,
) -> pathlib.Path:
    task = args.task or next((name for name in manifest.tasks if args.split in manifest.tasks[name]), "")
    reader = CacheReader(cache, task, args.split)
    if not 0 <= args.record < len(reader):
        raise UserError(f"{task}/{args.split} has no record {args.record}; it has 0 to {len(reader) - 1}.")
    name = re.sub(r"[^\w.-]", "_", f"{task}-{args.split}-{args.record}.html")
    path = pathlib.Path(args.html) if getattr(args, "html", None) else cache.parent / "inspect" / name
    shown = inspect_page.page(reader[args.record], vocabulary, _text_of(cache, vocabulary), tokenizers)
    write_atomically(path, shown.encode())
    return path
