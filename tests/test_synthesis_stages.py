"""The stages of the synthesis: from topics to a data set that the ordinary sources read, killed in every one of them."""

import argparse
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import tarfile
import time

import pytest

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import export, main, media, prompts, stages, store, writing
from anygpt_jax.synthesis.backends import Failure, Request
from anygpt_jax.synthesis.backends.chosen import backend_of
from anygpt_jax.synthesis.backends.embedded_text import EmbeddedText
from anygpt_jax.synthesis.dialogue import Dialogue, media_of
from anygpt_jax.synthesis.job import Job
from anygpt_jax.tasks.sources import any_instruct
from anygpt_jax.tasks.sources.source import File

CONFIG = pathlib.Path(__file__).resolve().parent.parent / "configs" / "synthesize_small.py"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["data_pipelines.synthesize"])


def config_of(workdir: pathlib.Path, **settings):
    config = cli.load_config(str(CONFIG))
    config.workdir = str(workdir)
    topics = workdir.parent / "meta_topics.txt"
    topics.write_text("winter walks\nroad trips\ncoffee and cafes\nbaking bread\n")
    config.synthesize.update(
        meta_topics=str(topics),
        rounds=1,
        topics_a_round=3,
        scenarios_a_topic=1,
        shards=2,
        runner_options=(),
        held_out=0.3,
    )
    config.synthesize.update(settings)
    return config


def run(config) -> Job:
    """Every stage in this process, without Beam."""
    job = Job.of(config)
    store.require_recipes(job.folder, stages.recipes(job), False)
    for stage in stages.STAGES:
        for index in range(1 if stage == stages.SELECTED else job.shards):
            stages.run_shard(job, stage, index)
    return job


def digest(folder: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    return run(config_of(tmp_path_factory.mktemp("synthesis") / "run", spoken=0.5))


def dialogues(job: Job) -> list[Dialogue]:
    return list(main.kept(job))


def test_every_topic_becomes_a_dialogue_or_is_accounted_for(job):
    counted = main.counts(job)
    assert counted["topics"]["items"] + counted["topics"]["failed"] == 12
    for stage, before in zip(stages.STAGES[1:], stages.STAGES, strict=False):
        c, b = counted[stage], counted[before]
        assert c["items"] + c["failed"] == b["items"] - b["removed"] or stage == "selected"
    kept = dialogues(job)
    assert len(kept) == counted["exported"]["items"] > 6
    assert len({d.id for d in kept}) == len(kept)
    assert {"train", "test"} <= {d.split for d in kept} <= {"train", "validation", "test"}
    assert all(job.split_of(d.topic) == d.split for d in kept)


def test_every_medium_is_traceable_to_its_prompt_and_comes_again(job):
    kept = dialogues(job)
    found = [(d, place, m) for d in kept for place, m in media_of(d)]
    assert {m.modality for _, _, m in found} == {"image", "music", "speech"}
    for d, place, medium in found:
        backend = backend_of(job, medium.modality)
        request = media._request(job, d, place, medium)
        assert medium.made.digest == request.digest(backend.name) and medium.made.backend == backend.name
        assert medium.made.prompt == medium.description == request.content and medium.made.seed == request.seed
        data = (job.folder / medium.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == medium.sha256
        assert medium.scores  # of the filters
    d, place, medium = next(one for one in found if one[2].modality == "image")
    (again,) = backend_of(job, "image")._backend.make([media._request(job, d, place, medium)])
    assert hashlib.sha256(again).hexdigest() == medium.sha256


def test_the_exported_metadata_say_of_every_medium_where_it_came_from(job):
    answers = {
        row["digest"]: row
        for path in (job.folder / "answers").glob("*/answers-*.jsonl")
        for row in map(json.loads, path.read_text("utf-8").splitlines())
    }
    seen = set()
    for path in sorted((job.folder.parent / export.FOLDER).glob("*/metadata-*.jsonl")):
        data = {}
        for name in export.TARS.values():
            with tarfile.open(path.with_name(path.name.replace("metadata", name)).with_suffix(".tar")) as tar:
                data |= {member.name: tar.extractfile(member).read() for member in tar}
        for row in map(json.loads, path.read_text("utf-8").splitlines()):
            named = {f for turn in row["chat"] for n in export.TARS.values() for f in _listed(turn.get(n, []))}
            assert named == {m["file"] for m in row["media"]}
            for medium in row["media"]:
                made, asked = medium["made"], answers[medium["made"]["digest"]]["request"]
                assert made["prompt"] == medium["description"] == asked["messages"][-1][1]
                assert made["seed"] == asked["seed"] and made["backend"].startswith("embedded")
                assert medium["sha256"] == hashlib.sha256(data[medium["file"]]).hexdigest()
                assert medium["scores"].keys() & {"contrast", "loudness"}
                seen.add(medium["modality"])
            # Who described it: the messages of every stage before, in the words that were sent.
            assert row["made"].keys() == {"topics", "scenarios", "dialogues"}
            for stage, made in row["made"].items():
                asked = answers[made["digest"]]["request"]
                assert made["prompt"] == f"{stage}, prompts {prompts.VERSION}" and made["seed"] == asked["seed"]
            assert row["scenario"] in answers[row["made"]["dialogues"]["digest"]]["request"]["messages"][-1][1]
            assert "language_en" in row["scores"]
    assert seen == {"image", "music", "speech"}


def _listed(files):
    return [files] if isinstance(files, str) else files


def test_the_set_reads_back_by_the_source_of_the_release(job):
    folder = job.folder.parent / export.FOLDER
    kept = {d.id: d for d in dialogues(job)}
    tars = {m: tuple(sorted((folder / "train").glob(f"{name}-*.tar"))) for m, name in export.TARS.items()}
    read = {}
    for path in sorted((folder / "train").glob("metadata-*.jsonl")):
        names = tuple(vars(any_instruct.Names()).values())
        for unit in any_instruct.read(File(path, path.name, "train"), tars, names, True):
            read |= {example["key"]: example for example in unit()}
    assert read.keys() == {i for i, d in kept.items() if d.split == "train"}
    for i, example in read.items():
        assert all(isinstance(content, str | bytes) for content in example["content"])
        wanted = []
        for said in kept[i].turns:
            own = [m.modality for m in said.media]
            heard = ["speech"] if said.speech else []
            text = ["text"] if said.text else []
            wanted += [*own, *heard, *([] if heard else text)] if said.role == "human" else [*text, *own, *heard]
        assert example["modality"] == wanted
    # Any medium of it is the file that was made.
    d = next(d for d in kept.values() if d.split == "train" and any(m.modality == "image" for _, m in media_of(d)))
    picture = next(m for _, m in media_of(d) if m.modality == "image")
    assert (job.folder / picture.file).read_bytes() in read[d.id]["content"]


class Scripted(EmbeddedText):
    """The embedded writer, but for one request in three."""

    name = "scripted"

    def __init__(self, answer):
        self.answer = answer

    def make(self, requests):
        return [self.answer if i % 3 == 0 else one for i, one in enumerate(super().make(requests))]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Failure("the model refused"), "the model refused"),
        (b"I am not able to do that.", "no line begins with a speaker"),
        (b"User: a film please\nAssistant: here [video: a cat]", "is no medium of a script"),
    ],
)
def test_what_is_no_dialogue_costs_itself_alone(job, answer, reason):
    rows = store.items(job.folder, "scenarios", 0, 2)
    items, failed = writing.dialogues(job, rows, Scripted(answer))
    lost = {row["id"] for row in rows[::3]}
    assert {row["id"] for row in failed} == lost and all(reason in row["reason"] for row in failed)
    kept = {row["id"] for row in store.items(job.folder, "dialogues", 0, 2)}
    assert {row["id"] for row in items} == kept - lost


def test_a_list_that_is_too_short_loses_what_it_lacks(job):
    rows = store.items(job.folder, "topics", 0, 2)

    class Short(EmbeddedText):
        def make(self, requests):
            return [b"1. the user wants a picture"] * len(requests)

    items, failed = writing.scenarios(job, rows, Short())
    calls = len({row["split"] for row in rows})
    assert len(items) == calls and len(failed) == len(rows) - calls
    assert "1 scenarios for" in failed[0]["reason"]


def test_a_picture_that_cannot_be_made_costs_its_dialogue_alone(job):
    rows = [Dialogue.from_json(row) for row in store.items(job.folder, "checked", 0, 2)]
    backends = {m: backend_of(job, m) for m in ("image", "music", "speech")}
    fault = next(d for d in rows if any(m.modality == "image" for s in d.turns for m in s.media))
    changed = json.loads(json.dumps(fault.to_json()))
    next(m for t in changed["turns"] for m in t["media"] if m["modality"] == "image")["description"] = "a purple dragon"
    items, failed = media.make(job, [Dialogue.from_json(changed) if d is fault else d for d in rows], backends)
    assert [row["id"] for row in failed] == [fault.id] and "a purple dragon" in failed[0]["reason"]
    assert {row["id"] for row in items} == {d.id for d in rows} - {fault.id}


def test_other_settings_are_refused_until_they_are_to_be_made_again(job, tmp_path):
    config = config_of(tmp_path / "run")
    first = Job.of(config)
    store.require_recipes(first.folder, stages.recipes(first), False)
    store.write(first.folder, "topics", 0, 2, [{"id": "kept"}])
    store.write(first.folder, "media", 0, 2, [{"id": "old"}])
    config.synthesize.spoken = 0.9
    other = Job.of(config)
    with pytest.raises(UserError, match="media was made with other settings or prompts; give --remake"):
        store.require_recipes(other.folder, stages.recipes(other), False)
    store.require_recipes(other.folder, stages.recipes(other), True)
    assert store.is_whole(other.folder, "topics", 0, 2) and not store.is_whole(other.folder, "media", 0, 2)
    config.synthesize.text.backend = "oracle"
    with pytest.raises(UserError, match=r"text\.backend is 'oracle'; there are embedded, http, local"):
        stages.recipes(Job.of(config))


def test_requests_differ_by_what_decides_their_answer():
    one = Request("image", "media", (("user", "a fox"),), {}, 1)
    assert one.digest("a") == Request("image", "media", (("user", "a fox"),), {}, 1).digest("a")
    others = [one.digest("b"), Request("image", "media", (("user", "a fox"),), {}, 2).digest("a")]
    assert len({one.digest("a"), *others}) == 3


def _synthesize(text: str) -> None:
    os.setpgid(0, 0)
    import ml_collections

    config = ml_collections.ConfigDict(json.loads(text))
    main.run(config, argparse.Namespace(remake=False, json=None))


def started(config):
    """A job in a process group of its own, to be killed whole."""
    process = CONTEXT.Process(target=_synthesize, args=(config.to_json(),))
    process.start()
    return process


def kill_in_each(config, names) -> int:
    """Starts the job for each of these stages and kills it in the middle of it; how often it was not too late for that."""
    folder, killed = Job.of(config).folder, 0
    for stage in names:
        process = started(config)
        until = time.monotonic() + 120
        # In the middle of the stage: as soon as anything of it, or an answer that it asked for, is on the disk.
        while process.is_alive() and time.monotonic() < until and not any((folder / stage).glob("*.jsonl")):
            time.sleep(0.002)
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.join()
    return killed


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bytes(tmp_path):
    whole = config_of(tmp_path / "whole", spoken=0.5)
    process = started(whole)
    process.join(300)
    assert process.exitcode == 0
    config = config_of(tmp_path / "killed", spoken=0.5)
    folder = Job.of(config).folder
    assert kill_in_each(config, stages.STAGES) >= len(stages.STAGES) - 1
    process = started(config)
    process.join(300)
    assert process.exitcode == 0
    assert digest(tmp_path / "killed" / export.FOLDER) == digest(tmp_path / "whole" / export.FOLDER)
    same = [f"{stage}/{path.name}" for stage in stages.STAGES for path in (folder / stage).glob("*-of-*.jsonl")]
    assert same and all(
        (folder / name).read_bytes() == (tmp_path / "whole" / "synthesis" / name).read_bytes() for name in same
    )


def test_what_else_ends_a_line_for_python_is_text(tmp_path):
    told = "".join(map(chr, [*range(0x20), 0x85, 0x2028, 0x2029, 0xFEFF]))
    rows = [{"id": i, "text": f"{i}{told}{i}"} for i in range(3)]
    store.write(tmp_path, "dialogues", 0, 1, rows, rows[:1])
    assert store.items(tmp_path, "dialogues", 0, 1) == rows
    assert store.failed(tmp_path, "dialogues") == rows[:1]
