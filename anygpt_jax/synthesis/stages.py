"""The stages in their order, and one shard of one of them: what a worker is asked for."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping

from anygpt_jax.synthesis import export, filters, instructions, media, prompts, store, writing
from anygpt_jax.synthesis.backends.cached import Cached
from anygpt_jax.synthesis.backends.chosen import backend_of
from anygpt_jax.synthesis.dialogue import Dialogue
from anygpt_jax.synthesis.filters import selection
from anygpt_jax.synthesis.job import Job
from anygpt_jax.synthesis.writing import Result
from anygpt_jax.templates import TEXT

VERSION = 1  # raise it when the same settings would make other dialogues
BEFORE = ("topics", "scenarios", "dialogues", "checked")  # a shard at a time
SELECTED = "selected"  # the whole set at once: duplicates, and the balance of modalities
AFTER = ("media", "judged", "exported")  # a shard at a time
STAGES = (*BEFORE, SELECTED, *AFTER)


def of(job: Job) -> tuple[str, ...]:
    """The stages of this job: where the words come from instruction sets, nothing is before `dialogues`."""
    return STAGES[STAGES.index("dialogues") :] if job.instructed else STAGES


def _made_media(job: Job) -> tuple[str, ...]:
    """The modalities that the stage `media` makes; dialogues of instruction sets have only voices."""
    return ("speech",) if job.instructed else ("image", "music", "speech")


@functools.lru_cache(maxsize=8)
def _backend(job: Job, modality: str) -> Cached:
    """A process makes each once: a model is loaded, a connection opened."""
    return backend_of(job, modality)


def run_shard(job: Job, stage: str, index: int) -> None:
    """Makes one shard, if it is not there and the job has this stage. Those of the stage before must be whole."""
    if stage not in of(job):
        return
    count = 1 if stage == SELECTED else job.shards
    if not store.is_whole(job.folder, stage, index, count):
        items, failed = _MAKERS[stage](job, index)
        store.write(job.folder, stage, index, count, items, failed)


def forget_failures(job: Job) -> None:
    """Drops the shards in which something failed, and all that was made of them, so that they are made again.

    Answers are kept, so that only what failed is asked again.
    """
    early = False
    for stage in (*BEFORE, *AFTER):
        for index in range(job.shards):
            path = store.failed_path(job.folder, stage, index, job.shards)
            if not path.is_file() or not path.stat().st_size:
                continue
            early = early or stage in BEFORE
            for later in STAGES[STAGES.index(stage) :]:
                if later != SELECTED:
                    store.forget(job.folder, later, index, job.shards)
    if early:  # what is selected depends on all shards
        store.forget(job.folder, SELECTED, 0, 1)
        for stage in AFTER:
            for index in range(job.shards):
                store.forget(job.folder, stage, index, job.shards)


def _before(job: Job, stage: str, index: int) -> writing.Rows:
    return store.items(job.folder, STAGES[STAGES.index(stage) - 1], index, job.shards)


def _topics(job: Job, index: int) -> Result:
    return writing.topics(job, index, _backend(job, TEXT))


def _dialogues(job: Job, index: int) -> Result:
    if job.instructed:
        return instructions.dialogues(job, index, _backend(job, TEXT) if job.settings.get("rewrite") else None)
    return writing.dialogues(job, _before(job, "dialogues", index), _backend(job, TEXT))


def _scenarios(job: Job, index: int) -> Result:
    return writing.scenarios(job, _before(job, "scenarios", index), _backend(job, TEXT))


def _read(job: Job) -> Callable[[str], bytes]:
    return lambda file: (job.folder / file).read_bytes()


def _checked(job: Job, index: int) -> Result:
    chosen = filters.of_scripts(job.settings.filters)
    rows = map(Dialogue.from_json, _before(job, "checked", index))
    return [one.to_json() for one in filters.apply_many(chosen, list(rows), _read(job))], []


def _selected(job: Job, index: int) -> Result:
    """Items: id, removed_by, reason of every dialogue that the script filters let through."""
    rows = map(Dialogue.from_json, store.all_items(job.folder, "checked", job.shards))
    decided = selection.select(rows, filters.of_selection(job.settings.filters))
    return [{"id": id, "removed_by": name, "reason": reason} for id, (name, reason) in sorted(decided.items())], []


def _media(job: Job, index: int) -> Result:
    kept = {row["id"] for row in store.items(job.folder, SELECTED, 0, 1) if not row["removed_by"]}
    rows = map(Dialogue.from_json, store.items(job.folder, "checked", index, job.shards))
    backends = {modality: _backend(job, modality) for modality in _made_media(job)}
    return media.make(job, [d for d in rows if d.id in kept], backends)


def _judged(job: Job, index: int) -> Result:
    chosen = filters.of_media(job.settings.filters)
    rows = map(Dialogue.from_json, _before(job, "judged", index))
    return [one.to_json() for one in filters.apply_many(chosen, list(rows), _read(job))], []


def _exported(job: Job, index: int) -> Result:
    """Items: id and split of what the set holds."""
    rows = map(Dialogue.from_json, _before(job, "exported", index))
    kept = [d for d in rows if not d.removed_by]
    export.shard(job.folder.parent / export.FOLDER, job.folder, index, kept)
    return [{"id": d.id, "split": d.split} for d in kept], []


_MAKERS: Mapping[str, Callable[[Job, int], Result]] = {
    "topics": _topics,
    "scenarios": _scenarios,
    "dialogues": _dialogues,
    "checked": _checked,
    SELECTED: _selected,
    "media": _media,
    "judged": _judged,
    "exported": _exported,
}


def recipes(job: Job) -> dict[str, str]:
    """Of every stage: a digest of what decides its items, the stages before it among them."""
    s = job.settings.to_dict()
    made_by = {modality: _backend(job, modality).name for modality in _made_media(job)}
    words: Mapping[str, object]
    if job.instructed:
        rewriter = [_backend(job, TEXT).name, prompts.read(prompts.SPOKEN)] if s.get("rewrite") else None
        words = {"dialogues": [instructions.digest(job), rewriter, s["shards"], s["held_out"]]}
    else:
        words = {
            "topics": [
                _backend(job, TEXT).name, prompts.VERSION, s["shards"], s["rounds"], s["topics_a_round"], s["held_out"],
                writing.meta_topics(job),
            ],
            "scenarios": [s["topics_a_call"], s["scenarios_a_topic"], s["requirements"]],
            "dialogues": s["rounds_a_dialogue"],
        }  # fmt: skip
    own: Mapping[str, object] = {
        **words,
        "checked": [s["filters"].get("scripts"), filters.words_digest()],
        SELECTED: s["filters"].get("selection"),
        "media": [made_by, *(s[name] for name in ("voices", "answering_voices", "spoken"))],
        "judged": s["filters"].get("media"),
        "exported": export.VERSION,
    }  # fmt: skip
    found, before = {}, json.dumps([VERSION, job.seed])
    for stage in of(job):
        before = hashlib.sha256(json.dumps([before, own.get(stage)], sort_keys=True).encode()).hexdigest()
        found[stage] = before[:16]
    return found
