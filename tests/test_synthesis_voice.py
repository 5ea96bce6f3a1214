"""Voice dialogues: conversations of instruction sets are read, refused where no voice can say them, spoken and set out."""

import argparse
import json
import pathlib
import shutil

import pytest
import synthesis_dialogues as made_up
import test_synthesis_stages as small

from anygpt_jax import cli
from anygpt_jax.embedded.splits import TRAIN, split_of
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.synthesis import export, filters, instructions, main, prompts, stages, store
from anygpt_jax.synthesis.backends import Failure
from anygpt_jax.synthesis.backends.embedded_dialogue import in_grammar
from anygpt_jax.synthesis.dialogue import Dialogue
from anygpt_jax.synthesis.filters.scripts import ScriptSettings
from anygpt_jax.synthesis.filters.scripts import filters as script_filters
from anygpt_jax.synthesis.filters.speakable import unspeakable
from anygpt_jax.synthesis.job import Job
from anygpt_jax.tasks.registry import any_instruct_source

FILES = pathlib.Path(__file__).parent / "instructions"
KEPT = ("chats-00000001", "chats-00000002", "tasks-00000001", "tasks-00000002")


def config_of(workdir, *named, **settings):
    config = cli.load_config(f"{small.CONFIG}:voice")
    config.workdir = str(workdir)
    config.synthesize.instructions = tuple(map(str, named or (FILES / "*",)))
    config.synthesize.update(runner_options=(), shards=2, held_out=0.3)
    config.synthesize.update(voices=("espeak-eva",), answering_voices=("espeak-flo",), **settings)
    return config


def read(tmp_path, *named, writer=None, **settings):
    """(dialogues, reasons of those that failed), by id."""
    job = Job.of(config_of(tmp_path, *named, **settings))
    shards = [instructions.dialogues(job, index, writer) for index in range(job.shards)]
    items = [Dialogue.from_json(row) for found, _ in shards for row in found]
    return {d.id: d for d in items}, {row["id"]: row["reason"] for _, failed in shards for row in failed}


def test_both_layouts_are_read_with_file_and_line(tmp_path):
    found, failed = read(tmp_path)
    said = {i: [(turn.role, turn.text) for turn in found[i].turns] for i in KEPT}
    assert said == {
        "tasks-00000001": [("human", "Name a fruit that grows in winter."), ("assistant", "Oranges ripen in winter, and so do lemons.")],
        "tasks-00000002": [("human", "Say this in other words.\nIt rains cats and dogs."), ("assistant", "It is raining very hard.")],
        "chats-00000001": [("human", "Good morning, how are you?"), ("assistant", "I am well, thank you. And you?"),
                           ("human", "A bit tired today."), ("assistant", "Then take a walk in the sun.")],
        "chats-00000002": [("human", "Do cats like milk?"), ("assistant", "Many do,\nbut water is better for them.")],
    }  # fmt: skip
    assert found["chats-00000002"].scenario == "You are kind."
    for i, d in found.items():
        name, line = i.rsplit("-", 1)
        file = next(FILES.glob(f"{name}.*"))
        assert d.made["instructions"].prompt == f"{file.name}:{int(line)}" and d.meta_topic == file.name
        assert (d.requirement, d.topic) == ("speech", d.turns[0].text)
        if file.suffix == ".jsonl":
            assert json.loads(file.read_text().splitlines()[int(line) - 1])["instruction"] in d.topic
    assert failed == {
        "tasks-00000010": "it has neither instruction and output nor a list of conversations or messages",
        "tasks-00000011": "it is no JSON object",
        "chats-00000003": "'tool' speaks in it, who is neither the human nor the assistant",
        "chats-00000004": "content is no text",
        "chats-00000006": "nobody says anything in it",
        "chats-00000007": "it has neither instruction and output nor a list of conversations or messages",
    }


def test_ids_and_splits_depend_on_the_record_alone(tmp_path):
    found, _ = read(tmp_path)
    alone, _ = read(tmp_path, FILES / "chats.json", shards=5)
    assert alone == {i: d for i, d in found.items() if i.startswith("chats")}
    shutil.copy(FILES / "chats.json", tmp_path / "again.json")
    twice, _ = read(tmp_path, FILES / "chats.json", tmp_path / "again.json")
    assert all(twice[i.replace("chats", "again")].split == alone[i].split == twice[i].split for i in alone)
    job = Job.of(config_of(tmp_path))
    assert all(d.split == job.split_of(d.topic) for d in found.values())


def test_the_script_filters_let_speech_alone_through_and_say_what_cannot_be_spoken(tmp_path):
    chain = script_filters(ScriptSettings())
    found, _ = read(tmp_path)
    judged = {i: made_up.applied(chain, d) for i, d in found.items()}
    assert {i for i, d in judged.items() if not d.removed_by} == set(KEPT)
    removed = {i: (d.removed_by, d.reason) for i, d in judged.items() if d.removed_by}
    for i, (name, reason) in {
        "tasks-00000004": ("speakable", "Turn 2 cannot be spoken: there is code, 'def add(a, b):'."),
        "tasks-00000005": ("speakable", "there is a table, '| drink |'"),
        "tasks-00000006": ("speakable", "there is an address, 'www.o'"),
        "tasks-00000007": ("speakable", "there is a list"),
        "tasks-00000008": ("words", "Turn 2 has 100 words; 1 to 60"),
        "tasks-00000009": ("speakable", "there is a formula"),
        "tasks-00000012": ("language", "It is taken for de"),
        "chats-00000005": ("form", "It has 1 turns"),
    }.items():
        assert removed[i][0] == name and reason in removed[i][1], removed[i]
    # A dialogue that was to have a picture is still refused without one, and is not asked whether it can be spoken.
    pictured = made_up.of_turns(("human", "what do you see in the picture"), ("assistant", "I see a x_y fox"))
    assert made_up.applied(chain, pictured).removed_by == "media"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Use `print` for it.", "code"),
        ("if (a == b) stop", "code"),
        ("for (;;) {\n  wait();\n}", "code"),
        ("import numpy as np\nfrom os import path", "code"),
        ("the file my_notes is here", "code"),
        ("<b>bold</b>", "code"),
        ("drink\tprice\ntea\t2", "a table"),
        ("tea | 2 | 3", "a table"),
        ("see https://a.example/b", "an address"),
        ("write to me@home.example", "an address"),
        ("it is in /usr/share/dict", "an address"),
        ("- milk\n- bread", "a list"),
        ("1) Go.\n\n2) Stop.", "a list"),
        ("x = 3", "a formula"),
        ("2^10 is much", "a formula"),
        ("call 5551234567", "a number too long to be said"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "a word too long to be said"),
        ("well done 🎉", "a sign that is not said"),
        ("# Title", "a sign that is not said"),
    ],
)
def test_what_a_voice_cannot_say(text, reason):
    assert unspeakable(text).startswith(f"{reason}, ")


@pytest.mark.parametrize(
    "text",
    [
        'It costs $5 or £6, which is 10% less than in 1999; "quite cheap", isn\'t it?',
        "1. That is the first. And there is no second.",
        "First we import salt.\n\nThen we sell it - and either/or is fine…",
        "Café, naïve and 1,000,000 people at 20 °C (or so)!",
        "from time to time\nI go out",
    ],
)
def test_what_a_voice_can_say(text):
    assert unspeakable(text) == ""


class Rewriter:
    name = "rewriter"

    def __init__(self, *answers):
        self._answers, self.asked = answers, []

    def make(self, requests):
        self.asked += requests
        return list(self._answers[: len(requests)])


def test_a_language_model_may_say_it_as_people_speak(tmp_path):
    records = [{"instruction": f"Question {i}?", "output": "- one\n- two" if i else "far " * 700} for i in range(5)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    writer = Rewriter(
        b"User: which two\nAssistant: one, and then two", b"NONE", Failure("the model refused"), b"User: [x]"
    )
    found, failed = read(tmp_path, tmp_path / "some.jsonl", writer=writer, shards=1)
    (one,) = found.values()
    assert [turn.text for turn in one.turns] == ["which two", "one, and then two"]
    assert one.made["instructions"].prompt == "some.jsonl:2" and one.topic == "Question 1?"
    assert one.made["dialogues"].digest == writer.asked[0].digest("rewriter")
    assert "User: Question 1?\nAssistant: - one\n- two" in writer.asked[0].content
    assert {i: reason.split(":")[-1].strip() for i, reason in failed.items()} == {
        "some-00000001": "it has 704 words, too many to be rewritten (600)",
        "some-00000003": "no line begins with a speaker",
        "some-00000004": "the model refused",
        "some-00000005": "a bracket is not closed, or describes no medium",
    }
    assert prompts.VERSION and prompts.SPOKEN not in prompts.FILES  # other sets need not be made again for it


def test_what_cannot_be_is_said_before_any_work(tmp_path):
    def refused(said, *named, **settings):
        with pytest.raises(UserError, match=said):
            stages.recipes(Job.of(config_of(tmp_path / "run", *named, **settings)))

    refused("spoken is 0.5; with instructions", spoken=0.5)
    refused("There is no .*none", tmp_path / "none.jsonl")
    (tmp_path / "some.txt").write_text("hello")
    refused("neither .jsonl nor .json", tmp_path / "some.txt")
    (tmp_path / "chats.jsonl").write_text("{}")
    refused("would give the same ids", tmp_path / "chats.jsonl", FILES / "chats.json")
    (tmp_path / "cut.json").write_text('[{"instruction": "a", "output": "b"}, {"instr')
    with pytest.raises(UserError, match=r"cut\.json is no JSON with one whole array"):
        read(tmp_path, tmp_path / "cut.json")


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    config = config_of(tmp_path_factory.mktemp("voice") / "run")
    job = Job.of(config)
    store.require_recipes(job.folder, stages.recipes(job), False)
    for stage in stages.STAGES:  # as the pipeline has them; those that this job has not do nothing
        for index in range(1 if stage == stages.SELECTED else job.shards):
            stages.run_shard(job, stage, index)
    return job


def test_every_utterance_is_heard_and_nothing_else_is_made(job):
    counted = main.counts(job)
    assert list(counted) == list(stages.STAGES[2:]) and not (job.folder / "topics").exists()
    assert counted["dialogues"] == {"items": 12, "failed": 6, "removed": 0}
    assert counted["checked"]["removed"] == 8 and counted["exported"]["items"] == len(KEPT)
    assert [path.name for path in (job.folder / "answers").iterdir()] == ["speech"]
    kept = {d.id: d for d in main.kept(job)}
    assert set(kept) == set(KEPT)
    for d in kept.values():
        assert all(turn.speech.description == turn.text and not turn.media for turn in d.turns)
        assert {turn.speech.voice for turn in d.turns} == {"espeak-eva", "espeak-flo"}
        assert all(turn.speech.scores["seconds"] > 0.3 for turn in d.turns)
    source = any_instruct_source(job.folder.parent / export.FOLDER, "you said {} :")
    for split in ("train", "validation", "test"):
        for example in source.get_dataset(split=split).as_numpy_iterator():
            d = kept.pop(example["key"].decode().rsplit("/", 1)[1])
            assert d.split == split
            assert list(example["modality"]) == [b"speech", b"text", b"speech"] * (len(d.turns) // 2)
            asked, answer = d.turns[:2]
            assert example["content"][1].decode() == f"you said {asked.text} : {answer.text}"
            assert example["content"][0] == (job.folder / asked.speech.file).read_bytes()
    assert not kept


def test_the_report_shows_where_the_words_are_from(job):
    page = main.report_of(job).read_text()
    assert "tasks.jsonl" in page and "chats-00000001" in page and "Good morning, how are you?" in page
    assert "cannot be spoken: there is code" in page and page.count("<audio") == 10


def test_another_file_is_another_set(job, tmp_path):
    copy = tmp_path / "chats.json"
    shutil.copy(FILES / "chats.json", copy)
    first = Job.of(config_of(tmp_path / "run", copy))
    recipes = stages.recipes(first)
    store.require_recipes(first.folder, recipes, False)
    assert stages.recipes(first) == recipes and list(recipes) == list(stages.of(first))
    copy.write_text(copy.read_text().replace("cats", "dogs"))
    with pytest.raises(UserError, match="dialogues was made with other settings"):
        store.require_recipes(first.folder, stages.recipes(first), False)


def test_the_small_sets_sentences_are_the_small_worlds_and_none_is_held_out():
    config = cli.load_config(f"{small.CONFIG}:voice")
    (path,) = config.synthesize.instructions
    lines = pathlib.Path(path).read_text().splitlines()
    said = [turn["content"] for line in lines for turn in json.loads(line)["messages"]]
    tokenizer = TextTokenizer.load()
    assert len(lines) == len({json.loads(line)["messages"][0]["content"] for line in lines}) == 120
    for text in set(said):
        assert tokenizer.decode(tokenizer.encode(text)) == text and unspeakable(text) == ""
        assert not in_grammar(text) or split_of("sentence", text) == TRAIN
    assert sum(map(in_grammar, said)) > 100  # and these its recognizer judges when they are spoken
    filters.check(config.synthesize.filters)


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bytes(tmp_path):
    named = (FILES / "chats.json", FILES / "tasks.jsonl")

    whole = config_of(tmp_path / "whole", *named)
    process = small.started(whole)
    process.join(300)
    assert process.exitcode == 0
    config = config_of(tmp_path / "killed", *named)
    folder = Job.of(config).folder
    assert small.kill_in_each(config, stages.of(Job.of(config))) >= 4
    main.run(config, argparse.Namespace(remake=False, json=None))
    for part in ("any_instruct", "report"):
        assert small.digest(tmp_path / "killed" / part) == small.digest(tmp_path / "whole" / part) != {}
    for stage in stages.of(Job.of(config)):
        for path in (folder / stage).glob("*-of-*.jsonl"):
            assert path.read_bytes() == (tmp_path / "whole" / "synthesis" / stage / path.name).read_bytes()
