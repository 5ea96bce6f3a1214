"""`anygpt chat`: a conversation in the terminal, with files that are attached and media that are saved and shown."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.generation import media, options
from anygpt_jax.generation.automaton import ANY
from anygpt_jax.generation.dialogue import Dialogue
from anygpt_jax.generation.events import Codes, Text
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.voice import decode
from anygpt_jax.templates import TEXT, Segment

HELP = """\
Write to the model, or attach files first. What begins with / is a command.
  /image FILE, /speech FILE, /music FILE   attach a file to what you say next; an empty line sends files alone
  /to MODALITY     what answers are to be: text, image, speech, music, or any (the model chooses; the default)
  /voice FILE      speak in the voice of a recording; /voice alone: in the model's own
  /again           take the last answer back and ask for another one
  /undo            take the last turn and its answer back
  /new             begin another dialogue
  /save FILE       keep the dialogue; /load FILE goes on with it
  /help, /quit     Ctrl-C stops an answer that is being written"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--to, --voice and --load have commands of their names, by which a person can change them later."""
    parser.add_argument("--out", metavar="DIR", default="chat", help="where media of answers are saved (default: chat)")
    parser.add_argument("--load", metavar="FILE", help="go on with a saved dialogue")
    parser.add_argument("--to", default=ANY, metavar="MODALITY", help="what answers are to be (default: any)")
    parser.add_argument("--voice", metavar="FILE", help="a recording in whose voice the model speaks")
    parser.add_argument("--seed", type=int, help="the same seed gives the same answers (default: the config's)")
    options.add_arguments(parser)


_STRIDE = 4  # tokens between two looks at an answer: text should flow


class Leave(Exception):
    """The person is done."""


@dataclasses.dataclass
class Chat:
    """What a terminal session keeps beside the dialogue. `show` prints a line, `write` a part of one."""

    dialogue: Dialogue
    folder: pathlib.Path
    seed: int
    to: str = ANY
    voice: pathlib.Path | None = None
    attached: list[Segment] = dataclasses.field(default_factory=list)
    show: Callable[[str], None] = print
    write: Callable[[str], object] = lambda text: print(text, end="", flush=True)
    decoders: concurrent.futures.Executor = dataclasses.field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1, "decoder")
    )

    @property
    def pipeline(self) -> Pipeline:
        """The dialogue's, which holds the model and the tokenizers."""
        return self.dialogue.pipeline

    def line(self, text: str) -> None:
        """Does what one line of input asks for. UserError leaves everything as it was; Leave ends the session."""
        text = text.strip()
        if not text.startswith("/"):
            if text or self.attached:
                self._say([*([Segment(TEXT, text, "human")] if text else []), *self.attached])
            return
        try:
            command, *rest = shlex.split(text)
        except ValueError as e:
            raise UserError(f"{text}: {e}.") from e
        commands: dict[str, tuple[Callable[..., None], int, int]] = {
            "/to": (self._to, 1, 1), "/voice": (self._voice, 0, 1), "/again": (self._again, 0, 0),
            "/undo": (self._undo, 0, 0), "/new": (self._new, 0, 0), "/save": (self._save, 1, 1),
            "/load": (self._load, 1, 1), "/help": (lambda: self.show(HELP), 0, 0), "/quit": (self._quit, 0, 0),
        }  # fmt: skip
        for modality in self.pipeline.tokenizers:
            commands[f"/{modality}"] = (lambda path, modality=modality: self._attach(modality, path), 1, 1)
        if command not in commands:
            raise UserError(f"There is no {command}; /help lists what there is.")
        act, fewest, most = commands[command]
        if not fewest <= len(rest) <= most:
            raise UserError(f"{command} takes {'no' if not most else 'one'} argument; /help says more.")
        act(*rest)

    def _say(self, said: Sequence[Segment]) -> None:
        made: list[tuple[str, concurrent.futures.Future]] = []  # of the answer, in order, while they are decoded
        codes: list[np.ndarray] = []

        telling = _Telling(self)

        def listen(event: Text | Codes) -> None:
            if isinstance(event, Text):
                telling.add(event)
                return
            codes.append(event.codes)
            if event.last:
                tokenizer, whole = self.pipeline.tokenizers[event.modality], np.concatenate(codes)
                made.append((event.modality, self.decoders.submit(decode, tokenizer, whole, self.voice)))
                codes.clear()

        self.dialogue.answer(said, self._plan(said), self.seed, listen)
        self.attached, self.seed = [], (self.seed + 1) % 2**32
        for modality, medium in made:
            self._show(modality, medium.result())

    def _plan(self, said: Sequence[Segment]) -> tuple[str, ...] | str:
        """By way of text from a medium to another one, as the dialogues go that the model learned from."""
        if self.to in (ANY, TEXT):
            return self.to if self.to == ANY else (TEXT,)
        return (TEXT, self.to) if any(segment.modality != TEXT for segment in said) else (self.to,)

    def _show(self, modality: str, medium: Any) -> None:
        tokenizer = self.pipeline.tokenizers[modality]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = media.next_free(self.folder, modality, tokenizer)
        media.write_media(path, medium, tokenizer)
        if isinstance(medium, np.ndarray) and medium.ndim == 3 and sys.stdout.isatty():
            self.show(half_blocks(medium))
        self.show(f"[{modality}: {path}]")

    def _attach(self, modality: str, name: str) -> None:
        path = media.check_input(name, f"/{modality}")
        tokenizer = self.pipeline.tokenizers[modality]
        codes = tokenizer.encode([media.read_media(path, tokenizer)])[0]
        self.attached.append(Segment(modality, codes, "human"))
        self.show(f"[{path} attached, {len(codes)} tokens]")

    def _to(self, modality: str) -> None:
        known = (TEXT, *self.pipeline.tokenizers, ANY)
        if modality not in known:
            raise UserError(f"Answers can be {', '.join(known)}, not '{modality}'.")
        self.to = modality

    def _voice(self, name: str | None = None) -> None:
        self.voice = media.check_input(name, "/voice") if name else None

    def _again(self) -> None:
        if said := self.dialogue.undo():
            self._say(said)

    def _undo(self) -> None:
        self.dialogue.undo()
        self.show(f"[{sum(s.role == 'human' for s in self.dialogue.segments)} segments of yours are left]")

    def _new(self) -> None:
        self.dialogue.segments, self.attached = [], []

    def _save(self, name: str) -> None:
        self.dialogue.save(media.check_output(name, "/save"))

    def _load(self, name: str) -> None:
        self.dialogue.load(media.check_input(name, "/load"))
        self.show(f"[{len(self.dialogue.segments)} segments]")

    def _quit(self) -> None:
        raise Leave


class _Telling:
    """Shows the texts of one answer while they grow, as the prompt's format reads them (`Format.parse`)."""

    def __init__(self, chat: Chat):
        self._chat = chat
        self._written, self._told = "", ""  # of one text: by the model, and what of its reply was shown
        self._heard = False  # whether a transcript was shown

    def add(self, event: Text) -> None:
        self._written += event.piece
        parsed = self._chat.pipeline.formatter.parse([(TEXT, self._written)])
        reply = "".join(str(segment.content) for segment in parsed.segments)
        if parsed.transcript is not None and not self._heard and (reply or event.last):  # it is complete
            self._chat.show(f"[heard: {printable(parsed.transcript)}]")
            self._heard = True
        self._chat.write(printable(reply[len(self._told) :]) + "\n" * (event.last and bool(reply)))
        self._told = reply
        if event.last:
            self._written, self._told = "", ""


def printable(text: str) -> str:
    """Without what could command the terminal: the model writes bytes where it knows no word. Lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def half_blocks(image: np.ndarray, columns: int = 48) -> str:
    """uint8[H, W, 3] as lines of coloured half blocks, two pixels a character, for terminals of 24-bit colour."""
    from PIL import Image

    height = max(2, round(columns * image.shape[0] / image.shape[1]) // 2 * 2)
    pixels = np.asarray(Image.fromarray(image).resize((columns, height), Image.Resampling.LANCZOS))
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        cells = (
            f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m▀" for a, b in zip(upper, lower, strict=True)
        )
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def lines(prompt: str) -> Iterator[str]:
    """What is typed, line by line, until the end of the input; with history and editing where there is a terminal."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it once it is imported
    while True:
        try:
            yield input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            return


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Talks until /quit, the end of the input, or Ctrl-C where nothing is being answered.

    UserError for flags that cannot be; what is wrong later is shown, and the session goes on.
    """
    pipeline = Pipeline.load(config, dataclasses.replace(options.settings(config, args), stride=_STRIDE))
    seed = int(config.seed if args.seed is None else args.seed)
    dialogue = Dialogue(pipeline, int(config.train.seq_len))
    chat = Chat(dialogue, pathlib.Path(args.out), seed)
    chat.show(f"{HELP.splitlines()[0]} /help lists them.")
    first = [("/to", args.to), ("/voice", args.voice), ("/load", args.load)]
    for command, value in first:
        if value is not None:
            chat.line(f"{command} {shlex.quote(value)}")
    with contextlib.suppress(Leave, KeyboardInterrupt):
        for text in lines("> "):
            try:
                chat.line(text)
            except UserError as e:
                chat.show(f"! {e}")
            except KeyboardInterrupt:  # stops the answer; where nothing is being answered it ends the session
                chat.show("\n[stopped]")
