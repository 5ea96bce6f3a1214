"""Dialogues in AnyInstruct's layout: the true history is given, and what the model's own answers are worth."""

import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import protocols, scoring, stand_ins, suite
from anygpt_jax.evaluation.batch import Share, examples_of, predict
from anygpt_jax.evaluation.examples import Example, Part
from anygpt_jax.evaluation.protocols import dialogue
from anygpt_jax.generation import answer
from anygpt_jax.generation.automaton import ANY
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.modalities.base import Audio

SPOKEN, WRITTEN = protocols.by_name("dialogue_spoken"), protocols.by_name("dialogue")
TONE = Audio((0.3 * np.sin(np.arange(16_000) / 20)).astype(np.float32), 16_000)
PICTURE = np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)


def file(medium) -> bytes:
    out = io.BytesIO()
    if isinstance(medium, Audio):
        soundfile.write(out, medium.samples, medium.sample_rate, format="WAV")
    else:
        Image.fromarray(medium).save(out, "PNG")
    return out.getvalue()


CHATS = {
    # A spoken question that is written down and drawn; what the human says after it is not answered.
    "draw": [
        {"role": "USER", "message": "A red fox.", "speech": "ask.wav"},
        {"role": "AnyGPT", "message": "A red fox.", "images": ["fox.png"]},
        {"role": "USER", "message": "Thanks!"},
    ],
    # Two turns; the last answer is a chain of text and speech.
    "tell": [
        {"role": "user", "message": "Look.", "images": "fox.png"},
        {"role": "chatbot", "message": "I do."},
        {"role": "user", "message": "What is it? Say it aloud.", "speech": "ask.wav"},
        {"role": "chatbot", "message": "It is a small red fox.", "speech": "say.wav"},
    ],
    "silent": [{"role": "user", "message": "Is anybody there?"}],
    "lost": [{"role": "user", "message": "Look.", "images": "gone.png"}, {"role": "bot", "message": "I do."}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dialogues")
    rows = [{"id": name, "chat": chat, "topic": "foxes"} for name, chat in CHATS.items()]
    (folder / "metadata.json").write_text(json.dumps(rows))
    members = {
        "images_224.tar": {"fox.png": PICTURE},
        "speech.tar": {"ask.wav": TONE, "say.wav": TONE},
        "music.tar": {},
    }
    for tar, media in members.items():
        (folder / tar).write_bytes(stand_ins._tar({name: file(medium) for name, medium in media.items()}))
    return folder


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(cli.shipped_config())


def named(protocol, folder) -> dict[str, Example]:
    protocol.register(folder)
    return {e.key.rpartition("/")[2]: e for e in examples_of(protocol)}


def test_the_history_ends_before_the_last_answer_and_the_truth_is_told(folder):
    spoken = named(SPOKEN, folder)
    assert spoken.keys() == {"draw", "tell"}  # nobody answers, and a picture is not there
    assert spoken["draw"].history == (Part("human", "speech", file(TONE)),)
    assert [m for m, _ in spoken["draw"].answer] == ["text", "image"]
    assert spoken["draw"].attributes["answer"] == [["text", "A red fox."], ["image", ""]]
    assert spoken["draw"].attributes["heard"] == "A red fox."
    assert [part[:2] for part in spoken["tell"].history] == [
        ("human", "image"), ("human", "text"), ("assistant", "text"), ("human", "speech"),
    ]  # fmt: skip
    assert spoken["tell"].attributes["answer"] == [["text", "It is a small red fox."], ["speech", ""]]
    assert spoken["tell"].attributes["heard"] == "What is it? Say it aloud."
    written = named(WRITTEN, folder)
    assert written["tell"].history[-1] == Part("human", "text", b"What is it? Say it aloud.")
    assert written["tell"].attributes["answer"] == [["text", "It is a small red fox."]]
    assert written["tell"].attributes["heard"] == ""


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match=r"dialogue_spoken needs metadata\*\.json\* and speech\*\.tar in"):
        SPOKEN.register(tmp_path)


class Hears:
    """A judge that hears what it is told, sound by sound."""

    def __init__(self, *words):
        self.words = words

    def heard(self, sounds):
        assert len(sounds) == len(self.words)
        return list(self.words)


DRAW = {"answer": [["text", "A red fox."], ["image", ""]], "heard": "A red fox."}
TELL = {"answer": [["text", "It is a small red fox."], ["speech", ""]], "heard": "What is it?"}


def scores(references, predictions, *heard) -> dict[str, float]:
    return {m.name: m.score(m.rows(references, predictions)) for m in SPOKEN.all_measures(Hears(*heard))}


def test_right_answers_score_right():
    told = "<-Ins-> What is it? <-Res-> It is a small red fox."
    answers = [(("text", "a red fox"), ("image", PICTURE)), (("text", told), ("speech", TONE))]
    assert scores([DRAW, TELL], answers, "it is a small red fox") == {
        "modalities": 1.0, "decodable": 1.0, "transcript_wer_whisper": 0.0, "chain_wer_pocketsphinx": 0.0,
    }  # fmt: skip


def test_wrong_answers_score_as_badly_as_they_are():
    answers = [
        (("image", PICTURE), ("text", "a red fox")),  # the other way round
        (("text", "<-Ins-> what was it <-Res-> It is a large dog."), ("speech", TONE)),
    ]
    found = scores([DRAW, TELL], answers, "it was a large dog barking")
    assert found["modalities"] == 0.5
    assert found["transcript_wer_whisper"] == pytest.approx(1 / 6)  # "was" for "is", of three words and three
    assert found["chain_wer_pocketsphinx"] == pytest.approx(2 / 5)  # against its own five words, not the true six
    # An error, and an answer that writes nothing down and says nothing: all words are wrong.
    found = scores([DRAW, TELL], [None, (("text", "It is a fox."),)])
    assert found == {
        "modalities": 0.0, "decodable": 0.5, "transcript_wer_whisper": 1.0, "chain_wer_pocketsphinx": 1.0,
    }  # fmt: skip


def test_media_that_are_nothing_are_not_decodable():
    silence, broken = Audio(np.zeros(800, np.float32), 16_000), Audio(np.full(800, np.nan, np.float32), 16_000)
    flat, empty = np.full((8, 8, 3), 7, np.uint8), Audio(np.zeros(0, np.float32), 16_000)
    assert not any(map(dialogue.is_something, (silence, broken, empty, flat, np.zeros((0, 0, 3), np.uint8), None, " ")))
    assert all(map(dialogue.is_something, (TONE, PICTURE, "a")))
    one = (("speech", TONE), ("image", flat))
    assert scores([DRAW, DRAW], [one, one[:1]])["decodable"] == 0.5


def test_nothing_to_be_wrong_has_no_rate():
    written = {"answer": [["text", "Yes."]], "heard": ""}
    found = scores([written], [(("text", "No."),)])
    assert found["modalities"] == 1.0
    assert np.isnan([found["transcript_wer_whisper"], found["chain_wer_pocketsphinx"]]).all()


def test_answers_are_kept_segment_by_segment_and_read_again(folder, pipeline, tmp_path, monkeypatch):
    """The prompt is the format's own of the whole history, and the plan is free."""
    examples = list(named(SPOKEN, folder).values())
    (codes,) = pipeline.tokenizers["image"].encode([pipeline.tokenizers["image"].load(file(PICTURE))])
    asked = []

    def answers(self, requests, **_):
        asked.extend(requests)
        said = (answer.Segment("text", "a red fox"), answer.Segment("image", codes))
        return [answer.Answer(said, np.zeros(0, np.int32), request.seed) for request in requests]

    monkeypatch.setattr(Pipeline, "answers", answers)
    out = tmp_path / "out"
    assert predict(pipeline, SPOKEN, examples, out, Share()) == 2
    vocabulary = pipeline.engine.vocabulary
    for example, request in zip(examples, asked, strict=True):
        speech = pipeline.tokenizers["speech"]
        (heard,) = speech.encode([speech.load(file(TONE))])
        block = vocabulary.block("speech")
        tail = [block.begin, *vocabulary.encode_codes("speech", heard), block.end]
        tail += [vocabulary.marker("<eoh>"), vocabulary.marker("[AnyGPT]")]
        assert request.plan == ANY and list(request.prompt[-len(tail) :]) == tail
        turns = sum(part.role == "assistant" for part in example.history)
        assert (request.prompt == vocabulary.marker("<eos>")).sum() == turns
    lines = scoring.read_lines(out)
    for key, line in lines.items():
        text, image = line["segments"]
        assert text == {"modality": "text", "text": "a red fox"} and image["modality"] == "image"
        assert image["file"].endswith("-2.png") and (out / image["file"]).is_file() and key in lines
    rows = suite.rows_of(SPOKEN, examples, out, pipeline, Hears())
    found = {name: m.score(r) for name, (m, r) in rows.items()}
    assert found["modalities"] == 0.5 and found["decodable"] == 1.0 and found["chain_wer_pocketsphinx"] == 1.0
    # A file that is no picture is nothing; a line that is missing or foreign is named.
    (out / image["file"]).write_bytes(b"no picture")
    rows = suite.rows_of(SPOKEN, examples, out, pipeline, Hears())
    assert rows["decodable"][0].score(rows["decodable"][1]) == 0.5
    with pytest.raises(UserError, match="which the data do not have"):
        scoring.read_lines(out, [examples[0].key])
    # The true answers themselves, and what the tokenizers leave of them.
    bounds = suite.bounds(SPOKEN, examples, pipeline, Hears("it is a small red fox"))
    assert bounds.keys() == {"original", "tokenizer"}
    assert bounds["original"]["modalities"] == bounds["tokenizer"]["modalities"] == 1.0
    assert bounds["original"]["decodable"] == 1.0 and bounds["original"]["chain_wer_pocketsphinx"] == 0.0


@pytest.mark.slow  # answers by the shipped model
def test_stand_ins_run_from_files_to_scores(tmp_path):
    speech = file(TONE)
    talks = [
        Example(
            "0", {"form": "draw"}, ("speech", speech), ("image", file(PICTURE)),
            earlier=(Part("human", "text", b"draw what i say"),), lead=(("text", b"a red fox"),),
        ),
        Example(
            "1", {}, ("image", file(PICTURE)), ("speech", speech),
            earlier=(Part("human", "text", b"describe this picture aloud"),), lead=(("text", b"a red fox"),),
        ),
    ]  # fmt: skip
    for task in ("dialogue", "dialogue_spoken"):
        stand_ins.dialogues(tmp_path / task, talks)
    out = tmp_path / "out"
    assert cli.main(["evaluate", "--tasks=dialogue,dialogue_spoken", f"--data={tmp_path}", f"--out={out}"]) == 0
    result = json.loads((out / "dialogue_spoken" / "scores.json").read_text())
    assert result["n"] == 2 and result["scores"]["modalities"]["original"] == 1.0
    lines = scoring.read_lines(out / "dialogue_spoken")
    assert all(line["segments"] for line in lines.values())
    with tarfile.open(tmp_path / "dialogue_spoken" / "speech.tar") as tar:
        assert len(tar.getnames()) == 2
    assert "[speech]" in (out / "index.html").read_text()
