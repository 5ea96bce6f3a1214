"""Dialogues: where they are cut, and how answers with the right and with other modalities are counted."""

import json

import ml_collections
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx
from PIL import Image

from anygpt_jax.cache import Manifest, write_shard
from anygpt_jax.embedded import scenes
from anygpt_jax.evaluation import dialogues, runner
from anygpt_jax.evaluation.dialogues import LastTurn, modalities
from anygpt_jax.generation import answer
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Settings
from anygpt_jax.modalities import image
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.tasks import preprocessors, registry
from anygpt_jax.templates import Formatter, Segment
from anygpt_jax.training.checkpoints import LoadedModel
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

SPLIT = "test"
SCENES = [scenes.sample(np.random.default_rng(i), "test") for i in range(4)]


def _said(text: str, role: str) -> Segment:
    return Segment("text", text, role, role == "assistant")


def _story(form: str, i: int, codes: np.ndarray) -> list[Segment]:
    picture = Segment("image", codes, "assistant", True)
    shown = Segment("image", codes, "human")
    return {
        "draw": [_said("please draw a fox", "human"), picture],
        "draw_slowly": [_said("draw what i say", "human"), _said("a fox", "assistant"), picture],
        "several": [
            _said("please draw a fox", "human"), picture, _said("what is it", "human"), _said("a fox", "assistant"),
        ],
        "again": [
            shown, _said("what is in this picture", "human"), _said("a fox", "assistant"), _said("and", "human"),
            _said("now draw it", "human"), picture,
        ],
    }[form]  # fmt: skip


HEARD = "you said {} :"
FORMS = ("draw", "draw_slowly", "several", "again")
STORIES = [(f"{form}-{i}", form, i) for i in range(3) for form in FORMS]


@pytest.fixture(scope="module")
def codes() -> list[np.ndarray]:
    return image.load().encode([scenes.render(a) for a in SCENES])


@pytest.fixture(scope="module")
def formatter() -> Formatter:
    text, tokenizer = TextTokenizer.load(), image.load()
    blocks = [BlockSpec("image", tokenizer.codebook_size)]
    vocabulary = Vocabulary.build(text_size=text.size, text_fingerprint=text.fingerprint, blocks=blocks)
    return Formatter(vocabulary, text)


def _examples(split, shuffle_files=False, seed=None):
    """Of the task only keys, attributes and roles are read."""
    rows = [
        {
            "key": key, "modality": ["text", "text"], "content": ["x", "y"], "role": ["human", "assistant"],
            "loss": [False, True], "attributes": json.dumps({**SCENES[i], "form": form}), "filtered": "",
        }
        for key, form, i in STORIES
    ]  # fmt: skip
    return tf.data.Dataset.from_tensor_slices({name: [row[name] for row in rows] for name in rows[0]})


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, formatter, codes):
    workdir = tmp_path_factory.mktemp("run")
    config = ml_collections.ConfigDict(
        {
            "workdir": str(workdir), "seed": 0, "mixture": {"dialogues": 1.0}, "model": {"d_model": 32},
            "evaluate": {"split": SPLIT, "examples": 6, "untrained_examples": 2},
            "generate": {
                "batch_size": 4, "text": {"temperature": 0.0, "max_tokens": 8}, "image": {"temperature": 1.0},
            },
        }
    )  # fmt: skip
    if dialogues.TASK in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(dialogues.TASK)
    seqio.TaskRegistry.add(
        dialogues.TASK,
        source=seqio.FunctionDataSource(_examples, splits=(SPLIT,)),
        preprocessors=[],
        output_features=preprocessors.OUTPUT_FEATURES,
        postprocess_fn=registry.postprocess,
        metric_fns=[],
    )
    records = [formatter.record(key, "dialogues", _story(form, i, codes[i])) for key, form, i in STORIES]
    shard = write_shard(workdir / "cache", f"dialogues/{SPLIT}/00000-of-00001", records)
    vocabulary = formatter.vocabulary
    shards = {"dialogues": {SPLIT: [shard]}}
    Manifest(vocabulary.fingerprint, vocabulary.text_fingerprint, {}, shards).save(workdir / "cache")
    model = ModelConfig(vocabulary.padded_size(16), 16, 1, 2, 1, 8, 24, tied_embeddings=True, qk_norm=True)

    def pipeline(seed, step):
        loaded = LoadedModel(Decoder(model, rngs=nnx.Rngs(seed)), model, vocabulary, step)
        return Pipeline.build(loaded, {"image": image.load()}, Settings.from_config(config.generate))

    return runner.Evaluation(config, pipeline(0, 7), pipeline(1, 0))


@pytest.mark.parametrize(
    ("form", "answered", "turns", "asked"),
    [
        ("draw", ["image"], 1, "please draw a fox"),
        ("draw_slowly", ["text", "image"], 1, "draw what i say"),
        ("several", ["text"], 2, "what is it"),
        ("again", ["image"], 2, "and now draw it"),
    ],
)
def test_a_dialogue_is_cut_before_its_last_answer(formatter, codes, form, answered, turns, asked):
    story = _story(form, 0, codes[0])
    turn = LastTurn.of(formatter.record("k", "dialogues", story), formatter.vocabulary, formatter.text, {})
    np.testing.assert_array_equal(turn.prompt, formatter.prompt(story[: -len(answered)]))
    assert modalities(turn.truth) == answered
    assert (turn.human_turns, turn.asked) == (turns, asked)
    for segment, true in zip(turn.truth, story[-len(answered) :], strict=True):
        np.testing.assert_array_equal(segment.content, true.content)


def test_a_record_without_an_answer_has_no_last_turn(formatter):
    record = formatter.record("k", "dialogues", [_said("hello", "human")])
    assert LastTurn.of(record, formatter.vocabulary, formatter.text, {}) is None


def test_dialogues_of_several_turns_come_first(evaluation):
    turns = dialogues.read_turns(evaluation, SPLIT)
    assert [turn.human_turns >= 2 for turn in turns] == [True] * 6 + [False] * 6
    assert {turn.key: turn.form for turn in turns} == {key: form for key, form, _ in STORIES}
    with evaluation.config.unlocked():
        evaluation.config.evaluate.dialogues = 7
    try:
        assert [t.key for t in dialogues.read_turns(evaluation, SPLIT)] == [t.key for t in turns[:7]]
    finally:
        del evaluation.config.evaluate.dialogues


def test_an_untaught_model_end_to_end(evaluation):
    entry = dialogues.run(evaluation)
    assert (entry["n"], entry["several_turns"]["n"], entry["one_turn"]["n"]) == (12, 6, 6)
    lines = (evaluation.workdir / "predictions" / "dialogues" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 12
    assert np.mean([row["exact"] for row in rows]) == pytest.approx(entry["exact"])
    for row in rows:
        assert [part["modality"] for part in row["answer"]] == row["answered"]
        if not row["exact"]:
            assert [part["modality"] for part in row["truth"]] == row["wanted"]
    again = dialogues.run(evaluation)  # not generated again: the seconds are the same
    assert again.pop("recipe")
    assert again == json.loads(json.dumps(entry))


def test_what_is_counted(evaluation, monkeypatch):
    """Truths for three forms; where a text was asked for, a picture, and once a picture and a text."""
    turns = dialogues.read_turns(evaluation, SPLIT)
    picture = next(turn.truth[0] for turn in turns if turn.form == "draw")

    def answers(prompts, plan, seeds):
        assert plan == "any"
        given = []
        for turn in turns:
            segments = turn.truth
            if turn.form == "several":
                segments = (picture,)
            if turn.key == "draw_slowly-1":
                segments = turn.truth[::-1]
            if turn.key == "again-2":
                segments = (*turn.truth, answer.Segment("text", "here"))
            given.append(answer.Answer(tuple(segments), np.zeros(0, np.int32), 0))
        return given

    monkeypatch.setattr(evaluation.trained.engine, "generate", answers)
    evaluation.config.seed = 1  # another recipe
    try:
        entry = dialogues.run(evaluation)
    finally:
        evaluation.config.seed = 0
    assert entry["exact"] == pytest.approx(7 / 12)
    assert entry["same_set"] == pytest.approx(8 / 12)
    low, high = entry["interval"]
    half = 1.96 * np.sqrt(7 / 12 * 5 / 12 / 12)
    assert low == pytest.approx(7 / 12 - half, abs=0.09) and high == pytest.approx(7 / 12 + half, abs=0.09)
    assert {name: e["exact"] for name, e in entry["by_form"].items()} == pytest.approx(
        {"draw": 1, "draw_slowly": 2 / 3, "several": 0, "again": 2 / 3}
    )
    assert entry["several_turns"]["exact"] == pytest.approx(2 / 6)
    assert entry["one_turn"]["exact"] == pytest.approx(5 / 6)
    assert entry["by_modalities"]["text, image"]["n"] == 3
    assert entry["confusions"][0] == {"wanted": "text", "answered": "image", "n": 3}
    assert {"wanted": "image", "answered": "image, text", "n": 1} in entry["confusions"]
    # Pictures were asked for in nine dialogues, and the true ones came.
    assert entry["images"]["n"] == 9
    assert entry["images"]["attributes"] >= 0.95
    folder = evaluation.workdir / "predictions" / "dialogues"
    rows = {row["key"]: row for row in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())}
    assert (rows["several-0"]["wanted"], rows["several-0"]["answered"]) == (["text"], ["image"])
    assert rows["several-0"]["truth"][0]["text"] == "a fox"
    shown = np.asarray(Image.open(folder / rows["several-0"]["answer"][0]["file"]))
    assert shown.shape == (72, 72, 3)


def _answers(*texts: str) -> list[answer.Answer]:
    """A text each, and a picture."""
    segments = [(answer.Segment("text", text), answer.Segment("image", np.zeros(0))) for text in texts]
    return [answer.Answer(of, np.zeros(0, np.int32), 0) for of in segments]


def test_pictures_are_held_against_the_words_beside_them():
    shown = {"object": "fox", "colour": "red", "size": "large", "place": "top left"}
    texts = ("a fox on red", "you said draw a dog : a large fox on blue", "the picture is for you")
    media = [(text, scenes.render(shown)) for text in texts]
    found = dialogues.judge_own_words(_answers(*texts), media, HEARD)
    assert found["music"] == {"n": 0}
    # Of two that say something, the one is right in both, the other in two of its three.
    assert (found["image"]["n"], found["image"]["all"]) == (2, 0.5)
    assert found["image"]["attributes"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["image"]["object"], found["image"]["colour"], found["image"]["size"]) == (1, 0.5, 1)


@pytest.mark.parametrize(
    ("heard", "text"),
    [
        ("i heard <{}>", "i heard <draw a dog> a fox on red"),
        ("you said {} :", "you said draw a dog : a fox on red"),
        ("", "a fox : on red"),
        ("you said {} :", "a fox : on red"),  # its own colon
    ],
)
def test_a_transcript_is_what_the_config_says(heard, text):
    shown = {"object": "fox", "colour": "red", "size": "large", "place": "top left"}
    found = dialogues.judge_own_words(_answers(text), [(text, scenes.render(shown))], heard)
    assert (found["image"]["object"], found["image"]["colour"]) == (1, 1)


def test_facts_are_those_that_both_name():
    def turn(text: str, *media: str) -> LastTurn:
        truth = (answer.Segment("text", text), *(answer.Segment(m, np.zeros(0)) for m in media))
        return LastTurn("k", np.zeros(0, np.int32), truth, 1, "", {"answer_text": text})

    turns = [
        turn("it is a small fox"), turn("the background is red"), turn("here is a fox", "image"),
        turn("i hear a fast jig"),
    ]  # fmt: skip
    given = ["you said what is it : a large fox on blue", "i like it", "a dog", "a fast reel on the flute"]
    found = dialogues.judge_facts(turns, _answers(*given), [(text, None) for text in given], HEARD)
    # size, object; none; left out; tempo, dance: of five facts four are named, of which two are right
    assert found == {"n": 4, "right": 0.5, "named": 0.8}


def test_a_chain_is_heard_written_and_said(monkeypatch):
    """Of three answers one is right, one mistakes a word of two that it heard and says nothing, one writes no transcript."""

    class Recognizer:  # a sound is what is heard in it
        whisper = None

        def heard(self, sounds):
            return list(sounds)

    monkeypatch.setattr(dialogues, "Judges", Recognizer)
    told = {"spoken": True, "asked": "draw it", "answer_text": "here you are"}
    turns = [LastTurn("k", np.zeros(0, np.int32), (), 1, "", told) for _ in range(3)]
    texts = ("you said draw it : here you are", "you said paint it :", "here you are")
    answers = [
        answer.Answer((answer.Segment("text", t), answer.Segment("speech", np.zeros(0))), np.zeros(0, np.int32), 0)
        for t in texts
    ]
    media = [(text, "here you were") for text in texts]
    found = dialogues.judge_chain(turns, answers, media, [("here you are",)] * 3, HEARD)
    assert (found["n"], found["recognizer"]) == (3, "pocketsphinx")
    assert found["transcript_wer"] == pytest.approx((0 + 1 + 2) / 6)
    assert found["speech_wer"] == pytest.approx((1 + 3 + 3) / 9)
    assert found["speech_wer_of_truth"] == 0
    assert dialogues.judge_chain(turns, answers, media, [()] * 3, "") == {"n": 0}


def test_no_dialogue_of_one_turn_has_no_share():
    assert dialogues._share(np.zeros(0, bool)) == {"exact": None, "interval": None, "n": 0}
