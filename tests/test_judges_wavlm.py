"""WavLM as a judge of voices against Transformers' WavLMForXVector and feature extractor, on random networks."""

import json
import math
import re
import types

import numpy as np
import pytest
import safetensors.numpy
import soundfile
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges import wavlm, wavlm_network
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.judges.wavlm import Wavlm
from anygpt_jax.evaluation.judges.wavlm_network import WavlmConfig, WavlmNetwork, position_buckets
from anygpt_jax.evaluation.protocols import vctk
from anygpt_jax.interop.tokenizers import files
from anygpt_jax.modalities.audio import resample
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import released, weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40, "layer_norm_eps": 1e-4,
    "conv_dim": [16, 12, 20], "conv_kernel": [10, 5, 8], "conv_stride": [5, 4, 16], "num_conv_pos_embeddings": 10,
    "num_conv_pos_embedding_groups": 3, "num_buckets": 16, "max_bucket_distance": 40, "tdnn_dim": [18, 14, 22],
    "tdnn_kernel": [5, 3, 1], "tdnn_dilation": [1, 3, 1], "xvector_output_dim": 12, "use_weighted_layer_sum": True,
}  # fmt: skip


def randomized(model, seed=0):
    """Every parameter random, norms' scales and gates too, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "original0" in name:  # the lengths of a weight norm are positive
                p.copy_(1 + 0.3 * noise.abs())
            elif p.ndim > 1 and "rel_attn_embed" not in name and "gru_rel_pos_const" not in name:
                p.copy_(noise / math.sqrt(math.prod(p.shape[1:])))
            else:
                p.copy_(0.3 * noise + (1 if p.ndim == 1 and name.endswith("weight") else 0))
    return model.eval()


def save(folder, normalize=False, **changes):
    """A WavLMForXVector's folder as Transformers writes it; returns (the model, the feature extractor)."""
    torch.set_num_threads(1)  # threads that wait for work would take it from JAX's
    model = randomized(transformers.WavLMForXVector(transformers.WavLMConfig(**{**TINY, **changes})))
    model.save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=True)
    extractor.save_pretrained(folder)
    return model, extractor


def voice(seconds, seed=0, rate=16_000):
    """Modulated noise with a tone in it and an offset, so that neither frames nor levels are alike."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    samples = 0.1 * rng.normal(size=t.size) * (1.2 + np.sin(9 * t + seed)) + 0.2 * np.sin(700 * (seed + 1) * t) + 0.05
    return Audio(samples.astype(np.float32), rate)


SOUNDS = [voice(1.3), voice(0.4, 1), voice(2.0, 2), voice(2.7137, 3)]


def expected(model, extractor, sounds):
    """Of each sound by itself, of unit length."""
    found = []
    for sound in sounds:
        inputs = extractor(sound.samples, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            found.append(torch.nn.functional.normalize(model(**inputs).embeddings, dim=-1)[0].numpy())
    return np.stack(found)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm")
    return folder, *save(folder)


@pytest.fixture(scope="module")
def judge(made):
    return Wavlm.load(made[0])


@pytest.fixture
def copy(made, tmp_path):
    """The folder, to be changed."""
    for file in made[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_the_vectors_are_those_of_transformers(made, judge):
    theirs = expected(*made[1:], SOUNDS)
    found = judge.embed(SOUNDS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, theirs, atol=1e-5)
    assert min(np.abs(a - b).max() for i, a in enumerate(theirs) for b in theirs[:i]) > 0.01


def test_normalized_sounds_the_last_layer_alone_and_odd_kernels(tmp_path):
    model, extractor = save(tmp_path, True, use_weighted_layer_sum=False, num_conv_pos_embeddings=7)
    np.testing.assert_allclose(Wavlm.load(tmp_path).embed(SOUNDS), expected(model, extractor, SOUNDS), atol=1e-5)


@pytest.mark.slow
def test_the_released_shapes_give_transformers_vectors(tmp_path):
    model, extractor = save(tmp_path, **{key: getattr(transformers.WavLMConfig(), key) for key in TINY} | {
        "use_weighted_layer_sum": True})  # fmt: skip
    sounds = [voice(3.1), voice(1.7, 1)]
    np.testing.assert_allclose(Wavlm.load(tmp_path).embed(sounds), expected(model, extractor, sounds), atol=1e-5)


@pytest.mark.parametrize(("buckets", "distance"), [(320, 800), (16, 40), (32, 128)])
def test_offsets_have_the_rows_that_they_were_learned_with(buckets, distance):
    modeling = transformers.models.wavlm.modeling_wavlm
    attention = modeling.WavLMAttention(8, 2, num_buckets=buckets, max_distance=distance)
    offsets = np.arange(-4000, 4001)
    theirs = attention._relative_positions_bucket(torch.from_numpy(offsets)).numpy()
    assert set(theirs) >= {1, buckets // 2 - 1, buckets - 1}
    np.testing.assert_array_equal(position_buckets(offsets, buckets, distance), theirs)


def test_what_follows_a_sound_in_its_row_changes_nothing(made, judge):
    config = WavlmConfig.from_json(made[0] / "config.json")
    tensors, ignored = files.read([made[0]]).tensors, wavlm_network.IGNORED
    network = judges.filled(
        lambda: WavlmNetwork(config, rngs=weights.rngs()), wavlm_network.layout(config), tensors, ignored, "the folder"
    )
    run = released.program(WavlmNetwork.__call__, network, exact=True)
    samples = np.stack([voice(1, seed).samples for seed in range(3)])
    lengths = np.array([config.shortest, 9_001, 16_000], np.int32)
    alone = judge.embed([Audio(row[:n], 16_000) for row, n in zip(samples, lengths, strict=True)])
    np.testing.assert_allclose(run(samples, lengths), alone, atol=2e-6)


def test_the_shortest_sound_is_the_shortest_that_transformers_takes(made, judge):
    _, model, extractor = made
    n = WavlmConfig.from_json(made[0] / "config.json").shortest
    least = Audio(SOUNDS[0].samples[:n], 16_000)
    np.testing.assert_allclose(judge.embed([least]), expected(model, extractor, [least]), atol=1e-5)
    assert np.isnan(expected(model, extractor, [Audio(least.samples[:-1], 16_000)])).all()
    short = Audio(least.samples[:100], 16_000)
    silent = Audio(np.pad(short.samples, (0, n - 100)), 16_000)
    np.testing.assert_array_equal(judge.embed([short]), judge.embed([silent]))
    with pytest.raises(ValueError, match="no samples"):
        judge.embed([Audio(np.zeros(0, np.float32), 16_000)])


def test_any_number_of_sounds_in_any_company_at_any_rate(judge, monkeypatch):
    assert judge.embed([]).shape == (0, 12)
    found = judge.embed(iter(SOUNDS * 2))
    np.testing.assert_array_equal(found, np.tile(np.concatenate([judge.embed([s]) for s in SOUNDS]), (2, 1)))
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    high = voice(1.1, rate=44_100)
    np.testing.assert_array_equal(judge.embed([high]), judge.embed([resample(high, 16_000)]))
    monkeypatch.setattr(wavlm, "LONGEST", 16_000)
    first = Audio(SOUNDS[3].samples[:16_000], 16_000)
    np.testing.assert_array_equal(judge.embed(SOUNDS[3:]), judge.embed([first]))


def test_every_tensor_of_the_release_has_its_place(tmp_path):
    config = transformers.WavLMConfig(use_weighted_layer_sum=True)  # Transformers' own is that of wavlm-base-plus-sv
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        official = {name: tuple(x.shape) for name, x in transformers.WavLMForXVector(config).state_dict().items()}
    # As in the files of the release, which are older than these names.
    norm = "wavlm.encoder.pos_conv_embed.conv"
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        official[f"{norm}.{old}"] = official.pop(f"{norm}.parametrizations.weight.{new}")
    ours = WavlmConfig.from_json(tmp_path / "config.json")
    assert (ours.shortest, ours.vector, len(ours.convs), ours.layers) == (5_200, 512, 7, 12)
    network = nnx.eval_shape(lambda: WavlmNetwork(ours, rngs=weights.rngs()))
    wanted = {weights.dotted(k): v.shape for k, v in nnx.to_flat_state(nnx.state(network))}
    layout, used = wavlm_network.layout(ours), set()
    assert layout.keys() == wanted.keys()
    for path, rule in layout.items():
        names = rule.choose(official).names
        used |= set(names)
        made = rule.choose(official).make(*(np.ones(official[name], np.float32) for name in names))
        assert np.shape(made) == wanted[path]
    left = official.keys() - used
    assert left == {"classifier.weight", "classifier.bias", "objective.weight", "wavlm.masked_spec_embed"}
    assert all(any(re.fullmatch(p, name) for p in wavlm_network.IGNORED) for name in left)


def test_pickled_weights_under_old_names_are_read(copy, made, judge):
    (copy / "model.safetensors").unlink()
    state = made[1].state_dict()
    norm = "wavlm.encoder.pos_conv_embed.conv"
    state[f"{norm}.weight_g"] = state.pop(f"{norm}.parametrizations.weight.original0")
    state[f"{norm}.weight_v"] = state.pop(f"{norm}.parametrizations.weight.original1")
    torch.save(state, copy / "pytorch_model.bin")
    np.testing.assert_array_equal(Wavlm.load(copy).embed(SOUNDS[:1]), judge.embed(SOUNDS[:1]))


def test_weights_of_another_network_are_refused_in_one_sentence(copy):
    path = copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    lost, extra = "wavlm.encoder.layers.1.attention.gru_rel_pos_const", "wavlm.adapter.weight"
    changed = {name: x for name, x in tensors.items() if name != lost} | {extra: np.zeros(3, np.float32)}
    safetensors.numpy.save_file(changed, path)
    message = rf"lacks 1 of [^(]*\({re.escape(lost)}\) and holds 1 unknown to it \({re.escape(extra)}\); [^.]*\.$"
    with pytest.raises(UserError, match=message):
        Wavlm.load(copy)
    for name, shape in (("tdnn.0.kernel.weight", (18, 91)), ("projector.weight", (18, 23)), ("layer_weights", (2,))):
        safetensors.numpy.save_file(tensors | {name: np.zeros(shape, np.float32)}, path)
        with pytest.raises(UserError, match=re.escape(name)):
            Wavlm.load(copy)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "hubert"}, "'hubert' model"),
        ("config.json", {"feat_extract_norm": "layer", "add_adapter": True}, "feat_extract_norm = 'layer', add_"),
        ("config.json", {"conv_kernel": [10, 5]}, "unequal length"),
        ("config.json", {"num_attention_heads": 5}, "5 heads"),
        ("preprocessor_config.json", {"sampling_rate": 8_000}, "8000 samples a second"),
    ],
)
def test_files_that_do_not_fit_are_refused(copy, file, change, message):
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        Wavlm.load(copy)
    path.unlink()
    with pytest.raises(UserError, match=re.escape(file)):
        Wavlm.load(copy)


def test_vctk_is_judged_by_it_where_its_folder_is(made, tmp_path):
    (tmp_path / "wavlm").symlink_to(made[0])
    measures = {}
    for folder in (None, tmp_path.parent, tmp_path):
        judges = Judges(folder)
        # Neither is asked, and both are slow to load.
        vars(judges).update(speaker=types.SimpleNamespace(embed=None), whisper=None)
        measures[folder] = {m.name: m for m in vctk.PROTOCOLS["vctk"].judged(judges)}
    assert [name for name, found in measures.items() if "speaker_wavlm" in found] == [tmp_path]
    for i, sound in enumerate(SOUNDS[:2]):
        soundfile.write(tmp_path / f"{i}.wav", sound.samples, 16_000, "FLOAT")
    measure = measures[tmp_path]["speaker_wavlm"]
    pairs = [(0, SOUNDS[0]), (1, SOUNDS[0]), (1, None)]
    rows = measure.rows([{"file": str(tmp_path / f"{i}.wav")} for i, _ in pairs], [sound for _, sound in pairs])
    a, b = expected(*made[1:], SOUNDS[:2])
    np.testing.assert_allclose(rows[:, 0], [1, a @ b, 0], atol=1e-5)
    assert measure.higher_is_better and abs(a @ b) < 0.99
