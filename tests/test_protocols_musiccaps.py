"""MusicCaps in its published layout: what is read of it, and the shipped model on it from files to CLAP scores."""

import csv
import json
import pathlib

import numpy as np
import pytest
import soundfile

from anygpt_jax import cli
from anygpt_jax.embedded import parts, scenes
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import protocols, scoring, stand_ins
from anygpt_jax.evaluation.batch import examples_of
from anygpt_jax.evaluation.examples import Example
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.protocols import musiccaps
from anygpt_jax.modalities import pictures
from anygpt_jax.modalities.audio import load_audio

COLUMNS = (
    "ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption", "author_id",
    "is_balanced_subset", "is_audioset_eval",
)  # fmt: skip
CAPTIONS = {
    "-0Gj8-vB1q4": 'A slow piano, "sad", plays a melody.\nThere is no voice.',
    "gone": "This clip was taken down.",
    "_xyz": " A fast flute plays. ",
}
TASKS = ("musiccaps_caption", "musiccaps_music")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two clips of three, of ten seconds each, of which the shipped tokenizer takes four."""
    root = tmp_path_factory.mktemp("data")
    for task in TASKS:
        folder = root / task
        (folder / musiccaps.SOUNDS).mkdir(parents=True)
        with (folder / musiccaps.ANNOTATIONS).open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for ytid, caption in CAPTIONS.items():
                rows.writerow([ytid, 30, 40, "/m/0140xf", "['slow']", caption, 4, False, True])
        t = np.arange(10 * 22_050) / 22_050
        for name, hz in (("-0Gj8-vB1q4.wav", 220), ("_xyz.flac", 440)):
            stereo = np.stack([0.3 * np.sin(2 * np.pi * hz * t), 0.2 * np.sin(4 * np.pi * hz * t)], 1)
            soundfile.write(folder / musiccaps.SOUNDS / name, stereo, 22_050)
    return root


@pytest.mark.parametrize("task", TASKS)
def test_clips_without_a_file_are_left_out(data, task):
    protocol = protocols.by_name(task)
    protocol.register(data / task)
    examples = {e.key.rpartition("/")[2]: e for e in examples_of(protocol)}
    assert examples.keys() == {"-0Gj8-vB1q4", "_xyz"}
    for name, example in examples.items():
        assert protocol.reference(example.attributes)["caption"] == CAPTIONS[name].strip()
        sound = pathlib.Path(example.attributes["file"])
        sides = {"text": CAPTIONS[name].strip().encode(), "music": sound.read_bytes()}
        assert sound.stem == name
        assert example.source == (protocol.source, sides[protocol.source])
        assert example.target == (protocol.target, sides[protocol.target])


def test_what_is_missing_is_said(data, tmp_path):
    protocol = protocols.by_name("musiccaps_music")
    with pytest.raises(UserError, match=r"musiccaps_music needs musiccaps-public\.csv and audio in"):
        protocol.register(tmp_path)
    for judges in (Judges(), Judges(tmp_path)):
        with pytest.raises(UserError, match=r"Music is judged by CLAP: name the folder[^.]*\.$"):
            protocol.all_measures(judges)


def test_stand_ins_are_read_as_the_published_files(tmp_path, monkeypatch):
    """The embedded tunes, and beside them what every protocol needs."""
    rng = np.random.default_rng(0)
    tunes = {}
    for i in range(3):
        flac, about = parts.tune_clip(rng, "test")
        tunes[f'a tune, "number {i}"'] = (flac, about)
    picture = pictures.save_png(scenes.render(scene := scenes.sample(rng, "test")))
    world = {
        "image_to_text": [Example("i", scene, ("image", picture), ("text", b"a picture"))],
        "speech_to_text": [Example("s", {}, ("speech", next(iter(tunes.values()))[0]), ("text", b"hello"))],
        "music_to_text": [
            Example(caption, about, ("music", flac), ("text", caption.encode()))
            for caption, (flac, about) in tunes.items()
        ],
        "dialogues": [Example("d", {}, ("text", b"hello"), ("text", b"hi"))],
    }
    monkeypatch.setattr(stand_ins, "read_split", lambda task, split: world[task])
    stand_ins.write(tmp_path, 3)
    for name in protocols.NAMES:
        protocols.by_name(name).check(tmp_path / name)
    for task in TASKS:
        protocol = protocols.by_name(task)
        protocol.register(tmp_path / task)
        found = {protocol.reference(e.attributes)["caption"]: e for e in examples_of(protocol)}
        assert found.keys() == tunes.keys()
        for caption, example in found.items():
            original, made = (
                load_audio(x) for x in (tunes[caption][0], dict([example.source, example.target])["music"])
            )
            assert made.sample_rate == original.sample_rate
            np.testing.assert_allclose(made.samples, original.samples, atol=2**-15)


@pytest.mark.slow  # answers by the shipped model, with five beams
def test_music_is_described_and_made_and_judged(data, tmp_path):
    test_judges_clap = pytest.importorskip("test_judges_clap")
    (tmp_path / "judges" / "clap").mkdir(parents=True)
    test_judges_clap.save(tmp_path / "judges" / "clap")
    out = tmp_path / "out"
    assert (
        cli.main(
            [
                "evaluate",
                f"--tasks={','.join(TASKS)}",
                f"--data={data}",
                f"--out={out}",
                f"--judges={tmp_path / 'judges'}",
            ]
        )
        == 0
    )
    clap = Judges(tmp_path / "judges").clap
    for task in TASKS:
        result = json.loads((out / task / "scores.json").read_text())
        lines = scoring.read_lines(out / task)
        assert result["n"] == len(lines) == 2 and not any("error" in line for line in lines.values())
        cosines = []
        for key, line in lines.items():
            name = key.rpartition("/")[2]
            if "text" in line:
                (file,) = (data / task / musiccaps.SOUNDS).glob(f"{name}.*")
                sound, text = load_audio(file.read_bytes(), 48_000), line["text"]
            else:
                sound, text = load_audio((out / task / line["file"]).read_bytes()), CAPTIONS[name].strip()
            cosines.append(float(clap.sounds([sound])[0] @ clap.texts([text])[0]))
        assert result["scores"]["clap_score"]["value"] == pytest.approx(np.mean(cosines), abs=1e-5)
        assert result["published"][0]["scores"].keys() == result["scores"].keys()
        assert "original" in result["scores"]["clap_score"]
    assert {"original", "tokenizer"} <= result["scores"]["clap_score"].keys()
