"""What a synthesis asks of its generators, and what that takes: `python -m anygpt_jax.synthesis.plan --config=FILE`.

Calls follow from the config and the shares kept, lengths from this project's own prompts and demonstrations at four
characters a token, hours and money from throughputs and prices (plan_assumptions.py). All of it is an estimate.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import prompts, script, writing
from anygpt_jax.synthesis.backends import Message
from anygpt_jax.synthesis.job import Job
from anygpt_jax.synthesis.plan_assumptions import Assumptions, Generator

SEEDS = range(16)  # over whose drawn demonstrations the lengths of prompts are averaged
LISTED = len("10. \n")  # characters around an item of a numbered list


@dataclasses.dataclass(frozen=True)
class Use:
    """Of one stage, in expectation."""

    calls: float
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    images: float = 0.0
    music_seconds: float = 0.0
    speech_seconds: float = 0.0
    characters: float = 0.0  # spoken


@dataclasses.dataclass(frozen=True)
class Line:
    """What a stage asks of a model, and the accelerators that this takes."""

    stage: str
    use: Use
    model: str
    by: Generator | None  # None: the embedded generators, which need no accelerator
    hours: float  # of accelerators

    @property
    def dollars(self) -> float:
        """At the chip's price an hour; nothing for the embedded generators."""
        return self.hours * self.by.chip.dollars if self.by else 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Estimates of one config's stages, in their order."""

    lines: tuple[Line, ...]
    dialogues: float  # in the finished set; of a config with instructions its voice dialogues, else without those
    train: float  # of them, in the training split
    assumptions: Assumptions

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, assumptions: Assumptions | None = None) -> Plan:
        """UserError for settings that cannot be, or a model whose throughput is not known."""
        a, job = assumptions or Assumptions(), Job.of(config)
        s = job.settings
        for_training = 1 - s.held_out * 4 / 3
        shares = {name: share / sum(s.requirements.values()) for name, share in s.requirements.items()}
        rounds = statistics.mean(s.rounds_a_dialogue)
        shown = prompts.demonstrations("scenarios")
        topic, scenario = (round(_mean(one[name] for one in shown)) for name in ("topic", "scenario"))
        demos = prompts.demonstrations("dialogues")
        turns = [turn for demo in demos for turn in script.parse(demo["script"])]
        a_round = sum(len(demo["script"]) for demo in demos) / (len(turns) / 2)

        def text(calls: float, read: float, written: float) -> Use:
            """`read` and `written` are characters a call."""
            return Use(calls, calls * read / a.characters_a_token, calls * written / a.characters_a_token)

        def speech(calls: float, characters: float) -> Use:
            return Use(calls, speech_seconds=characters / a.characters_a_second, characters=characters)

        def prompt(messages: Callable[[str, int], Sequence[Message]]) -> float:
            """Mean characters of what a requirement and a seed give."""
            return sum(
                share * statistics.mean(_characters(messages(name, seed)) for seed in SEEDS)
                for name, share in shares.items()
            )

        def wanted(modality: str) -> float:
            """Media a dialogue: demands of the mix, each met by as many as in the demonstrations."""
            made = sum(medium.modality == modality for turn in turns for medium in turn.media)
            demands = sum(share * name.count(modality) for name, share in shares.items())
            return demands * made / sum(demo["requirement"].count(modality) for demo in demos)

        voice = speech(2 * a.voice_dialogues, a.voice_dialogues * a.voice_characters)
        if job.instructed:  # the words are there already, unless they are to be said again
            asked_of = {"voice dialogues": (s.speech, voice)}
            if s.get("rewrite"):
                given = _characters(prompts.spoken_messages("x" * round(a.voice_characters)))
                again = text(a.voice_dialogues, given, a.voice_characters)
                asked_of = {"rewritten": (s.text, again), **asked_of}
            lines = tuple(_line(stage, use, section, a) for stage, (section, use) in asked_of.items())
            return cls(lines, a.voice_dialogues * a.media_kept, a.voice_dialogues * a.media_kept * for_training, a)

        metas = writing.meta_topics(job)
        asked = len(metas) * s.rounds
        topics = asked * s.topics_a_round * a.topics_kept
        scenarios = topics * s.scenarios_a_topic * a.scenarios_kept
        dialogues = scenarios * a.scripts_kept * a.selected_kept
        spoken = dialogues * s.spoken * 2 * rounds
        named = statistics.mean(_characters(prompts.topics_messages(meta, s.topics_a_round)) for meta in metas)
        listed = ["x" * topic] * s.topics_a_call
        told = prompt(lambda name, seed: prompts.scenarios_messages(listed, name, seed))
        played = prompt(lambda name, seed: prompts.dialogues_messages("x" * scenario, name, round(rounds), seed))
        images, music = dialogues * wanted("image"), dialogues * wanted("music")
        uses = {
            "topics": (s.text, text(asked, named, s.topics_a_round * (topic + LISTED))),
            "scenarios": (
                s.text,
                text(topics * s.scenarios_a_topic / s.topics_a_call, told, s.topics_a_call * (scenario + LISTED)),
            ),
            "dialogues": (s.text, text(scenarios, played, rounds * a_round)),
            "images": (s.image, Use(images, images=images)),
            "music": (s.music, Use(music, music_seconds=music * a.music_seconds)),
            "speech": (s.speech, speech(spoken, spoken * _mean(turn.text for turn in turns))),
            "voice dialogues": (s.speech, voice),
        }
        lines = tuple(_line(stage, use, section, a) for stage, (section, use) in uses.items())
        kept = dialogues * a.media_kept
        return cls(lines, kept, kept * for_training, a)

    def table(self) -> str:
        """Plain text: a line a stage, then by whom and for how much."""
        kinds = ("calls", "Mtok in", "Mtok out", "images", "music min", "speech min", "Mchar", "chip h", "clock h", "$")
        rows = [f"{'stage':<15}" + "".join(f"{kind:>11}" for kind in kinds)]
        numbers = []
        for x in self.lines:
            u = x.use
            made = (u.calls, u.input_tokens / 1e6, u.output_tokens / 1e6, u.images, u.music_seconds / 60)
            numbers.append((*made, u.speech_seconds / 60, u.characters / 1e6, x.hours, x.dollars))
            rows.append(self._row(x.stage, numbers[-1]))
        rows.append(self._row("all", [sum(column) for column in zip(*numbers, strict=True)]))
        rows.append(
            f"{self.dialogues:,.0f} dialogues are left, {self.train:,.0f} for training. All numbers are estimates."
        )
        by = {x.model: x.by for x in self.lines if x.by}
        for chip in dict.fromkeys(found.chip for found in by.values()):
            rows.append(f"{self.assumptions.at_once} × {chip.name} at ${chip.dollars:.2f} an hour ({chip.source})")
        for model, found in by.items():
            rates = ", ".join(f"{rate:,.4g} {name} a second" for name, rate in found.rates.items())
            origin = "published" if found.published else "estimate"
            rows.append(f"{model} on one {found.chip.name}: {rates} ({origin}; {found.source})")
        return "\n".join(rows)

    def _row(self, stage: str, numbers: Sequence[float]) -> str:
        *counts, hours, dollars = numbers
        cells = [*counts, hours, hours / self.assumptions.at_once, dollars]
        return f"{stage:<15}" + "".join(f"{f'{x:,.1f}' if 0 < x < 1000 else f'{x:,.0f}':>11}" for x in cells)


def _mean(texts: Iterable[str]) -> float:
    """Characters, of those that have any."""
    return statistics.mean(len(text) for text in texts if text)


def _characters(messages: Sequence[Message]) -> int:
    return sum(len(content) for _, content in messages)


def _line(stage: str, use: Use, section: ml_collections.ConfigDict, a: Assumptions) -> Line:
    if section.backend == "embedded":
        return Line(stage, use, "embedded", None, 0.0)
    model = section.get("model", "")
    if model not in a.generators:
        raise UserError(f"The plan knows no throughput of '{model}'; there are {', '.join(a.generators)}.")
    by = a.generators[model]
    seconds = sum(getattr(use, name) / rate for name, rate in by.rates.items())
    return Line(stage, use, model, by, seconds / 3600 / a.busy)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the plan's table. 0, or 2 after a UserError, whose sentence goes to stderr."""
    from anygpt_jax.cli import load_config

    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser("python -m anygpt_jax.synthesis.plan", description="What a synthesis will take.")
    parser.add_argument("--config", required=True, metavar="FILE", help="--config.KEY=VALUE changes a setting of it")
    overrides = [x for x in given if x.startswith("--config.")]
    args = parser.parse_args([x for x in given if x not in overrides])
    try:
        print(Plan.of(load_config(args.config, overrides)).table())
    except UserError as e:
        print(f"anygpt: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
