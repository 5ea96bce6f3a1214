"""Hugging Face folders: config.json, weights in one file or in shards with an index, the tokenizer's files."""

from __future__ import annotations

import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from anygpt_jax.errors import UserError
from anygpt_jax.interop import added_tokens, hf_config, pickles, safetensors_files
from anygpt_jax.interop.layout import check, their_shapes
from anygpt_jax.interop.orbax_sink import write_files
from anygpt_jax.interop.source import DTYPES, Source, Tensor
from anygpt_jax.vocabulary import Vocabulary

TOKENIZER_FILES = (
    "added_tokens.json", "chat_template.jinja", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json",
)  # fmt: skip
SHARD_BYTES = 5 << 30


def open_folder(folder: pathlib.Path) -> Source:
    """A LLaMA-family folder; safetensors are preferred to pickles. UserError says what is missing."""
    config = _json(folder / "config.json")
    model = hf_config.read_model(config, str(folder / "config.json"))
    tokenizer = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    generation = folder / "generation_config.json"
    ids = _special_ids(config | (_json(generation) if generation.is_file() else {}))
    base = text_vocabulary(model.vocab_size, ids, tokenizer)
    vocabulary = base
    if "added_tokens.json" in tokenizer:
        where = folder / "added_tokens.json"
        vocabulary = added_tokens.vocabulary_of(_json(where), base, str(where))
        if vocabulary.size > model.vocab_size:
            raise UserError(
                f"{where} has ids up to {vocabulary.size - 1} and the embedding {model.vocab_size} rows; "
                "take both from the same model."
            )
    context = config.get("max_position_embeddings", 0)
    return check(Source(folder, model, _weights(folder), vocabulary, tokenizer, context))


def _special_ids(config: Mapping[str, Any]) -> dict[str, int]:
    """pad, bos and eos. Llama 3 names several ends, of which the first counts, and no padding: the end stands in."""

    def first(name: str) -> int | None:
        value = config.get(f"{name}_token_id")
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) and value >= 0 else None

    bos, eos, pad = first("bos"), first("eos"), first("pad")
    eos = 2 if eos is None else eos
    return {"pad": eos if pad is None else pad, "bos": eos if bos is None else bos, "eos": eos}


def text_vocabulary(rows: int, ids: Mapping[str, int], tokenizer: Mapping[str, bytes]) -> Vocabulary:
    """Every row a text piece. The fingerprint is the SHA-256 of the tokenizer's model, as the text tokenizer's is."""
    model = tokenizer.get("tokenizer.model", tokenizer.get("tokenizer.json"))
    fingerprint = hashlib.sha256(model).hexdigest() if model else ""
    return Vocabulary.build(text_size=rows, text_fingerprint=fingerprint, blocks=(), markers=(), **ids)


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"No {path.name} in {path.parent}; name a folder with a model in Hugging Face's layout.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path} is not JSON ({e}); copy or download it again.") from e


def _weights(folder: pathlib.Path) -> dict[str, Tensor]:
    for stem, suffix, read in (
        ("model", "safetensors", safetensors_files.read),
        ("pytorch_model", "bin", pickles.read),
    ):
        index, single = folder / f"{stem}.{suffix}.index.json", folder / f"{stem}.{suffix}"
        if index.is_file():
            return _sharded(index, read)
        if single.is_file():
            return read(single)
    raise UserError(f"No weights in {folder}; it needs model.safetensors, pytorch_model.bin or shards and an index.")


def _sharded(index: pathlib.Path, read: Any) -> dict[str, Tensor]:
    placed: dict[str, str] = _json(index).get("weight_map", {})
    shards = {}
    for file in sorted(set(placed.values())):
        if pathlib.PurePath(file).name != file or not (index.parent / file).is_file():
            raise UserError(f"{index} names {file}, which is not in {index.parent}; copy or download it.")
        shards[file] = read(index.parent / file)
    missing = sorted(name for name, file in placed.items() if name not in shards[file])
    if missing:
        raise UserError(f"{placed[missing[0]]} does not hold {missing[0]}, as {index} says; copy or download it again.")
    return {name: shards[file][name] for name, file in placed.items()}


def shards(tensors: Mapping[str, Tensor], dtype: np.dtype, limit: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in order, in groups of at most `limit` bytes (a larger tensor is alone)."""
    group: dict[str, Tensor] = {}
    held = 0
    for name, tensor in tensors.items():
        size = int(np.prod(tensor.shape)) * dtype.itemsize
        if group and held + size > limit:
            yield group
            group, held = {}, 0
        group[name] = tensor
        held += size
    yield group


def save(source: Source, folder: pathlib.Path, dtype: str, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a folder that AutoModelForCausalLM loads, whole or not at all. UserError if there is one already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; name a new folder with --to.")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: source.tensors[name] for name in their_shapes(source.model)}
    groups = list(shards(tensors, DTYPES[dtype], shard_bytes))
    total = sum(int(np.prod(t.shape)) for t in tensors.values()) * DTYPES[dtype].itemsize
    weight_map: dict[str, str] = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="writing", disable=None) as progress:
        for i, group in enumerate(groups):
            name = "model.safetensors" if len(groups) == 1 else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
            safetensors_files.write(partial / name, group, DTYPES[dtype], progress)
            weight_map |= dict.fromkeys(group, name)
    if len(groups) > 1:
        _write_json(
            partial / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    v = source.vocabulary
    ids = {"pad": v.pad, "bos": v.bos, "eos": v.eos}
    _write_json(partial / "config.json", hf_config.write_model(source.model, dtype, source.context, ids))
    _write_json(partial / "generation_config.json", {f"{name}_token_id": token for name, token in ids.items()})
    write_files(source.tokenizer, partial)
    if v.size > v.text_size and "added_tokens.json" not in source.tokenizer:
        _write_json(partial / "added_tokens.json", added_tokens.tokens_of(v))
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
