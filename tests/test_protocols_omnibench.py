"""OmniBench in its published layout: picture, sound and question in one prompt, and what answers are worth."""

import io
import json
import math

import numpy as np
import pytest
import soundfile
from PIL import Image

from anygpt_jax import cli
from anygpt_jax.embedded import parts, scenes
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import protocols, scoring, stand_ins, suite
from anygpt_jax.evaluation.batch import Share, examples_of, predict
from anygpt_jax.evaluation.examples import Example
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.originals import beginning
from anygpt_jax.evaluation.protocols import omnibench
from anygpt_jax.generation.answer import Answer, Segment
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request
from anygpt_jax.modalities import pictures

PROTOCOL = protocols.by_name("omnibench")
OPTIONS = ["A man sings.", "A dog barks.", "Two people talk.", "A bell rings."]
# index, what the data call the sound, the right option
QUESTIONS = ((0, "speech", 2), (1, "Sound Event ", 1), (2, "music", 0), (3, "speech", 3))


def sound(hz: float, form: str) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000), 16_000, format=form)
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("omnibench")
    for name in (omnibench.PICTURES, omnibench.SOUNDS, "dataset"):
        (folder / name).mkdir(parents=True)
    rows = []
    for i, kind, right in QUESTIONS:
        Image.new("RGB", (48, 48), ("red", "green", "blue", "white")[i]).save(folder / omnibench.PICTURES / f"{i}.png")
        (folder / omnibench.SOUNDS / f"{i}.mp4.mp3").write_bytes(sound(200 * (i + 1), "MP3"))
        row = {"index": i, "task type": "Plot Inference", "audio type": kind, "question": f"What happens in {i}?"}
        row |= {"options": OPTIONS, "answer": OPTIONS[right], "audio content": "…", "image content": "…"}
        rows.append(row | {"image_path": f"{i}.png", "audio_path": f"{i}.mp4.mp3"})
    rows.append(rows[0] | {"index": 4, "answer": "none of them"})
    (folder / omnibench.ANNOTATIONS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    PROTOCOL.register(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(cli.shipped_config())


def by_index() -> dict[int, Example]:
    return {int(e.key.rpartition("/")[2]): e for e in examples_of(PROTOCOL)}


def test_every_question_has_its_picture_and_its_sound_by_the_tokenizer_of_its_kind(folder):
    found = by_index()
    assert sorted(found) == [0, 1, 2, 3]  # the one whose answer is no option is left out
    for i, kind, right in QUESTIONS:
        image, heard, question = found[i].history
        assert image == ("human", "image", (folder / omnibench.PICTURES / f"{i}.png").read_bytes())
        assert heard == (
            "human",
            "speech" if kind == "speech" else "music",
            (folder / omnibench.SOUNDS / f"{i}.mp4.mp3").read_bytes(),
        )
        listed = "A. A man sings.\nB. A dog barks.\nC. Two people talk.\nD. A bell rings."
        assert f"What happens in {i}?" in question.data.decode() and listed in question.data.decode()
        assert found[i].answer == (("text", f"{'ABCD'[right]}. {OPTIONS[right]}".encode()),)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match=r"omnibench needs dataset/batch-5_1142_20240817\.jsonl and mm_data/image and"):
        PROTOCOL.register(tmp_path)


def scores(folder, answers) -> dict[str, float]:
    """Of answers by index, kept as a run keeps them."""
    found = by_index()
    folder.mkdir()
    lines = [{"key": found[i].key, **line} for i, line in answers.items()]
    (folder / "predictions-0000-of-0001.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = suite.rows_of(PROTOCOL, list(found.values()), folder, None, Judges())
    return {name: measure.score(of_all) for name, (measure, of_all) in rows.items()}


def test_letters_and_texts_are_right_and_everything_else_is_wrong(folder, tmp_path):
    right = {
        0: {"text": "C"},
        1: {"text": "A dog barks."},
        2: {"text": "(A) A man sings."},
        3: {"text": "The answer is D."},
    }
    assert set(scores(tmp_path / "right", right).values()) == {1.0}
    wrong = {0: {"text": "A"}, 1: {"text": "A dog barks. Two people talk."}, 2: {"error": "broken"}, 3: {"text": ""}}
    assert set(scores(tmp_path / "wrong", wrong).values()) == {0.0}
    mixed = scores(tmp_path / "mixed", {**right, 1: wrong[1], 3: wrong[3]})
    assert mixed == {
        "multiple_choice": 0.5, "multiple_choice_speech": 0.5, "multiple_choice_sound_event": 0.0, "multiple_choice_music": 1.0,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"lacks predictions of test/batch-5_1142_20240817\.jsonl/3;"):
        scores(tmp_path / "less", {i: right[i] for i in range(3)})


def test_one_letter_for_everything_scores_what_guessing_does():
    """Of four options in every order: 25 %, and of a kind that is absent nothing."""
    references = [{"options": OPTIONS, "answer": i % 4, "audio": "speech"} for i in range(40)]
    measured = {m.name: m.score(m.rows(references, ["B"] * 40)) for m in PROTOCOL.measures}
    assert measured["multiple_choice"] == measured["multiple_choice_speech"] == 0.25
    assert math.isnan(measured["multiple_choice_music"])


def test_the_published_rows_add_up():
    """1,142 questions: 771 of speech, 265 of events, 106 of music (calculate_metrics.py counts them)."""
    for row in PROTOCOL.published:
        overall, speech, event, music = row.scores.values()
        assert (771 * speech + 265 * event + 106 * music) / 1142 == pytest.approx(overall, abs=2e-4)
        assert row.scores.keys() == {m.name for m in PROTOCOL.measures}


def test_a_prompt_holds_the_codes_of_both_media_and_the_question(folder, pipeline, tmp_path, monkeypatch):
    asked: list[Request] = []

    def answers(self, requests, **_):
        asked.extend(requests)
        return [Answer((Segment("text", "C"),), np.zeros(0, np.int32), request.seed) for request in requests]

    monkeypatch.setattr(Pipeline, "answers", answers)
    examples = examples_of(PROTOCOL)
    assert predict(pipeline, PROTOCOL, examples, tmp_path / "out", Share()) == 4
    assert all(line["text"] == "C" for line in scoring.read_lines(tmp_path / "out").values())
    vocabulary = pipeline.engine.vocabulary
    for example, request in zip(examples, asked, strict=True):
        image, heard, question = example.history
        ids, at = request.prompt, 0
        for part in (image, heard):
            tokenizer, block = pipeline.tokenizers[part.modality], vocabulary.block(part.modality)
            (codes,) = tokenizer.encode([tokenizer.load(beginning(tokenizer, part.data))])
            expected = [block.begin, *vocabulary.encode_codes(part.modality, codes), block.end]
            start = int(np.flatnonzero(ids == block.begin)[0])
            assert start > at and list(ids[start : start + len(expected)]) == expected
            at = start
        text = list(pipeline.formatter.text.encode(question.data.decode()))
        assert list(ids[start + len(expected) :])[: len(text)] == text
        assert request.plan == ("text",)


@pytest.mark.slow  # answers by the shipped model
def test_stand_ins_run_from_files_to_scores(tmp_path):
    def example(i: int, modality: str, data: bytes, **attributes) -> Example:
        return Example(str(i), attributes, (modality, data), ("text", b"x"))

    rng = np.random.default_rng(0)
    seen = [scenes.sample(rng, "test") for _ in range(4)]
    shown = [example(i, "image", pictures.save_png(scenes.render(a)), object=a["object"]) for i, a in enumerate(seen)]
    voices = [example(i, "speech", sound(300, "FLAC")) for i in range(4)]
    tunes = [example(i, "music", parts.tune_clip(rng, "test")[0]) for i in range(4)]
    stand_ins.omnibench_questions(tmp_path / "omnibench", shown, voices, tunes)
    assert cli.main(["evaluate", "--tasks=omnibench", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]) == 0
    result = json.loads((tmp_path / "out" / "omnibench" / "scores.json").read_text())
    lines = scoring.read_lines(tmp_path / "out" / "omnibench")
    assert len(lines) == 4 and all("text" in line for line in lines.values())
    assert 0 <= result["scores"]["multiple_choice"]["value"] <= 1
    page = (tmp_path / "out" / "index.html").read_text()
    assert "What do you see and hear?" in page and "OmniBench, picture and sound" in page
