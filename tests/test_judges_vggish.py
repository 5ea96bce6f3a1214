"""VGGish against torch's layers on random weights, and what it hears against the definition taken literally."""

import math
import re

import numpy as np
import pytest
import soundfile
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import protocols
from anygpt_jax.evaluation.judges import vggish
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.judges.vggish import FILE, Vggish, VggishNetwork, examples, filterbank, layout
from anygpt_jax.evaluation.measures.distributions import frechet_distance
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import weights

torch = pytest.importorskip("torch")

# torchvggish's tensors, as its conversion of Google's checkpoint prints them.
PUBLISHED = {
    "features.0": (64, 1, 3, 3),
    "features.3": (128, 64, 3, 3),
    "features.6": (256, 128, 3, 3),
    "features.8": (256, 256, 3, 3),
    "features.11": (512, 256, 3, 3),
    "features.13": (512, 512, 3, 3),
    "embeddings.0": (4096, 12288),
    "embeddings.2": (4096, 4096),
    "embeddings.4": (128, 4096),
}


def stack():
    """The published network without its last ReLU; names and places are torchvggish's."""
    layers, inputs = [], 1
    for outputs in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
        if outputs == "pool":
            layers.append(torch.nn.MaxPool2d(2, 2))
        else:
            layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.ReLU()]
            inputs = outputs
    dense = [torch.nn.Linear(12288, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 4096), torch.nn.ReLU()]
    dense.append(torch.nn.Linear(4096, 128))
    return torch.nn.ModuleDict({"features": torch.nn.Sequential(*layers), "embeddings": torch.nn.Sequential(*dense)})


def run(network, mels):
    """Positions go before channels, as in TensorFlow's network."""
    with torch.no_grad():
        x = network["features"](torch.from_numpy(mels)[:, None])
        return network["embeddings"](x.permute(0, 2, 3, 1).reshape(len(mels), -1)).numpy()


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)  # threads that wait for work would take it from JAX's
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = stack().to_empty(device="cpu")
    with torch.no_grad():
        for p in network.parameters():
            scale = (2 / math.prod(p.shape[1:])) ** 0.5 if p.ndim > 1 else 0.2
            p.uniform_(-1.7 * scale, 1.7 * scale, generator=generator)
    return network


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("judges") / "vggish"
    path.mkdir()
    torch.save(network.state_dict(), path / FILE)
    return path


@pytest.fixture(scope="module")
def judge(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vggish, "BATCH", 2)
        yield Vggish.load(folder)


def sound(seconds, rate=16_000, seed=0):
    """A tone that moves, in noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (200 + 150 * seed + 300 * t) * t)
    return Audio((0.3 * tone + 0.05 * rng.normal(size=t.size)).astype(np.float32), rate)


def mel(hz):
    return 2595 * math.log10(1 + hz / 700)  # the other way to write 1127 ln(…)


def literally(samples):
    """log(mel + 0.01) of one frame after another: a discrete Fourier transform by its sum, triangles one by one."""
    times, bins = np.arange(400), np.arange(257)
    window = np.sin(np.pi * times / 400) ** 2
    waves = np.exp(-2j * np.pi * np.outer(bins, times) / 512)
    corners = [mel(125) + i * (mel(7500) - mel(125)) / 65 for i in range(66)]
    bank = np.zeros((257, 64))
    for band, (low, middle, high) in enumerate(zip(corners, corners[1:], corners[2:], strict=False)):
        for k in range(1, 257):
            at = mel(k * 16_000 / 512)
            if low < at < high:
                bank[k, band] = (at - low) / (middle - low) if at < middle else (high - at) / (high - middle)
    frames = [samples[start : start + 400] for start in range(0, len(samples) - 399, 160)]
    return np.log(np.stack([np.abs(waves @ (frame * window)) @ bank for frame in frames]) + 0.01), bank


def test_what_is_heard_is_the_definition():
    samples = sound(2.5).samples
    mels, bank = literally(samples.astype(np.float64))
    assert len(mels) == 248  # no frame goes over the end
    found = examples(sound(2.5))
    assert found.shape == (2, 96, 64) and found.dtype == np.float32
    np.testing.assert_allclose(found.reshape(192, 64), mels[:192], atol=1e-5)
    np.testing.assert_allclose(filterbank(), bank, atol=1e-9)
    assert mels.std() > 0.5  # so that the comparison says something


def test_how_many_examples_a_sound_has():
    for samples, count in ((0, 1), (100, 1), (15_600, 1), (30_959, 1), (30_960, 2), (160_000, 10)):
        assert len(examples(Audio(np.ones(samples, np.float32), 16_000))) == count
    short, padded = sound(0.5).samples, np.zeros(15_600, np.float32)
    padded[: len(short)] = short
    np.testing.assert_array_equal(examples(Audio(short, 16_000)), examples(Audio(padded, 16_000)))
    silence = examples(Audio(np.zeros(0, np.float32), 16_000))
    np.testing.assert_allclose(silence, np.log(0.01), rtol=1e-6)
    slow, fast = examples(sound(1, 16_000, seed=3)), examples(sound(1, 32_000, seed=3))
    assert np.abs(slow - fast).mean() < 1  # the same tone, other noise


def test_the_embeddings_are_those_of_the_published_layers(judge, network):
    sounds = [sound(2.8, seed=1), sound(0.4, seed=2), sound(1.0, 24_000, seed=3)]
    found = judge.sounds(iter(sounds))
    assert [x.shape for x in found] == [(2, 128), (1, 128), (1, 128)]
    expected = run(network, np.concatenate([examples(s) for s in sounds]))
    np.testing.assert_allclose(np.concatenate(found), expected, atol=2e-5 * np.abs(expected).max())
    assert (expected < 0).any() and np.abs(expected[0] - expected[2]).max() > 0.01 * np.abs(expected).max()
    assert judge.sounds([]) == []


def test_every_published_tensor_has_its_place():
    state = {f"{name}.weight": shape for name, shape in PUBLISHED.items()}
    state |= {f"{name}.bias": shape[:1] for name, shape in PUBLISHED.items()}
    with torch.device("meta"):
        assert {name: tuple(x.shape) for name, x in stack().state_dict().items()} == state
    assert sum(map(math.prod, state.values())) == 72_141_184
    network = nnx.eval_shape(lambda: VggishNetwork(rngs=weights.rngs()))
    expected = {weights.dotted(k): v.shape for k, v in nnx.to_flat_state(nnx.state(network))}
    assert layout().keys() == expected.keys()
    for path, rule in layout().items():
        made = rule.choose(state).make(*(np.broadcast_to(np.int8(0), state[n]) for n in rule.choose(state).names))
        assert made.shape == expected[path]
    assert {name for rule in layout().values() for name in rule.choose(state).names} == state.keys()


def test_other_files_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=rf"There is no .*{re.escape(FILE)}; .*torchvggish\.$"):
        Vggish.load(tmp_path)
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / FILE)
    with pytest.raises(UserError, match=r"lacks 17 of .*features\.0\.bias.* one and the same network\.$"):
        Vggish.load(tmp_path)


@pytest.mark.slow  # a network of 72 million parameters hears sounds six times
def test_fad_is_measured_where_its_weights_are(judge, tmp_path):
    """By `musiccaps_music`, beside CLAP's measure and between all that is made and its own originals."""
    assert Judges().vggish is None and Judges(tmp_path).vggish is None

    class Deaf:
        sounds = texts = staticmethod(lambda items: np.ones((len(list(items)), 2)))

    judges = Judges(tmp_path)
    judges.__dict__.update(clap=Deaf(), vggish=None)
    protocol = protocols.by_name("musiccaps_music")
    assert [m.name for m in protocol.all_measures(judges)] == ["clap_score"]
    judges.__dict__["vggish"] = judge
    fad = protocol.all_measures(judges)[-1]
    assert fad.name == "fad" and not fad.higher_is_better
    originals, made = [sound(2.0, seed=1), sound(1.0, seed=2)], [sound(1.0, seed=3), sound(2.8, seed=4)]
    references = []
    for i, original in enumerate(originals):
        soundfile.write(tmp_path / f"{i}.wav", original.samples, 16_000, subtype="FLOAT")
        references.append({"file": str(tmp_path / f"{i}.wav"), "caption": "A tone."})
    rows = fad.rows(references, made)
    truth, found = np.concatenate(judge.sounds(originals)), np.concatenate(judge.sounds(made))
    expected = frechet_distance(found, truth)
    assert fad.score(rows) == pytest.approx(expected, rel=1e-6) and expected > 0
    assert fad.score(fad.rows(references, originals)) == pytest.approx(0, abs=1e-6 * expected)
    assert fad.score(fad.rows(references, [None, made[1]])) == np.inf
