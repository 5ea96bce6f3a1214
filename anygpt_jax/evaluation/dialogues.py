"""Dialogues: does the last answer hold the modalities that were asked for, and no others?

The true history is given and the model goes on by the free plan: it alone chooses what to answer with. What the truth
answers with is what was asked for.
"""

from __future__ import annotations

import collections
import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.cache import CacheReader
from anygpt_jax.evaluation.examples import read_split, stable_order
from anygpt_jax.evaluation.judges.chosen import Judges
from anygpt_jax.evaluation.predictions import Predictions
from anygpt_jax.evaluation.runner import SHOWN, Evaluation
from anygpt_jax.evaluation.segments import decode, modalities
from anygpt_jax.evaluation.statistics import MetricFn, bootstrap_interval
from anygpt_jax.generation.answer import Answer, Segment, split_answer
from anygpt_jax.generation.automaton import ANY
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.records import TokenRecord
from anygpt_jax.tasks import metrics
from anygpt_jax.tasks.metrics.scores import IMAGE_ATTRIBUTES, MUSIC_ATTRIBUTES
from anygpt_jax.tasks.metrics.text import parse_attributes
from anygpt_jax.templates import OPENING, TEXT
from anygpt_jax.vocabulary import Vocabulary

TASK = "dialogues"


@dataclasses.dataclass(frozen=True)
class LastTurn:
    """A dialogue up to its last answer, and that answer."""

    key: str
    prompt: np.ndarray  # int32[N], up to where the assistant speaks for the last time
    truth: tuple[Segment, ...]
    human_turns: int  # before it
    asked: str  # what the human wrote last; "" if it is in media alone
    attributes: dict[str, Any]

    @property
    def form(self) -> str:
        """What the data call its kind, by which scores are split up; "dialogue" where they do not say."""
        return self.attributes.get("form", "dialogue")

    @classmethod
    def of(
        cls, record: TokenRecord, vocabulary: Vocabulary, text: TextTokenizer, attributes: dict[str, Any]
    ) -> LastTurn | None:
        """None of a record in which nobody answers."""
        human, assistant = (np.flatnonzero(record.tokens == vocabulary.marker(OPENING[r])) for r in OPENING)
        if not len(assistant) or not len(human) or human[0] > assistant[-1]:
            return None
        cut = int(assistant[-1]) + 1
        last = int(human[human < cut][-1])
        said, start = [], 0
        for span in record.spans:
            ids = record.tokens[start : start + span.length]
            if last < start < cut and span.role == "human" and span.modality == TEXT and ids[0] < vocabulary.text_size:
                said.append(text.decode(ids))
            start += span.length
        truth = split_answer(record.tokens[cut:], vocabulary, text)
        before = int((human < cut).sum())
        return cls(record.key, record.tokens[:cut], truth, before, " ".join(said), attributes)


def read_turns(evaluation: Evaluation, split: str, task: str = TASK) -> list[LastTurn]:
    """`evaluate.dialogues` (None: all) of the split, those with several turns first, in a stable order."""
    engine = evaluation.trained.engine
    attributes = {example.key: example.attributes for example in read_split(task, split)}
    reader = CacheReader(evaluation.workdir / "cache", task, split)
    turns = []
    for i in range(len(reader)):
        record = reader[i]
        turn = LastTurn.of(record, engine.vocabulary, evaluation.trained.formatter.text, attributes.get(record.key, {}))
        if turn is not None:
            turns.append(turn)
    turns.sort(key=lambda turn: (turn.human_turns < 2, stable_order(turn.key)))
    return turns[: evaluation.config.evaluate.get("dialogues")]


def run(evaluation: Evaluation, task: str = TASK) -> dict[str, Any] | None:
    """The entry of a task of dialogues; an earlier run's if nothing has changed since. None without any dialogue."""
    split = evaluation.config.evaluate.split
    predictions = Predictions(evaluation.workdir / "predictions" / task, evaluation.tokenizers)
    recipe = evaluation.recipe(task, split)
    if finished := predictions.finished(recipe):
        return finished
    began = time.monotonic()
    turns = read_turns(evaluation, split, task)
    if not turns:
        return None
    predictions.start()
    seeds = [stable_order(turn.key, f"{evaluation.config.seed}/{task}") for turn in turns]
    answers = evaluation.trained.engine.generate([turn.prompt for turn in turns], ANY, seeds)
    media = decode(evaluation.trained, [answer.segments for answer in answers])
    images = judge_media("image", IMAGE_ATTRIBUTES, metrics.image_attributes, turns, answers, media)
    entry = {**entry_of(turns, answers), "images": images}
    if task != TASK:
        entry["music"] = judge_media("music", MUSIC_ATTRIBUTES, metrics.music_attributes, turns, answers, media)
        heard = evaluation.config.tokenize.get("heard") or ""
        entry["own_words"] = judge_own_words(answers, media, heard)
        entry["facts"] = judge_facts(turns, answers, media, heard)
        spoken = [t.truth if t.attributes.get("spoken") else () for t in turns]
        truths = decode(evaluation.trained, [tuple(s for s in truth if s.modality == "speech") for truth in spoken])
        entry["chain"] = judge_chain(turns, answers, media, truths, heard)
    entry["seconds"] = round(time.monotonic() - began, 1)
    _keep(predictions, evaluation, turns, answers, media)
    predictions.finish(entry, recipe)
    return entry


def entry_of(turns: Sequence[LastTurn], answers: Sequence[Answer]) -> dict[str, Any]:
    """`exact` is the share of answers with the true one's modalities in their order, with a bootstrap interval.

    `same_set` leaves the order aside, not the number. `confusions` counts what was answered in the place of what.
    """
    wanted = [modalities(turn.truth) for turn in turns]
    given = [modalities(answer.segments) for answer in answers]
    exact = np.array([a == b for a, b in zip(wanted, given, strict=True)])
    several = np.array([turn.human_turns >= 2 for turn in turns])
    forms = np.array([turn.form for turn in turns])
    confused = collections.Counter(
        (", ".join(a), ", ".join(b)) for a, b, right in zip(wanted, given, exact, strict=True) if not right
    )
    return {
        **_share(exact),
        "same_set": float(np.mean([sorted(a) == sorted(b) for a, b in zip(wanted, given, strict=True)])),
        "several_turns": _share(exact[several]),
        "one_turn": _share(exact[~several]),
        "by_form": {str(form): _share(exact[forms == form]) for form in sorted(set(forms))},
        "by_modalities": {
            name: _share(exact[[", ".join(a) == name for a in wanted]])
            for name in sorted({", ".join(a) for a in wanted})
        },
        "confusions": [{"wanted": a, "answered": b, "n": n} for (a, b), n in confused.most_common()],
    }


def _share(right: np.ndarray) -> dict[str, Any]:
    """Of bool[n]; n = 0 has no share."""
    if not len(right):
        return {"exact": None, "interval": None, "n": 0}
    interval = bootstrap_interval(np.stack([right, np.ones(len(right))], axis=1).astype(np.float64))
    return {"exact": float(right.mean()), "interval": list(interval), "n": len(right)}


def judge_media(
    modality: str,
    names: Sequence[str],
    metric: MetricFn,
    turns: Sequence[LastTurn],
    answers: Sequence[Answer],
    media: Sequence[Sequence[Any]],
) -> dict[str, float]:
    """What the judge sees or hears where a medium was asked for with one of these attributes; no medium is wrong."""
    asked = [i for i, t in enumerate(turns) if modality in modalities(t.truth) and set(names) & set(t.attributes)]
    if not asked:
        return {"n": 0}
    found = [_first(modality, answers[i], media[i]) for i in asked]
    return {"n": len(asked), **metric([turns[i].attributes for i in asked], found)}


def judge_own_words(
    answers: Sequence[Answer], media: Sequence[Sequence[Any]], heard: str
) -> dict[str, dict[str, float]]:
    """Of answers with a medium and words: does it show, or sound like, what they say? What they write that they `heard`
    is not what they say."""
    found: dict[str, dict[str, float]] = {}
    for modality, names, metric in (
        ("image", IMAGE_ATTRIBUTES, metrics.image_attributes),
        ("music", MUSIC_ATTRIBUTES, metrics.music_attributes),
    ):
        said = [parse_attributes(_heard_and_said(a, m, heard)[1], names) for a, m in zip(answers, media, strict=True)]
        made = [_first(modality, a, m) for a, m in zip(answers, media, strict=True)]
        both = [i for i in range(len(answers)) if said[i] and made[i] is not None]
        scores = metric([said[i] for i in both], [made[i] for i in both]) if both else {}
        found[modality] = {"n": len(both), **scores}
    return found


def judge_facts(
    turns: Sequence[LastTurn], answers: Sequence[Answer], media: Sequence[Sequence[Any]], heard: str
) -> dict[str, float]:
    """Of answers that are to be words about a picture or a tune: the share of the facts that both the true and the given
    answer name, and that are the same. `n` is the number of these facts, `named` their share of those in the true ones."""
    same = both = true = 0
    for turn, answer, decoded in zip(turns, answers, media, strict=True):
        if {"image", "music"} & set(modalities(turn.truth)):
            continue
        names = (*IMAGE_ATTRIBUTES, *MUSIC_ATTRIBUTES)
        wanted = parse_attributes(str(turn.attributes.get("answer_text", "")), names)
        given = parse_attributes(_heard_and_said(answer, decoded, heard)[1], names)
        true += len(wanted)
        both += len(set(wanted) & set(given))
        same += sum(given.get(name) == value for name, value in wanted.items())
    return {"n": both, "right": same / both if both else 0.0, "named": both / true if true else 0.0}


def judge_chain(
    turns: Sequence[LastTurn],
    answers: Sequence[Answer],
    media: Sequence[Sequence[Any]],
    truths: Sequence[Sequence[Any]],
    heard: str,
) -> dict[str, Any]:
    """Of answers to speech: word error rates of the transcript that they begin with (as `heard` has it), and of what a
    recognizer hears in their speech against the text before it. An answer without the one or the other has all wrong.

    `truths` are the true answers' speech as the tokenizer leaves it: what is heard in that is the best there can be.
    """
    spoken = [i for i, turn in enumerate(turns) if turn.attributes.get("spoken")]
    if not spoken or not heard:
        return {"n": 0}
    transcripts, replies, sounds = [], [], []
    for i in spoken:
        transcript, reply = _heard_and_said(answers[i], media[i], heard)
        transcripts.append(transcript or "")
        replies.append("" if transcript is None else reply)
        sounds.append(_first("speech", answers[i], media[i]) if replies[-1] else None)
    whisper = (judges := Judges()).whisper
    hear = whisper.heard if whisper else judges.heard
    said = iter(hear([sound for sound in sounds if sound is not None]))
    agreed = [None if sound is None else next(said) for sound in sounds]
    asked = [{"text": turns[i].attributes["asked"]} for i in spoken]
    true = [i for i in spoken if truths[i]]
    true_text = [{"text": turns[i].attributes["answer_text"]} for i in true]
    wanted = [{"text": r or turns[i].attributes["answer_text"]} for r, i in zip(replies, spoken, strict=True)]
    return {
        "n": len(spoken),
        "recognizer": f"whisper {whisper.size}" if whisper else "pocketsphinx",
        "transcript_wer": metrics.word_error_rate(asked, transcripts)["wer"],
        "speech_wer": metrics.word_error_rate(wanted, [text or "" for text in agreed])["wer"],
        "speech_wer_of_truth": metrics.word_error_rate(true_text, list(hear([truths[i][0] for i in true])))["wer"],
    }


def _heard_and_said(answer: Answer, media: Sequence[Any], heard: str) -> tuple[str | None, str]:
    """The transcript that an answer begins with, where it begins as `heard` has it, and what else it says in writing."""
    text = str(_first(TEXT, answer, media) or "").strip()
    pattern = re.escape(heard).replace(re.escape("{}"), "(.*?)")
    found = re.fullmatch(f"{pattern}(.*)", text, re.DOTALL) if heard else None
    return (found[1].strip(), found[2].strip()) if found else (None, text)


def _first(modality: str, answer: Answer, media: Sequence[Any]) -> Any:
    found = zip(answer.segments, media, strict=True)
    return next((medium for segment, medium in found if segment.modality == modality), None)


def _keep(
    predictions: Predictions,
    evaluation: Evaluation,
    turns: Sequence[LastTurn],
    answers: Sequence[Answer],
    media: Sequence[Sequence[Any]],
) -> None:
    """Writes every answer, and the truth beside the first few and beside those that went wrong."""
    for i, (turn, answer) in enumerate(zip(turns, answers, strict=True)):
        wanted, given = modalities(turn.truth), modalities(answer.segments)
        row: dict[str, Any] = {
            "key": turn.key,
            "form": turn.form,
            "attributes": _without_notes(turn.attributes),
            "human_turns": turn.human_turns,
            "asked": turn.asked,
            "wanted": wanted,
            "answered": given,
            "exact": wanted == given,
            "answer": _saved(predictions, turn.key, "", answer.segments, media[i]),
        }
        if i < SHOWN or wanted != given:
            [truth] = decode(evaluation.trained, [turn.truth])
            row["truth"] = _saved(predictions, turn.key, "truth", turn.truth, truth)
        predictions.add(row)


def _without_notes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in attributes.items() if name != "notes"}


def _saved(
    predictions: Predictions, key: str, role: str, segments: Sequence[Segment], media: Sequence[Any]
) -> list[dict[str, str] | None]:
    return [
        predictions.media(key, f"{role}{i}", segment.modality, medium)
        for i, (segment, medium) in enumerate(zip(segments, media, strict=True))
    ]
