"""Text alone: perplexity against one token after another, words by hand, and a config that has nothing but text."""

import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from anygpt_jax import cli
from anygpt_jax.cache import Manifest, write_shard
from anygpt_jax.evaluation.perplexity import BATCH_TOKENS, text_perplexity, token_nll
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.kv_cache import init_cache
from anygpt_jax.templates import Formatter, Segment
from anygpt_jax.training.checkpoints import Checkpoints
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

SPLIT = "test"
CONFIG = """
import importlib.util, ml_collections

def get_config():
    spec = importlib.util.spec_from_file_location("quickstart", "QUICKSTART")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    c = module.get_config("small")
    c.workdir = "WORKDIR"
    c.tokenize.tasks = ("image_captions", "sentences")
    c.mixture = ml_collections.ConfigDict({"image_captions": 0.5, "sentences": 0.5})
    c.model.update(d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)
    return c
"""
CAPTIONS = [
    "a small fox on a blue background",
    "a large red tree",
    "a flute",
    " ".join(["a piano on a green one"] * 12),
]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    text = TextTokenizer.load()
    blocks = [BlockSpec("image", 12)]
    return Vocabulary.build(text_size=text.size, text_fingerprint=text.fingerprint, blocks=blocks)


@pytest.fixture(scope="module")
def decoder(vocabulary) -> Decoder:
    config = ModelConfig(vocabulary.padded_size(16), 16, 2, 2, 1, 8, 24, tied_embeddings=True, qk_norm=True)
    model = Decoder(config, rngs=nnx.Rngs(0))
    model.embedding[...] = model.embedding[...] * 20  # far from uniform
    return model


def _caption(vocabulary, i, caption):
    segments = [Segment("text", caption, "document", True)]
    return Formatter(vocabulary, TextTokenizer.load()).record(f"c{i}", "image_captions", segments)


def _dialogue(vocabulary):
    segments = [
        Segment("text", "please draw a red fox", "human"),
        Segment("text", "a red fox", "assistant", True),
        Segment("image", np.arange(5), "assistant", True),
        Segment("text", "which color is behind it", "human"),
        Segment("text", "it is blue", "assistant", True),
    ]
    return Formatter(vocabulary, TextTokenizer.load()).record("d0", "dialogues", segments)


@nnx.jit
def _decode(decoder, token, position, cache):
    return decoder.decode(token, position, cache)


def _step_by_step(decoder: Decoder, tokens: np.ndarray) -> list[float]:
    """-log p of every token but the first, by generation's own way: one token at a time into a cache."""
    cache, nll = init_cache(decoder.config, 1, 128), []
    assert len(tokens) <= 128
    for i, token in enumerate(tokens[:-1]):
        logits, cache = _decode(decoder, jnp.array([[token]]), jnp.array([[i]]), cache)
        row = np.asarray(logits[0, 0], np.float64)
        nll.append(float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[tokens[i + 1]]))
    return nll


def test_every_token_as_when_one_comes_after_another(decoder, vocabulary):
    records = [_caption(vocabulary, i, caption) for i, caption in enumerate(CAPTIONS)]
    found = dict((record.key, nll) for record, nll in token_nll(decoder, records))
    assert set(found) == {"c0", "c1", "c2", "c3"}
    for record in records:
        np.testing.assert_allclose(found[record.key][1:], _step_by_step(decoder, record.tokens), atol=2e-5)
        assert found[record.key][0] == 0


def test_more_records_than_a_batch_holds_and_of_many_lengths(decoder, vocabulary):
    words = ["a", "fox", "and", "a", "tree", "and", "a", "flute", "on", "a", "blue", "background"]
    records = [_caption(vocabulary, i, " ".join(np.resize(words, 1 + i % 90))) for i in range(180)]
    assert sum(len(record.tokens) for record in records) > 1.5 * BATCH_TOKENS
    together = {record.key: nll.sum() for record, nll in token_nll(decoder, records)}
    assert len(together) == 180
    for record in records[::59]:
        [(_, alone)] = token_nll(decoder, [record])
        assert together[record.key] == pytest.approx(alone.sum(), rel=1e-5)


def _write(cache: pathlib.Path, vocabulary: Vocabulary, tasks) -> None:
    shards = {task: {SPLIT: [write_shard(cache, f"{task}/{SPLIT}/00000-of-00001", rs)]} for task, rs in tasks.items()}
    Manifest(vocabulary.fingerprint, vocabulary.text_fingerprint, {}, shards).save(cache)


def test_perplexity_of_a_split(decoder, vocabulary, tmp_path):
    captions = [_caption(vocabulary, i, caption) for i, caption in enumerate(CAPTIONS)]
    _write(tmp_path, vocabulary, {"image_captions": captions, "dialogues": [_dialogue(vocabulary)]})
    text = TextTokenizer.load()
    found = text_perplexity(decoder, vocabulary, text, tmp_path, "image_captions", SPLIT)
    nats = sum(sum(_step_by_step(decoder, record.tokens)) for record in captions)
    tokens = sum(len(text.encode(caption)) + 1 for caption in CAPTIONS)  # and the one that ends it
    words = sum(len(caption.split()) for caption in CAPTIONS)
    assert (found["n"], found["tokens"], found["words"]) == (4, tokens, words)
    assert found["perplexity_per_word"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    assert found["perplexity_per_token"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)


def test_of_dialogues_the_assistants_text_alone(decoder, vocabulary, tmp_path):
    record, text = _dialogue(vocabulary), TextTokenizer.load()
    _write(tmp_path, vocabulary, {"dialogues": [record]})
    found = text_perplexity(decoder, vocabulary, text, tmp_path, "dialogues", SPLIT)
    nll, ids = _step_by_step(decoder, record.tokens), list(record.tokens)
    opening = [i for i, token in enumerate(ids) if token == vocabulary.marker("[AnyGPT]")]
    first, second = len(text.encode("a red fox")), len(text.encode("it is blue"))
    ends = [i for i, token in enumerate(ids) if token == vocabulary.marker("<eos>")]
    where = [*range(opening[0] + 1, opening[0] + 1 + first), *range(opening[1] + 1, opening[1] + 1 + second), *ends]
    assert (found["tokens"], found["words"]) == (first + second + 2, 6)
    assert found["nats"] == pytest.approx(sum(nll[i - 1] for i in where), rel=1e-4)


def test_a_run_of_text_alone_is_evaluated_by_its_text_alone(tmp_path, capsys):
    quickstart = pathlib.Path(__file__).parents[1] / "configs" / "quickstart.py"
    path = tmp_path / "text.py"
    path.write_text(CONFIG.replace("QUICKSTART", str(quickstart)).replace("WORKDIR", str(tmp_path / "run")))
    config, text = cli.load_config(str(path)), TextTokenizer.load()
    from anygpt_jax.modalities import base

    blocks = [BlockSpec(name, t.codebook_size, t.symbol) for name, t in base.of_config(config).items()]
    vocabulary = Vocabulary.build(text_size=text.size, text_fingerprint=text.fingerprint, blocks=blocks)
    model = Decoder(ModelConfig.from_config(config.model, vocabulary), rngs=nnx.Rngs(0))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(3, {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))}, config, vocabulary)
    checkpoints.close()
    captions = [_caption(vocabulary, i, caption) for i, caption in enumerate(CAPTIONS)]
    _write(tmp_path / "run" / "cache", vocabulary, {"image_captions": captions, "sentences": captions[:2]})
    assert cli.main(["evaluate", f"--config={path}"]) == 0
    measured = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["quickstart"]
    assert measured["matrix"] == measured["hard"] == measured["tokenizers"] == {}
    assert "dialogues" not in measured and measured["step"] == 3
    assert {task: e["n"] for task, e in measured["text"].items()} == {"image_captions": 4, "sentences": 2}
    # Small random weights: nearly uniform over the vocabulary's own ids.
    assert measured["text"]["sentences"]["perplexity_per_token"] == pytest.approx(vocabulary.size, rel=0.1)
    out = capsys.readouterr().out
    assert "sentences         perplexity" in out and "pair" not in out
    assert cli.main(["report", f"--config={path}"]) == 0
    assert "Text alone" in (tmp_path / "run" / "report" / "index.html").read_text()
