"""`anygpt generate`: from any modality to any other, files in and files out."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.generation import bulk, delivery, media, options
from anygpt_jax.generation.answer import Answer, likeliest
from anygpt_jax.generation.automaton import ANY, Free, Plan
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.tasks.instructions import pair_segments
from anygpt_jax.templates import TEXT, Segment


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of one request (`add_request_arguments`), and those of the command alone."""
    answer = add_request_arguments(parser)
    answer.add_argument(
        "--out", metavar="FILE", help="where to save it (default: MODALITY.png or .wav; text is printed)"
    )
    answer.add_argument("--json", metavar="FILE", help="write what was generated: segments, ids, seeds, seconds")
    options.add_arguments(parser, beams=True)
    many = parser.add_argument_group("many requests")
    many.add_argument(
        "--requests", metavar="FILE",
        help="one JSON object a line, with a key and these options' names; answers go to the folder --out, and a second "
        "run goes on with what is not answered",
    )  # fmt: skip


def add_request_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """What a line of --requests may say too (bulk.py); returns the group of what is asked of the answer."""
    asks = parser.add_argument_group("what to ask")
    asks.add_argument("--prompt", metavar="TEXT", help="what is written to the model; beside a file, the instruction")
    for modality in media.SHORTCUTS:
        asks.add_argument(f"--{modality}", metavar="FILE", help=f"{modality} to give to the model")
    asks.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="MODALITY=FILE",
        help="the same for any modality; may be repeated",
    )
    asks.add_argument(
        "--raw-prompt", action="store_true", help="add no instruction: the model sees the prompt as it is"
    )
    answer = parser.add_argument_group("the answer")
    answer.add_argument(
        "--to", default=TEXT, metavar="MODALITY", help="text (default), image, speech, music, …, or any"
    )
    chain = answer.add_mutually_exclusive_group()
    chain.add_argument("--via", choices=[TEXT], help="write text first, then the target; default between two media")
    chain.add_argument("--direct", action="store_true", help="write the target at once, also between two media")
    answer.add_argument("--may", metavar="MODALITIES", help="with --to any: what it may hold, as in text,image")
    answer.add_argument("--must", metavar="MODALITIES", help="with --to any: what it must hold")
    answer.add_argument("--n", type=int, default=1, help="how many answers, with consecutive seeds (default 1)")
    answer.add_argument("--seed", type=int, help="the same seed gives the same answer (default: the config's)")
    answer.add_argument("--best-of", type=int, default=1, metavar="N", help="of so many draws the likeliest a token")
    answer.add_argument("--voice", metavar="FILE", help="a recording in whose voice the answer is spoken")
    return answer


@dataclasses.dataclass(frozen=True)
class Command:
    """A checked command line."""

    prompt: str | None
    files: tuple[tuple[str, pathlib.Path], ...]  # (modality, path)
    raw: bool
    plan: Plan
    seeds: tuple[int, ...]
    out: pathlib.Path | None
    json: pathlib.Path | None
    voice: pathlib.Path | None = None

    @property
    def target(self) -> str:
        """The modality that is asked for; ANY in free conversation."""
        if isinstance(self.plan, Free):
            return ANY
        return self.plan if isinstance(self.plan, str) else self.plan[-1]


def parse(config: ml_collections.ConfigDict, args: argparse.Namespace) -> Command:
    """Everything that can be refused before the model is loaded is refused here, by UserError."""
    known = (TEXT, *config.modalities)
    if args.to not in (*known, ANY):
        raise UserError(f"Unknown modality '--to {args.to}'; choose {', '.join(known)} or {ANY}.")
    files = _files(args, known)
    prompt = args.prompt.strip() if args.prompt is not None else None
    if not prompt and not files:
        raise UserError("There is nothing to answer; give --prompt TEXT, --image, --speech or --music FILE.")
    if args.voice is not None and args.to not in ("speech", ANY):
        raise UserError(f"--voice is for answers in speech, not in {args.to}; drop it, or ask --to speech.")
    _check_counts(args)
    seed = config.seed if args.seed is None else args.seed
    if not 0 <= seed <= 2**32 - args.n:
        raise UserError(f"--seed must lie between 0 and {2**32 - args.n}, not {seed}.")
    out = None
    if args.out is not None:
        if args.to == ANY:
            raise UserError(f"--out needs one modality to save; name it with --to instead of {ANY}.")
        out = media.check_output(args.out, "--out", args.to)
    return Command(
        prompt=(args.prompt if args.raw_prompt else prompt) or None,
        files=files,
        raw=args.raw_prompt,
        plan=_free(args, known) if args.may or args.must else _plan(args, files),
        seeds=tuple(range(seed, seed + args.n)),
        out=out,
        json=media.check_output(args.json, "--json") if args.json is not None else None,
        voice=media.check_input(args.voice, "--voice") if args.voice is not None else None,
    )


def _check_counts(args: argparse.Namespace) -> None:
    for flag, count in (("--n", args.n), ("--best-of", args.best_of)):
        if count < 1:
            raise UserError(f"{flag} must be at least 1, not {count}.")


def _files(args: argparse.Namespace, known: Sequence[str]) -> tuple[tuple[str, pathlib.Path], ...]:
    named = [(m, getattr(args, m), f"--{m}") for m in media.SHORTCUTS if getattr(args, m) is not None]
    for text in args.input:
        modality, equals, path = text.partition("=")
        if not equals:
            raise UserError(f"--input {text} must have the form MODALITY=FILE.")
        named.append((modality, path, f"--input {modality}="))
    for modality, _, flag in named:
        if modality == TEXT or modality not in known:
            given = ", ".join(m for m in known if m != TEXT)
            raise UserError(f"{flag}: files may be of {given}; add the modality to the config's modalities.")
    return tuple((modality, media.check_input(path, flag)) for modality, path, flag in named)


def _free(args: argparse.Namespace, known: Sequence[str]) -> Free:
    if args.to != ANY:
        raise UserError(f"--may and --must are for --to {ANY}, not for --to {args.to}.")
    may, must = (tuple(text.split(",")) if text else () for text in (args.may, args.must))
    for modality in (*may, *must):
        if modality not in known:
            raise UserError(
                f"--may and --must name modalities, {', '.join(known)}, separated by commas; not '{modality}'."
            )
    forbidden = [modality for modality in must if may and modality not in may]
    if forbidden:
        raise UserError(f"--must {forbidden[0]}, which --may leaves out; add it.")
    return Free(may or tuple(known), must)


def _plan(args: argparse.Namespace, files: Sequence[tuple[str, pathlib.Path]]) -> tuple[str, ...] | str:
    if args.to in (TEXT, ANY):
        if args.via:
            raise UserError(f"--via {args.via} leads to a medium; --to {args.to} needs no detour.")
        return ANY if args.to == ANY else (TEXT,)
    if args.direct or not (args.via or files):
        return (args.to,)
    return (TEXT, args.to)


def human_turn(
    command: Command,
    codes: Sequence[np.ndarray],
    tokenizers: Mapping[str, ModalityTokenizer] | None = None,
    ask: Callable[..., list[Segment]] = pair_segments,
) -> list[Segment]:
    """What the model reads: the tasks' own instruction, unless the person gave one, then the media in order.

    A prompt alone is the source of `text to TARGET`. A prompt beside files is itself the instruction.
    """
    given = [Segment(modality, c, "human") for (modality, _), c in zip(command.files, codes, strict=True)]
    asked = [Segment(TEXT, command.prompt, "human")] if command.prompt else []
    target = TEXT if command.target == ANY else command.target
    if command.raw or (asked and (given or target == TEXT)):
        return [*asked, *given]
    if command.prompt:
        return ask(TEXT, target, command.prompt, tokenizers=tokenizers)
    try:
        return [*ask(given[0].modality, target, codes[0], tokenizers=tokenizers), *given[1:]]
    except UserError as e:
        raise UserError(f"{e} Say what to do with --prompt.") from e


def requests_of(
    config: ml_collections.ConfigDict, pipeline: Pipeline, command: Command, best_of: int = 1
) -> list[Request]:
    """A request for every answer, and every draw of it. UserError if the prompt does not fit."""
    codes = [
        pipeline.tokenizers[modality].encode([media.read_media(path, pipeline.tokenizers[modality])])[0]
        for modality, path in command.files
    ]
    prompt = pipeline.prompt(human_turn(command, codes, pipeline.tokenizers, pipeline.formatter.ask), command.plan)
    if len(prompt) > config.train.seq_len:
        limit = config.train.seq_len
        raise UserError(
            f"The prompt has {len(prompt)} tokens and the model was trained on at most {limit}; shorten it."
        )
    without = pipeline.prompt([Segment(TEXT, "", "human")], command.plan)
    seeds = [(seed + i * len(command.seeds)) % 2**32 for seed in command.seeds for i in range(best_of)]
    return [Request(prompt, command.plan, seed, without=without) for seed in seeds]


def answer(pipeline: Pipeline, requests: Sequence[Request], best_of: int = 1) -> list[Answer]:
    """The likeliest a token of every `best_of` draws in a row; without draws to choose from, as the settings say."""
    if best_of == 1:
        return pipeline.answers(requests, description="generate" if sys.stderr.isatty() else None)
    return likeliest(pipeline.engine.answer_scored(requests), best_of)


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Prints, saves and, with --json, describes the answers; with --requests, `run_many`.

    UserError for a command that cannot be, before the model is loaded if that can be told without it.
    """
    settings = options.settings(config, args)
    if args.requests:
        return run_many(config, args, settings)
    command = parse(config, args)
    started = time.perf_counter()
    pipeline = Pipeline.load(config, settings)
    loaded = time.perf_counter()
    requests = requests_of(config, pipeline, command, args.best_of)
    encoded = time.perf_counter()
    answers = answer(pipeline, requests, args.best_of)
    generated = time.perf_counter()
    saved = [deliver(pipeline, command, one, i) for i, one in enumerate(answers)]
    finished = time.perf_counter()
    if command.json:
        seconds = {
            "load": loaded - started,
            "encode": encoded - loaded,
            "generate": generated - encoded,
            "decode": finished - generated,
        }
        write_atomically(command.json, delivery.report(pipeline, command, requests[0].prompt, answers, saved, seconds))


def run_many(config: ml_collections.ConfigDict, args: argparse.Namespace, settings: Settings) -> None:
    """`--requests`: UserError at the end if some could not be answered, which answers.jsonl names."""
    if args.out is None:
        raise UserError("--requests needs a folder for the answers; name it with --out.")
    if args.json is not None:
        raise UserError(f"--json is for one request; of many {args.out}/{bulk.ANSWERS} says what was generated.")
    _check_counts(args)
    media.check_input(args.requests, "--requests")
    parser = bulk.LineParser(add_help=False, allow_abbrev=False)
    add_request_arguments(parser)
    pipeline = Pipeline.load(config, settings)

    def ask(row: Mapping[str, Any]) -> bulk.Asked:
        one = bulk.arguments(row, args, parser)
        command = parse(config, one)
        return bulk.Asked(requests_of(config, pipeline, command, one.best_of), one.best_of, command.voice)

    if failed := bulk.run(args, pipeline, ask):
        raise UserError(f"{failed} requests could not be answered; {args.out}/{bulk.ANSWERS} says why.")


def deliver(pipeline: Pipeline, command: Command, answer: Answer, index: int) -> list[dict[str, Any]]:
    """Prints the answer's text, saves its media, and describes each segment for --json."""
    taken: dict[str, int] = {}

    def path_of(modality: str, _place: int) -> pathlib.Path:
        first = command.out or media.default_output(modality, pipeline.tokenizers[modality])
        path = media.numbered(first, index, len(command.seeds))
        nth = taken[modality] = taken.get(modality, 0) + 1
        return path if nth == 1 else path.with_name(f"{path.stem}-{nth}{path.suffix}")

    described = delivery.saved(pipeline, answer, command.voice, path_of)
    for entry in described:
        if "heard" in entry:
            print(f"heard: {entry['heard']}", file=sys.stderr)
        elif "codes" in entry:
            print(f"{entry['modality']} saved to {entry['file']}", file=sys.stderr)
        else:
            print(entry["text"])
            if command.target == TEXT and command.out:
                path = media.numbered(command.out, index, len(command.seeds))
                write_atomically(path, f"{entry['text']}\n".encode())
                entry["file"] = str(path)
    return described
