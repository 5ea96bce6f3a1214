"""The stages that write: topics of every meta-topic, scenarios of the topics, scripts of the scenarios.

Each takes one shard of what came before and gives its items and those that failed; a shard has every so-manieth
meta-topic and all that came of it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import prompts, script
from anygpt_jax.synthesis.backends import Backend, Failure, Request, text_request
from anygpt_jax.synthesis.dialogue import Dialogue, Made
from anygpt_jax.synthesis.job import Job

Rows = list[dict[str, Any]]
Result = tuple[Rows, Rows]  # the items, and those that failed
WORDS_OF_A_TOPIC = (1, 10)  # AnyGPT, appendix


def meta_topics(job: Job) -> list[str]:
    """UserError if the file that the config names is not there or says nothing."""
    path = job.settings.meta_topics
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8") if path else prompts.meta_topics()
    except OSError as e:
        raise UserError(f"config.synthesize.meta_topics={path} cannot be read ({e.strerror}).") from e
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise UserError(f"config.synthesize.meta_topics={path} has no line; write one meta-topic a line.")
    return list(dict.fromkeys(found))


def topics(job: Job, index: int, writer: Backend) -> Result:
    """Items: id, meta_topic, topic, split, made. Each round sees the topics of those before; what it repeats fails."""
    s = job.settings
    mine = list(enumerate(meta_topics(job)))[index :: job.shards]
    items: Rows = []
    failed: Rows = []
    known: set[tuple[int, str]] = set()
    earlier: dict[int, list[str]] = {i: [] for i, _ in mine}  # answers, which later rounds are not to repeat
    for r in range(s.rounds):
        requests = []
        for i, meta in mine:
            about = {"meta_topic": meta, "count": int(s.topics_a_round), "round": r}
            messages = prompts.topics_messages(meta, s.topics_a_round, earlier[i])
            requests.append(text_request("topics", messages, about, job.seed_of("topics", meta, r)))
        for (i, meta), request, answer in zip(mine, requests, writer.make(requests), strict=True):
            call = f"{i:03}-{r}"
            if isinstance(answer, Failure):
                failed.append(_failure(call, answer.reason))
                continue
            earlier[i].append(answer.decode("utf-8"))
            listed = prompts.numbered(earlier[i][-1])
            if not listed:
                failed.append(_failure(call, "the answer is no numbered list"))
            for n, topic in enumerate(listed[: s.topics_a_round]):
                key = (i, " ".join(topic.lower().split()))
                if fault := _fault_of_topic(topic, key in known):
                    failed.append(_failure(f"{call}-{n:02}", fault))
                    continue
                known.add(key)
                row = {"id": f"{call}-{n:02}", "meta_topic": meta, "topic": topic, "split": job.split_of(topic)}
                items.append({**row, "made": made(writer, request)})
    return sorted(items, key=lambda row: row["id"]), sorted(failed, key=lambda row: row["id"])


def _fault_of_topic(topic: str, known: bool) -> str:
    (low, high), words = WORDS_OF_A_TOPIC, len(topic.split())
    if not low <= words <= high:
        return f"the topic has {words} words, not {low} to {high}"
    return "the meta-topic has this topic already" if known else ""


def scenarios(job: Job, rows: Rows, writer: Backend) -> Result:
    """Items: those of the topics, each so often as `scenarios_a_topic` says, with requirement and scenario.

    Topics of one split are asked for together.
    """
    calls = [
        [{**row, "id": f"{row['id']}-{k}"} for row in call]
        for call in _calls(rows, int(job.settings.topics_a_call))
        for k in range(job.settings.scenarios_a_topic)
    ]
    shares = job.settings.requirements.to_dict()
    requests, demands = [], []
    for call in calls:
        seed = job.seed_of("scenarios", call[0]["id"])
        demand = _drawn(shares, np.random.default_rng(seed))
        about = {"topics": [{"id": row["id"], "topic": row["topic"]} for row in call], "requirement": demand}
        messages = prompts.scenarios_messages([row["topic"] for row in call], demand, seed)
        requests.append(text_request("scenarios", messages, {**about, "split": call[0]["split"]}, seed))
        demands.append(demand)
    items, failed = [], []
    for call, demand, request, answer in zip(calls, demands, requests, writer.make(requests), strict=True):
        if isinstance(answer, Failure):
            failed += [_failure(row["id"], answer.reason) for row in call]
            continue
        told = prompts.numbered(answer.decode("utf-8"))
        for i, row in enumerate(call):
            if i < len(told):
                made_by = {"topics": row["made"], "scenarios": made(writer, request)}
                items.append({**row, "requirement": demand, "scenario": told[i], "made": made_by})
            else:
                failed.append(_failure(row["id"], f"the answer has {len(told)} scenarios for {len(call)} topics"))
    return items, failed


def dialogues(job: Job, rows: Rows, writer: Backend) -> Result:
    """Items: `Dialogue`s whose media are described."""
    low, high = job.settings.rounds_a_dialogue
    requests = []
    for row in rows:
        seed = job.seed_of("dialogues", row["id"])
        rounds = int(np.random.default_rng(seed).integers(low, high + 1))
        about = {name: row[name] for name in ("topic", "requirement", "scenario", "split")} | {"rounds": rounds}
        messages = prompts.dialogues_messages(row["scenario"], row["requirement"], rounds, seed)
        requests.append(text_request("dialogues", messages, about, seed))
    items, failed = [], []
    for row, request, answer in zip(rows, requests, writer.make(requests), strict=True):
        if isinstance(answer, Failure):
            failed.append(_failure(row["id"], answer.reason))
            continue
        try:
            turns = script.parse(answer.decode("utf-8"))
        except script.ScriptError as e:
            failed.append(_failure(row["id"], f"the answer is no script: {e}"))
            continue
        made_by = {stage: Made(**one) for stage, one in row["made"].items()}
        made_by["dialogues"] = Made(**made(writer, request))
        of = {name: row[name] for name in ("id", "meta_topic", "topic", "split", "requirement", "scenario")}
        items.append(Dialogue(**of, turns=turns, made=made_by).to_json())
    return items, failed


def made(backend: Backend, request: Request) -> dict[str, Any]:
    """As JSON: the trace of an answer. Which prompts they were; their filled form is long, and in the cache."""
    prompt = f"{request.purpose}, prompts {prompts.VERSION}"
    return {"backend": backend.name, "prompt": prompt, "seed": request.seed, "digest": request.digest(backend.name)}


def _calls(rows: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    by_split: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_split.setdefault(row["split"], []).append(row)
    for same in by_split.values():
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _drawn(shares: Mapping[str, float], rng: np.random.Generator) -> str:
    weights = np.array([shares[name] for name in sorted(shares)])
    return sorted(shares)[int(rng.choice(len(weights), p=weights / weights.sum()))]


def _failure(id: str, reason: str) -> dict[str, str]:
    return {"id": id, "reason": reason}
