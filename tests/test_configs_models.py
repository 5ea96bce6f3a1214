"""The configs of published models: each loads, and has exactly as many parameters as were published."""

from __future__ import annotations

import math
import pathlib

import jax
import pytest
from flax import nnx

from anygpt_jax.cli import load_config
from anygpt_jax.formats.registry import NAMES
from anygpt_jax.generation.request import Settings
from anygpt_jax.modalities import base
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.vocabulary import Vocabulary

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
LLAMA2, LLAMA3, SMOLLM2 = 32_000, 128_256, 49_152  # ids

# The counts on the models' Hugging Face pages; AnyGPT's is that of its 27.7 GB of float32 with 53,516 rows.
PUBLISHED = {
    "smollm2_135m.py": (SMOLLM2, 134_515_008),
    "llama2_7b.py": (LLAMA2, 6_738_415_616),
    "llama2_13b.py": (LLAMA2, 13_015_864_320),
    "llama2_70b.py": (LLAMA2, 68_976_648_192),
    "llama3_8b.py": (LLAMA3, 8_030_261_248),
    "llama3_8b.py:3.0": (LLAMA3, 8_030_261_248),
    "anygpt_7b.py": (53_516, 6_738_415_616 + 2 * 4096 * (53_516 - LLAMA2)),
}


def parameters(model: ModelConfig) -> int:
    state = nnx.state(nnx.eval_shape(lambda: Decoder(model, rngs=nnx.Rngs(0))), nnx.Param)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameters_are_the_published_number(name):
    c = load_config(str(CONFIGS / name))
    ids, published = PUBLISHED[name]
    vocabulary = Vocabulary.build(text_size=ids, text_fingerprint="", blocks=(), markers=())
    model = ModelConfig.from_config(dict(c.model) | {"vocab_multiple": 1}, vocabulary)
    assert parameters(model) == published
    assert c.kind == "decoder"
    # The heads of the larger configs and their batch divide over the mesh they name.
    assert c.train.batch_size % (c.mesh.slice * c.mesh.data * c.mesh.fsdp) == 0
    assert model.n_heads % c.mesh.tensor == model.n_kv_heads % c.mesh.tensor == 0
    assert c.tokenize.max_tokens <= c.train.seq_len


def test_anygpts_release_is_27_7_gigabytes():
    assert round(4 * PUBLISHED["anygpt_7b.py"][1] / 1e9, 1) == 27.7


def test_a_config_has_no_key_that_the_quickstart_has_not():
    """What the quickstart's verbs read is what there is; the two model settings for TPUs apart."""
    known = load_config(str(CONFIGS / "quickstart.py"))
    for name in PUBLISHED:
        c = load_config(str(CONFIGS / name))
        assert set(c) == set(known)
        assert set(c.model) - set(known.model) <= {"attention", "matmul_barriers", "rope_scaling"}
        for section in ("train", "tokenize", "generate", "evaluate", "data"):
            assert set(c[section]) == set(known[section])


@pytest.mark.parametrize(("stage", "seconds"), [("base", 20.0), ("chat", 5.0)])
def test_the_released_models_have_their_format_and_the_papers_decoding(stage, seconds):
    """Table 9 of arXiv 2402.12226: beams of five for text, top-p 0.7 for image and speech, 1.15 against repetition."""
    c = load_config(f"{CONFIGS / 'anygpt_7b.py'}:{stage}")
    settings = Settings.from_config(c.generate)
    assert c.format == f"anygpt-{stage}" and c.format in NAMES
    assert (settings.beams, settings.sampling["text"].temperature) == (5, 0.0)
    assert settings.sampling["image"].top_p == settings.sampling["speech"].top_p == 0.7
    assert settings.sampling["music"].repetition_penalty == 1.15
    assert c.tokenizers.music.seconds == seconds and set(c.tokenizers) == set(c.modalities)
    assert {c.tokenizers[m].entry for m in c.tokenizers} <= set(base.available())
