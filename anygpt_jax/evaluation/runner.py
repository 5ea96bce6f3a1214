"""Scores one directed pair: generate, decode, judge, and set chance and ceiling beside the score."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import seqio

from anygpt_jax.evaluation import pairs
from anygpt_jax.evaluation.examples import Example, load_content, load_prompts, read_examples, stable_order
from anygpt_jax.evaluation.originals import JUDGES, Reconstructor, tokenizer_table
from anygpt_jax.evaluation.perplexity import text_perplexity
from anygpt_jax.evaluation.predictions import Predictions
from anygpt_jax.evaluation.statistics import MetricFn, bootstrap_interval, chance_scores, example_scores
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.tasks import metrics
from anygpt_jax.tasks.metrics.image import reading_scenes_of
from anygpt_jax.tasks.metrics.scores import main_score
from anygpt_jax.templates import TEXT

VERSION = 4  # of how scores are made; raise it and finished pairs are done again
SHOWN = 8  # examples whose source and truth are kept beside the answer, for the report
OPENMOJI = "test_openmoji"
OUTSIDE_THE_GRAMMAR = ("test_librivox",)  # the recognizer knows only the small world's sentences: no ceiling


@dataclasses.dataclass(frozen=True)
class Asked:
    """The chosen examples of a task's split and their prompts int32[N], in order."""

    examples: list[Example]
    prompts: list[np.ndarray]

    @property
    def targets(self) -> list[dict]:
        """The examples' attributes, against which a task's metrics score."""
        return [example.attributes for example in self.examples]

    @property
    def keys(self) -> list[str]:
        """Of the examples: seeds are drawn by them, and chance knows by them whose answer is whose."""
        return [example.key for example in self.examples]

    def first(self, n: int) -> Asked:
        """Its first n examples, or all if there are fewer."""
        return Asked(self.examples[:n], self.prompts[:n])


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Evaluation:
    """Everything that pairs share: the models, the originals and their reconstructions."""

    def __init__(self, config: ml_collections.ConfigDict, trained: Pipeline, untrained: Pipeline):
        self.config = config
        self.workdir = pathlib.Path(config.workdir)
        self.trained = trained
        self.untrained = untrained
        self.rebuild = Reconstructor(trained.tokenizers)
        self._read = functools.cache(read_examples)

    @property
    def tokenizers(self) -> Mapping[str, ModalityTokenizer]:
        """By modality; the trained model and the untrained one have the same."""
        return self.trained.tokenizers

    def pool(self, modality: str) -> list[Example]:
        """Held-out examples whose target is an original of this modality."""
        task = pairs.task_name("image" if modality == TEXT else TEXT, modality)
        return self._read(task, self.config.evaluate.split)

    def run_pair(self, source: str, target: str, split: str | None = None) -> dict[str, Any]:
        """The pair's entry in the matrix; an earlier run's if nothing has changed since."""
        name, split = pairs.task_name(source, target), split or self.config.evaluate.split
        hard = split != self.config.evaluate.split
        folder = self.workdir / "predictions" / (f"{name}@{split}" if hard else name)
        predictions = Predictions(folder, self.tokenizers)
        recipe = self.recipe(name, split)
        finished = predictions.finished(recipe)
        if finished:
            return finished
        began = time.monotonic()
        predictions.start()
        asked = self._ask(name, split)
        metric = self._metric(name)
        trained = name in self.config.mixture and float(self.config.mixture[name]) > 0
        answers = {"direct": self._answer(self.trained, asked, (target,))}
        if not trained and target != TEXT:
            answers["via_text"] = self._answer(self.trained, asked, (TEXT, target))
        results = {way: metric(asked.targets, media[target]) for way, media in answers.items()}
        few = asked.first(self.config.evaluate.untrained_examples)
        if not hard and few.examples:
            results["untrained"] = metric(few.targets, self._answer(self.untrained, few, (target,))[target])
        results["chance"] = self._chance(name, source, target, asked)
        ceiling = None if split in OUTSIDE_THE_GRAMMAR else self._ceiling(name, source, target, asked, split)
        if ceiling is not None:
            results["ceiling"] = ceiling
        scores = {way: example_scores(metric, asked.targets, media[target]) for way, media in answers.items()}
        entry = self._entry(results, trained, scores)
        entry["seconds"] = round(time.monotonic() - began, 1)
        self._keep(predictions, target, asked, answers, scores["direct"])
        predictions.finish(entry, recipe)
        return entry

    def run_tokenizers(self) -> dict[str, Any]:
        """Every tokenizer's ceiling on the whole held-out split; an earlier run's if nothing has changed since."""
        predictions = Predictions(self.workdir / "predictions" / "tokenizers", self.tokenizers)
        recipe = _hash([VERSION, self.config.evaluate.split, *self._originals()])
        finished = predictions.finished(recipe)
        if finished:
            return finished["table"]
        predictions.start()
        judged = [m for m in self.tokenizers if pairs.task_name(TEXT, m) in self.config.tokenize.tasks]
        judges = {m: JUDGES.get(m) or self._metric(pairs.task_name(TEXT, m)) for m in judged}
        table = tokenizer_table({m: self.pool(m) for m in judged}, self.tokenizers, self.rebuild, judges)
        predictions.finish({"table": table}, recipe)
        return table

    def run_text(self, task: str) -> dict[str, float]:
        """How well the text of one task is predicted."""
        engine = self.trained.engine
        return text_perplexity(
            self.trained.decoder, engine.vocabulary, self.trained.formatter.text, self.workdir / "cache", task,
            self.config.evaluate.split,
        )  # fmt: skip

    def recipe(self, name: str, split: str) -> str:
        """Hash of everything that decides a result of this task and split."""
        return _hash([
            VERSION, name, split, self.trained.step, self.config.get("checkpoints"), self.config.seed, self.config.evaluate.to_json(),
            self.config.generate.to_json(), self.config.model.to_json(),
            self.trained.engine.vocabulary.fingerprint, *self._originals(),
        ])  # fmt: skip

    def _originals(self) -> list[Any]:
        """What decides the reconstructions of originals."""
        data = self.config.get("data", ml_collections.ConfigDict()).to_json()
        return [{modality: t.fingerprint for modality, t in self.tokenizers.items()}, data]

    def _ask(self, name: str, split: str) -> Asked:
        examples = self._read(name, split)
        prompts = load_prompts(self.workdir / "cache", name, split, examples, self.trained.engine.vocabulary)
        kept = [e for e in examples if e.key in prompts][: self.config.evaluate.examples]
        return Asked(kept, [prompts[e.key] for e in kept])

    @staticmethod
    def _metric(name: str) -> MetricFn:
        """All the metrics of the SeqIO task as one."""
        functions = seqio.get_mixture_or_task(name).metric_fns

        def score(targets: Sequence[dict], predictions: Sequence[Any]) -> dict[str, float]:
            return {k: float(v) for fn in functions for k, v in fn(targets, predictions).items()}

        return score

    def _answer(self, pipeline: Pipeline, asked: Asked, plan: tuple[str, ...]) -> dict[str, list[Any]]:
        """What the model answers, by modality of the plan."""
        seeds = [stable_order(key, f"{self.config.seed}/{'/'.join(plan)}") for key in asked.keys]
        answers = pipeline.answers([Request(p, plan, s) for p, s in zip(asked.prompts, seeds, strict=True)])
        return {modality: pipeline.media(modality, answers) for modality in plan}

    def _chance(self, name: str, source: str, target: str, asked: Asked) -> dict[str, float]:
        """The score of other examples' right answers."""
        with_truth = [e for e in self._read(name, self.config.evaluate.split) if e.target]
        pool = with_truth or [e for e in self.pool(target) if pairs.fits(e.attributes, asked.targets)]
        pool = pool or self.pool(target)  # a small split may have none that fits
        answers = [(e.key, e.load_target(self.tokenizers)) for e in pool[: max(self.config.evaluate.examples, 16)]]
        return chance_scores(self._metric(name), asked.targets, asked.keys, answers, seed=self.config.seed)

    def _ceiling(self, name: str, source: str, target: str, asked: Asked, split: str) -> dict[str, float] | None:
        """The judge on what the tokenizers leave of the originals: the input's, the target's, the worse of both.

        A modality that is not ours is judged by the metric of the task that asks for it in words, if there is one.
        """
        sides = []
        if source != TEXT:
            heard = self.rebuild([e.source for e in asked.examples])
            told_by = pairs.task_name(TEXT, source)
            if (source, target) == ("speech", TEXT):
                sides.append(metrics.speech_word_error_rate(asked.targets, heard))
            elif source not in JUDGES:
                sides += [self._metric(told_by)(asked.targets, heard)] if told_by in self.config.tokenize.tasks else []
            else:
                with reading_scenes_of("openmoji" if split == OPENMOJI else "twemoji"):
                    sides.append(pairs.read_from(source, asked.targets, heard))
        if target != TEXT:
            truths = [e for e in asked.examples if e.target]
            pool = truths or [e for e in self.pool(target) if pairs.fits(e.attributes, asked.targets)]
            pool = pool[: self.config.evaluate.examples]
            told = [pairs.as_told_by(e.attributes, target) for e in pool]
            sides.append(self._metric(name)(told, self.rebuild([e.target for e in pool if e.target])))
        told = [side for side in sides if side]  # none of a small split may fit
        return min(told, key=lambda side: main_score(side)[1], default=None)

    @staticmethod
    def _entry(
        results: Mapping[str, dict[str, float]], trained: bool, scores: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """`scores` are the examples' own, by the way of answering."""
        name, score, higher = main_score(results["direct"])
        ways = {way: main_score(result)[1] for way, result in results.items() if way != "direct"}
        intervals = {way: list(bootstrap_interval(one)) for way, one in scores.items()}
        return {
            "metric": name,
            "score": score,
            "chance": ways.pop("chance"),
            "ceiling": ways.pop("ceiling", None),
            "n": len(scores["direct"]),
            "trained": trained,
            "higher_is_better": higher,
            "interval": intervals.pop("direct"),
            **{f"{way}_interval": interval for way, interval in intervals.items()},
            **ways,
            "details": results,
        }

    def _keep(
        self,
        predictions: Predictions,
        target: str,
        asked: Asked,
        answers: Mapping[str, Mapping[str, list[Any]]],
        scores: np.ndarray,
    ) -> None:
        """Writes every answer, and for the first few what was asked and what is true."""
        for i, example in enumerate(asked.examples):
            row: dict[str, Any] = {"key": example.key, "attributes": {**example.attributes}}
            row["attributes"].pop("notes", None)
            row["score"] = float(scores[i, 0])
            row["direct"] = predictions.media(example.key, "", target, answers["direct"][target][i])
            if "via_text" in answers:
                row["via_text"] = predictions.media(example.key, "via_text", target, answers["via_text"][target][i])
                row["thought"] = answers["via_text"][TEXT][i]
            if i < SHOWN:
                for role, content in (("source", example.source), ("truth", example.target)):
                    if content is not None:
                        medium = load_content(content, self.tokenizers)
                        row[role] = predictions.media(example.key, role, content[0], medium)
            predictions.add(row)
