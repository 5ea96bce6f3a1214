"""`anygpt convert tokenizer`: published files of every form → our file → a modality tokenizer with the reference's codes."""

import json

import ml_collections
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import DacConfig, DacModel

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers import convert, files, kinds
from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import released, weights

CONFIG = {
    "encoder_hidden_size": 4, "decoder_hidden_size": 32, "n_codebooks": 3, "codebook_size": 32, "codebook_dim": 4,
    "downsampling_ratios": [2, 4], "sampling_rate": 16_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = DacModel(DacConfig(**CONFIG)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1 and "alpha" not in name:
                p.copy_(torch.randn_like(p) / np.sqrt(p[0].numel()))
    return model


def state(model):
    return {name: t.detach().clone().contiguous() for name, t in model.state_dict().items()}


def as_safetensors(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def as_shards(folder, tensors):
    names = sorted(tensors)
    groups = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, group in groups.items():
        safetensors.torch.save_file({n: tensors[n] for n in group}, folder / file)
    index = {"weight_map": {n: file for file, group in groups.items() for n in group}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def as_pickle(folder, tensors):
    torch.save(tensors, folder / "pytorch_model.bin")


def as_nested_pickle(folder, tensors):
    torch.save({"state_dict": tensors, "metadata": {"kwargs": {"n_codebooks": 3}}}, folder / "weights.pth")


def as_two_precisions(folder, tensors):
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    safetensors.torch.save_file({n: t.half() for n, t in tensors.items()}, folder / "model.fp16.safetensors")


FORMS = [as_safetensors, as_shards, as_pickle, as_nested_pickle, as_two_precisions]


def published(folder, model, form=as_safetensors, change=lambda tensors: tensors):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    form(folder, change(state(model)))
    return folder


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_published_files_of_every_form_are_read(form, model, tmp_path):
    folder = published(tmp_path / "dac", model, form)
    command = [
        "convert",
        "tokenizer",
        "--from",
        str(folder),
        "--kind",
        "dac",
        "--to",
        str(tmp_path / "dac.safetensors"),
    ]
    assert cli.main([*command, "--json", str(tmp_path / "summary.json")]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["kind"] == "dac" and summary["official_tensors"] == len(model.state_dict())
    kind, official = kinds.get("dac"), {n: t.numpy() for n, t in state(model).items()}
    layout = kind.layout(summary["settings"])
    found, _ = weights.read(tmp_path / "dac.safetensors")
    assert found.keys() == layout.keys()
    for path, rule in layout.items():
        how = rule.choose(official)
        np.testing.assert_array_equal(found[path], how.make(*(official[n] for n in how.names)))


def test_a_converted_tokenizer_gives_the_codes_of_the_reference(model, tmp_path):
    convert.convert([published(tmp_path / "dac", model)], "dac", tmp_path / "dac.safetensors")
    config = ml_collections.ConfigDict({"modalities": ("music",)})
    config.tokenizers = {"music": {"entry": "dac", "weights": str(tmp_path / "dac.safetensors"), "seconds": 1.0}}
    tokenizer = base.of_config(config)["music"]
    assert isinstance(tokenizer, base.ModalityTokenizer)
    assert (tokenizer.name, tokenizer.symbol, tokenizer.codebook_size) == ("music", "🎶", 96)
    assert tokenizer.rate == 3 * 16_000 / 8
    rng = np.random.default_rng(0)
    sounds = [Audio(rng.normal(0, 0.3, n).astype(np.float32), 16_000) for n in (4000, 161, 8)]
    for sound, codes in zip(sounds, tokenizer.encode(sounds), strict=True):
        whole = np.pad(sound.samples, (0, -len(sound.samples) % 8))  # as Transformers' feature extractor does
        with torch.no_grad():
            theirs = model.encode(torch.from_numpy(whole)[None, None]).audio_codes[0].numpy()
        assert tokenizer.grammar.problem(codes) is None
        agreement = (codes.reshape(-1, 3) % 32 == theirs.T).mean()
        assert agreement > 0.99, "codes may differ only where two are equally near"
        assert len(tokenizer.decode([codes])[0].samples) == len(theirs.T) * 8


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_sources_are_read(dtype, error, model, tmp_path):
    exact = published(tmp_path / "exact", model)
    half = published(tmp_path / "half", model, as_pickle, lambda tensors: {n: t.to(dtype) for n, t in tensors.items()})
    for folder in (exact, half):
        convert.convert([folder], "dac", folder / "w.safetensors")
    for name, tensor in weights.read(exact / "w.safetensors")[0].items():
        rounded = weights.read(half / "w.safetensors")[0][name]
        assert rounded.dtype == np.float32
        np.testing.assert_allclose(rounded, tensor, rtol=error, atol=error)


def test_a_file_is_refused_with_all_that_is_missing_and_all_that_is_left_over(model, tmp_path):
    def change(tensors):
        del tensors["encoder.conv1.bias"], tensors["decoder.conv2.bias"]
        return tensors | {"head.weight": torch.zeros(2)}

    folder = published(tmp_path / "dac", model, change=change)
    with pytest.raises(UserError) as e:
        convert.convert([folder], "dac", tmp_path / "w.safetensors")
    assert "Missing (2): decoder.conv2.bias, encoder.conv1.bias." in str(e.value)
    assert "Unexpected (1): head.weight." in str(e.value)
    assert [p.name for p in tmp_path.iterdir()] == ["dac"]


def test_a_tensor_of_another_shape_is_named_and_leaves_nothing_behind(model, tmp_path):
    folder = published(tmp_path / "dac", model, change=lambda t: t | {"decoder.conv2.bias": torch.zeros(7)})
    with pytest.raises(UserError, match=r"decoder\.conv2\.bias gives .* the shape \[7\], which should be \[1\]"):
        convert.convert([folder], "dac", tmp_path / "w.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["dac"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "nowhere", "--kind", "dac"], "No file or folder nowhere"),
        (["--kind", "dac"], "needs --from PATH and --kind NAME"),
        (["--from", "empty", "--kind", "dac"], "No weights in empty"),
        (["--from", "empty", "--kind", "unclip"], "No folder empty/unet"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert cli.main(["convert", "tokenizer", *arguments, "--to", "w.safetensors"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--step", "0"], ["--ema"], ["--noise", "0.5"], ["--vocab-multiple", "8"], ["--format", "orbax"]]
)
def test_flags_of_models_are_refused_for_a_tokenizer(flags, model, tmp_path, capsys):
    source = ["--from", str(published(tmp_path / "dac", model)), "--kind", "dac"]
    assert cli.main(["convert", "tokenizer", *source, "--to", str(tmp_path / "w.safetensors"), *flags]) == 2
    assert f"without {flags[0]}: that is for models" in capsys.readouterr().err
    assert not (tmp_path / "w.safetensors").exists()


def test_what_exists_is_not_overwritten_and_another_kind_is_refused(model, tmp_path):
    folder = published(tmp_path / "dac", model)
    convert.convert([folder], "dac", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="exists"):
        convert.convert([folder], "dac", tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="holds dac, and encodec is needed"):
        released.load(tmp_path / "w.safetensors", "encodec")
    with pytest.raises(UserError, match=r"weights.*needed"):
        released.load(weights.SHIPPED / "music.safetensors", "encodec")


def test_two_files_with_one_tensor_are_refused(model, tmp_path):
    first, second = published(tmp_path / "a", model), published(tmp_path / "b", model)
    with pytest.raises(UserError, match="which another file named by --from holds too"):
        files.read([first / "model.safetensors", second / "model.safetensors"])


def test_wrong_settings_of_a_tokenizer_are_named():
    with pytest.raises(UserError, match=r"'music' are wrong.*weights"):
        base.get("music", weights="x")
    config = ml_collections.ConfigDict({"modalities": ("image",), "tokenizers": {"music": {"entry": "dac"}}})
    with pytest.raises(UserError, match=r"names music, which config\.modalities does not"):
        base.of_config(config)


def test_settings_in_lists_and_dictionaries_are_named_too(monkeypatch):
    def with_setting(value):
        tokenizers = {"music": {"weights": value}}
        return ml_collections.ConfigDict({"modalities": ("music",), "tokenizers": tokenizers})

    with pytest.raises(UserError, match=r"'music' are wrong.*weights"):
        base.of_config(with_setting(["a", "b"]))
    with pytest.raises(UserError, match=r"config\.tokenizers\.music\.weights must be .*, not a ConfigDict"):
        base.of_config(with_setting({"codec": "a"}))
    with pytest.raises(UserError, match=r"config\.tokenizers\.music\.weights must be .*, not a dict"):
        base.of_config(with_setting([{"codec": "a"}]))

    # A tokenizer that takes a list gets its members, and is still made once.
    made = []

    class Point:
        def load(self):
            return lambda modality, levels: made.append((modality, levels)) or object()

    monkeypatch.setattr(base, "_entry_points", lambda: {"listed": Point()})
    settings = {"entry": "listed", "levels": [1, [2, 3]]}
    config = ml_collections.ConfigDict({"modalities": ("taste",), "tokenizers": {"taste": settings}})
    assert base.of_config(config)["taste"] is base.of_config(config)["taste"]
    assert made == [("taste", (1, (2, 3)))]


@pytest.mark.parametrize("name", sorted(kinds.KINDS))
def test_every_kind_has_its_reader(name):
    kind = kinds.get(name)
    assert callable(kind.settings) and callable(kind.build) and callable(kind.layout)
