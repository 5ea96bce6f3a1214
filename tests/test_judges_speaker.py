"""The judge of voices against torch.nn.LSTM, Resemblyzer's own windows, and voices that are known to differ."""

import importlib.util
import pathlib
import sys
import types

import numpy as np
import pytest

from anygpt_jax.embedded import assets
from anygpt_jax.embedded.voices import synthesize
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges import legacy_pickles, speaker
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.judges.speaker import SpeakerEncoder
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import Audio
from anygpt_jax.serving import voices

torch = pytest.importorskip("torch")
audio_utils = pytest.importorskip("transformers.audio_utils")

PACKAGE = importlib.util.find_spec("resemblyzer")
installed = pytest.mark.skipif(PACKAGE is None, reason="Resemblyzer is not installed")


def mel_of_transformers(wav):
    """librosa's melspectrogram by Transformers' code."""
    bank = audio_utils.mel_filter_bank(201, 40, 0.0, 8000.0, 16_000, norm="slaney", mel_scale="slaney")
    window = audio_utils.window_function(400, "hann")
    return audio_utils.spectrogram(
        np.asarray(wav, np.float64), window, 400, 160, power=2.0, pad_mode="constant", mel_filters=bank, mel_floor=0.0
    ).T.astype(np.float32)


@pytest.fixture(scope="module")
def reference():
    """Resemblyzer's encoder on Transformers' features: its module for sound needs librosa and webrtcvad."""
    saved = {name: module for name, module in sys.modules.items() if name.startswith("resemblyzer")}
    package, sound = types.ModuleType("resemblyzer"), types.ModuleType("resemblyzer.audio")
    package.__path__ = list(PACKAGE.submodule_search_locations)
    package.audio, sound.wav_to_mel_spectrogram = sound, mel_of_transformers
    sys.modules |= {"resemblyzer": package, "resemblyzer.audio": sound}
    from resemblyzer.voice_encoder import VoiceEncoder

    torch.set_num_threads(1)  # threads that wait for work would take it from JAX's
    for name in [name for name in sys.modules if name.startswith("resemblyzer")]:
        del sys.modules[name]
    sys.modules |= saved
    return VoiceEncoder("cpu", verbose=False)


@pytest.fixture(scope="module")
def encoder():
    return SpeakerEncoder.load()


def loud(seconds, seed=0):
    """Modulated noise that is not brought to another level."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    return (0.2 * rng.normal(size=t.size) * (1.2 + np.sin(9 * t + seed))).astype(np.float32)


def random_state(seed):
    torch.manual_seed(seed)
    lstm, linear = torch.nn.LSTM(40, 256, 3, batch_first=True), torch.nn.Linear(256, 256)
    state = {f"lstm.{name}": x for name, x in lstm.state_dict().items()}
    state |= {f"linear.{name}": x for name, x in linear.state_dict().items()}
    state |= {"similarity_weight": torch.ones(1), "similarity_bias": torch.ones(1)}
    return lstm, linear, state


def checkpoint(state):
    """What Resemblyzer's trainer saves: the optimizer's tensors are in it too."""
    return {"step": 7, "model_state": state, "optimizer_state": {"state": {0: {"exp_avg": torch.randn(3)}}}}


@pytest.mark.parametrize("zipped", [False, True])
def test_a_window_is_what_torch_makes_of_it(tmp_path, zipped):
    lstm, linear, state = random_state(3)
    path = tmp_path / "pretrained.pt"
    torch.save(checkpoint(state), path, _use_new_zipfile_serialization=zipped)
    sound = loud(1.5)
    with torch.no_grad():
        mels = torch.from_numpy(mel_of_transformers(np.pad(sound, (0, 25_600 - len(sound))))[None, :160])
        expected = torch.relu(linear(lstm(mels)[1][0][-1]))
        expected = (expected / expected.norm()).numpy()
    found = SpeakerEncoder.load(path).embed([Audio(sound, 16_000)])
    assert found.dtype == np.float32 and found.shape == (1, 256)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_features_are_librosas():
    sound = loud(2.013)
    expected = mel_of_transformers(sound)
    found = speaker.mel_powers(sound)
    assert found.shape == expected.shape == (1 + len(sound) // 160, 40)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7 * expected.max())


@installed
@pytest.mark.parametrize("seconds", [0.01, 0.5, 1.59, 1.6, 1.61, 2.3, 2.8, 3.0, 3.6, 4.9])
def test_sounds_are_cut_as_the_package_does(reference, encoder, seconds):
    sound = loud(seconds)
    slices, _ = reference.compute_partial_slices(len(sound), 1.3, 0.75)
    assert len(speaker.windows(sound)) == len(slices)
    np.testing.assert_allclose(encoder.embed([Audio(sound, 16_000)])[0], reference.embed_utterance(sound), atol=1e-5)


@installed
def test_a_sound_does_not_depend_on_its_company(reference, encoder):
    sounds = [loud(0.5 + 0.6 * i, seed=i) for i in range(5)]
    found = encoder.embed([Audio(x, 16_000) for x in sounds * 7])  # more sounds, and more windows, than a batch
    np.testing.assert_allclose(found, np.tile([reference.embed_utterance(x) for x in sounds], (7, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)
    assert encoder.embed([]).shape == (0, 256)


@installed
def test_level_and_rate_matter_little(encoder):
    ada = voices.load()["ada"]
    samples = ada.samples.astype(np.float32)
    quiet, quieter = encoder.embed([Audio(samples * 1e-2, ada.sample_rate), Audio(samples * 1e-3, ada.sample_rate)])
    np.testing.assert_allclose(quiet, quieter, atol=1e-4)
    import scipy.signal

    low = scipy.signal.resample_poly(samples, 3, 2).astype(np.float32)
    one, other = encoder.embed([ada, Audio(low, ada.sample_rate * 3 // 2)])
    assert one @ other > 0.995


@installed
def test_one_voice_is_nearer_to_itself_than_to_another(encoder):
    """Recordings of three voices among other sentences of theirs, of about four seconds each."""
    pytest.importorskip("hibari")
    recordings = voices.load()
    sentences = (
        "The quick brown fox jumps over the lazy dog near the river bank every morning.",
        "Please tell me which colour the large umbrella in the second picture has, if any.",
    )
    spoken = [synthesize(sentence, name) for name in recordings for sentence in sentences]
    likeness = encoder.embed(list(recordings.values())) @ encoder.embed(spoken).T
    for i, row in enumerate(likeness):
        own = np.arange(len(spoken)) // len(sentences) == i
        assert row[own].min() > row[~own].max() + 0.04


@installed
def test_a_human_reader_is_nearer_to_himself_than_to_synthetic_voices(encoder):
    try:
        paths = [path for path, _ in assets.librivox()][:4]
    except UserError as e:
        pytest.skip(str(e))
    read = encoder.embed([load_audio(path.read_bytes()) for path in paths])
    others = encoder.embed(list(voices.load().values()))
    assert (read @ read.T).min() > (read @ others.T).max() + 0.1


def test_scores_name_the_package_whatever_lies_in_the_folder(tmp_path, monkeypatch):
    """`speaker` is never read from there."""
    (tmp_path / "speaker").mkdir()
    (tmp_path / "speaker" / "pretrained.pt").write_bytes(b"others' weights")
    loaded = []
    monkeypatch.setattr(SpeakerEncoder, "load", classmethod(lambda cls, *path: loaded.append(path) or cls))
    monkeypatch.setattr("importlib.metadata.version", {"Resemblyzer": "0.1.4"}.__getitem__)
    judges = Judges(tmp_path)
    assert judges.used() == {}
    assert judges.speaker and loaded == [()]
    assert judges.used() == {"speaker": "Resemblyzer 0.1.4"}


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps Resemblyzer==0\.1\.4"):
        SpeakerEncoder.load()


@pytest.mark.parametrize("zipped", [False, True])
def test_weights_of_another_network_are_refused(tmp_path, zipped):
    _, _, state = random_state(0)
    path = tmp_path / "other.pt"
    lost = state.pop("lstm.bias_hh_l1")
    torch.save(checkpoint({**state, "lstm.bias_hh_l9": lost}), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"\(lstm\.bias_hh_l1\) and holds 1 unknown to it \(lstm\.bias_hh_l9\)"):
        SpeakerEncoder.load(path)


def test_files_that_would_run_code_or_are_cut_off_are_refused(tmp_path):
    _, _, state = random_state(0)
    path = tmp_path / "bad.pt"
    torch.save({"model_state": state, "hook": pathlib.Path("x")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"asks for pathlib"):
        SpeakerEncoder.load(path)
    torch.save(checkpoint(state), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in (40, 700, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"again"):
            SpeakerEncoder.load(path)
    torch.save({"weights": {"a": 1}}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="no 'model_state'"):
        SpeakerEncoder.load(path)
    with pytest.raises(UserError, match="There is no"):
        SpeakerEncoder.load(tmp_path / "absent.pt")


@installed
def test_a_sound_without_samples_is_refused(encoder):
    with pytest.raises(ValueError, match=r"\[1\] have no samples"):
        encoder.embed([Audio(loud(1), 16_000), Audio(np.zeros(0, np.float32), 16_000)])


def test_a_state_dict_of_before_the_zip_format_is_read_by_itself(tmp_path):
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "old.pth"
    torch.save(layers.state_dict(), path, _use_new_zipfile_serialization=False)
    read = legacy_pickles.read(path)
    assert {name: tensor.shape for name, tensor in read.items()} == {
        name: tuple(value.shape) for name, value in layers.state_dict().items()
    }
    np.testing.assert_array_equal(read["0.weight"].rows(0, 4), layers[0].weight.detach().numpy())
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged or holds no state dict"):
        legacy_pickles.read(path)
