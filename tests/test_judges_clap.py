"""CLAP as a judge against Transformers' ClapModel, feature extractor and tokenizer, on tiny random networks."""

import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from tokenizers import pre_tokenizers

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges import clap, clap_network
from anygpt_jax.evaluation.judges.clap import Clap
from anygpt_jax.evaluation.judges.clap_mels import ClapMels
from anygpt_jax.evaluation.judges.clap_network import ClapConfig, ClapNetwork
from anygpt_jax.evaluation.judges.clap_swin import stretching
from anygpt_jax.modalities.audio import resample
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["a slow piano", "", "Two  drums, 'n' 33 ÄPFEL!", "the piano is slow " * 20]


def vocabulary():
    """RoBERTa's special tokens, bytes and two merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters, "pi", "pia"]
    return {piece: i for i, piece in enumerate(pieces)}, [("p", "i"), ("pi", "a")]


def randomized(model, seed=0):
    """Every parameter random, norms' scales and running statistics too, so that none can be forgotten; biases are small,
    or what is pooled would be nearly the same for all."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim > 1:
                p.copy_(noise / math.sqrt(math.prod(p.shape[1:])))
            else:
                p.copy_(1 + 0.3 * noise if name.endswith("weight") else 0.1 * noise)
        bn = model.audio_model.audio_encoder.batch_norm
        bn.running_mean.copy_(10 * torch.randn(bn.running_mean.shape, generator=generator) - 40)
        bn.running_var.copy_(300 * torch.rand(bn.running_var.shape, generator=generator) + 100)
    return model.eval()


def save(folder, seconds=2):
    """A tiny ClapModel's folder as Transformers writes it; returns (the model, the tokenizer, the feature extractor)."""
    vocab, merges = vocabulary()
    config = transformers.ClapConfig(
        text_config={
            "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "hidden_size": 24,
            "vocab_size": len(vocab), "max_position_embeddings": 90, "layer_norm_eps": 1e-4,
        },
        audio_config={
            "window_size": 4, "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4],
            "hidden_size": 64, "depths": [2, 3, 1], "num_attention_heads": [2, 2, 4], "patch_embeds_hidden_size": 16,
            "mlp_ratio": 2.0, "layer_norm_eps": 1e-4,
        },
        projection_dim=12,
    )  # fmt: skip
    model = randomized(transformers.ClapModel(config))
    model.save_pretrained(folder)
    tokenizer = transformers.RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, max_length_s=seconds, frequency_min=50, truncation="rand_trunc"
    )
    extractor.save_pretrained(folder)
    return model, tokenizer, extractor


def noise(seconds, seed=0, rate=48_000):
    """Falling noise with a tone in it, so that neither mels nor frames are alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    samples = 0.1 * rng.standard_normal(len(t)) * np.exp(-t) + 0.3 * np.sin(2 * np.pi * 300 * (seed + 1) * t)
    return Audio(samples.astype(np.float32), rate)


SOUNDS = [noise(2.0), noise(0.7, 1), noise(1.999, 2), noise(1.1, 3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    return folder, *save(folder)


@pytest.fixture(scope="module")
def judge(made):
    return Clap.load(made[0])


@pytest.fixture
def copy(made, tmp_path):
    """The folder, to be changed."""
    for file in made[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_vectors_are_those_of_transformers(made, judge):
    _, model, tokenizer, extractor = made
    with torch.no_grad():
        features = extractor([s.samples for s in SOUNDS], sampling_rate=48_000, return_tensors="pt")
        sounds = model.get_audio_features(**features).pooler_output.numpy()
        ids = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        texts = model.get_text_features(**ids).pooler_output.numpy()
    assert ids["input_ids"].shape[1] == clap.TOKENS  # the longest text is cut off
    np.testing.assert_allclose(judge.sounds(SOUNDS), sounds, atol=1e-5)
    np.testing.assert_allclose(judge.texts(TEXTS), texts, atol=1e-5)
    assert np.abs(texts[0] - texts[2]).max() > 0.01 and np.abs(sounds[0] - sounds[1]).max() > 0.01


@pytest.mark.parametrize(("seconds", "frequency"), [(10.0, 50), (3.3, 50), (0.01, 0), (9.999, 0)])
def test_mels_are_those_of_transformers(tmp_path, seconds, frequency):
    extractor = transformers.ClapFeatureExtractor(frequency_min=frequency, truncation="rand_trunc")
    (tmp_path / "p.json").write_text(extractor.to_json_string())
    sound = noise(seconds)
    theirs = extractor(sound.samples, sampling_rate=48_000)["input_features"][0][0]
    assert theirs.shape == (1001, 64)
    np.testing.assert_allclose(ClapMels.from_json(tmp_path / "p.json")(sound), theirs, atol=1e-4)


def test_the_beginning_of_a_longer_sound_is_heard_and_other_rates_are_resampled(judge):
    long = noise(3.5)
    np.testing.assert_array_equal(judge.sounds([long]), judge.sounds([Audio(long.samples[:96_000], 48_000)]))
    low = noise(1.3, rate=16_000)
    np.testing.assert_array_equal(judge.sounds([low]), judge.sounds([resample(low, 48_000)]))
    silence = ClapMels()(Audio(np.zeros(100, np.float32), 48_000))
    np.testing.assert_array_equal(silence, np.full((1001, 64), -100, np.float32))
    with pytest.raises(ValueError, match="no samples"):
        judge.sounds([Audio(np.zeros(0, np.float32), 48_000)])


def test_any_number_of_items_in_any_company(judge):
    assert judge.sounds([]).shape == judge.texts([]).shape == (0, 12)
    found = judge.sounds(SOUNDS * 5)  # more than two batches
    np.testing.assert_array_equal(found, np.tile(judge.sounds(SOUNDS), (5, 1)))
    np.testing.assert_array_equal(judge.texts(TEXTS * 5)[-1], judge.texts(TEXTS[-1:])[0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(("frames", "out"), [(201, 256), (1001, 1024)])
def test_a_spectrogram_is_stretched_as_pytorch_does(frames, out):
    lines = np.random.default_rng(0).normal(0, 20, (frames, 5)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(lines)[None, None], (out, 5), mode="bicubic", align_corners=True
    )
    np.testing.assert_allclose(stretching(frames, out) @ lines, theirs[0, 0], atol=1e-4)


def test_every_tensor_of_the_release_has_its_place(tmp_path):
    config = transformers.ClapConfig()
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        official = {name: tuple(x.shape) for name, x in transformers.ClapModel(config).state_dict().items()}
    ours = ClapConfig.from_json(tmp_path / "config.json")
    assert (ours.audio.depths, ours.audio.widths[-1], ours.text.layers, ours.projection) == ((2, 2, 6, 2), 768, 12, 512)
    network = nnx.eval_shape(lambda: ClapNetwork(ours, rngs=weights.rngs()))
    expected = {weights.dotted(k): v.shape for k, v in nnx.to_flat_state(nnx.state(network))}
    layout, used = clap_network.layout(ours), set()
    assert layout.keys() == expected.keys()
    for path, rule in layout.items():
        names = rule.choose(official).names
        used |= set(names)
        shape = rule.choose(official).make(*(np.broadcast_to(np.int8(0), official[name]) for name in names)).shape
        assert shape == expected[path]
    left = {re.sub(r"\d+", "0", name.rpartition(".")[2]) for name in official.keys() - used}
    assert left <= {
        "logit_scale_a", "logit_scale_t", "position_ids", "token_type_ids", "relative_position_index",
        "num_batches_tracked",
    }  # fmt: skip


def test_weights_of_another_network_are_refused_in_one_sentence(copy):
    path = copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    lost, extra = "audio_model.audio_encoder.layers.0.downsample.reduction.weight", "text_model.adapter.weight"
    changed = {name: x for name, x in tensors.items() if name != lost} | {extra: np.zeros(3, np.float32)}
    safetensors.numpy.save_file(changed, path)
    message = rf"lacks 1 of [^(]*\({re.escape(lost)}\) and holds 1 unknown to it \({re.escape(extra)}\); [^.]*\.$"
    with pytest.raises(UserError, match=message):
        Clap.load(copy)
    name = "audio_projection.linear1.weight"
    safetensors.numpy.save_file(tensors | {name: np.zeros((12, 63), np.float32)}, path)
    with pytest.raises(UserError, match=rf"{re.escape(name)} .*one and the same network"):
        Clap.load(copy)


@pytest.mark.parametrize(
    ("file", "part", "change", "message"),
    [
        ("config.json", None, {"model_type": "clip"}, "'clip' model"),
        ("config.json", "audio_config", {"enable_fusion": True}, r"fusion of several crops \(enable_fusion\)[^.]*\.$"),
        ("config.json", "audio_config", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("config.json", "audio_config", {"window_size": 3}, "windows of 3"),
        ("config.json", "audio_config", {"patch_stride": [2, 2]}, "patches of 4 lie 2 apart"),
        ("config.json", "audio_config", {"hidden_size": 32}, "width 32"),
        ("config.json", "text_config", {"num_attention_heads": 5}, "5 heads"),
        ("preprocessor_config.json", None, {"truncation": "fusion"}, "truncation 'rand_trunc'"),
        ("preprocessor_config.json", None, {"padding": "repeat"}, "padding 'repeatpad'"),
        ("preprocessor_config.json", None, {"max_length_s": 10}, "makes 1001 frames"),
        ("tokenizer.json", None, {"post_processor": None}, "empty text"),
        ("tokenizer.json", None, {"model": 1}, "not a tokenizer"),
    ],
)
def test_files_that_do_not_fit_are_refused(copy, file, part, change, message):
    path = copy / file
    config = json.loads(path.read_text())
    (config if part is None else config[part]).update(change)
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        Clap.load(copy)
    path.unlink()
    with pytest.raises(UserError, match=re.escape(file)):
        Clap.load(copy)
