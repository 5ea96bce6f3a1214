"""`anygpt chat` as a person types it: real files, a real (untrained) checkpoint, and every way to get it wrong."""

import io
import json
import pathlib
import types

import numpy as np
import pytest
from PIL import Image
from test_generation_main import _modalities, trained  # noqa: F401

from anygpt_jax import cli
from anygpt_jax.formats.base import Parsed
from anygpt_jax.formats.released import Released
from anygpt_jax.generation.chat import _Telling, half_blocks, printable
from anygpt_jax.generation.events import Text, Unfolding
from anygpt_jax.templates import Segment


@pytest.fixture
def chat(trained, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Types lines into a chat; gives what was printed, line by line."""
    monkeypatch.chdir(tmp_path)

    def typed(*lines: str, options: tuple[str, ...] = ()) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        assert cli.main(["chat", f"--config={trained}/config.py", *options]) == 0
        return capsys.readouterr().out.splitlines()[1:]

    return typed


def test_answers_are_saved_and_named(chat):
    out = chat("/to image", "hello", "again please")
    assert out == ["[image: chat/image-1.png]", "[image: chat/image-2.png]"]
    assert Image.open("chat/image-1.png").size == Image.open("chat/image-2.png").size


def test_files_are_attached_to_the_next_turn(chat, trained):  # noqa: F811
    out = chat("/to text", f"/image {trained}/in.png", "", "/save kept.json")
    assert out[0] == f"[{trained}/in.png attached, 7 tokens]"
    first, *_ = json.loads(pathlib.Path("kept.json").read_text())["segments"]
    assert (first["role"], first["modality"], len(first["content"])) == ("human", "image", 7)


def test_a_saved_dialogue_goes_on_as_it_would_have(chat):
    straight = chat("/to text", "one", "two", "three")
    chat("/to text", "one", "/save kept.json")
    resumed = chat("two", "three", options=("--load", "kept.json", "--to", "text", "--seed", "4"))
    assert resumed[0] == "[2 segments]"
    assert resumed[1:] == straight[1:]


def test_an_interruption_stops_the_answer_and_leaves_the_dialogue(chat, monkeypatch):
    pieces = []

    def interrupted(self, ids):
        pieces.append(ids)
        if len(pieces) == 2:
            raise KeyboardInterrupt
        return add(self, ids)

    add = Unfolding.add
    monkeypatch.setattr(Unfolding, "add", interrupted)
    stopped = chat("/to text", "one", "one", "two", "/save kept.json", options=("--seed", "2"))
    assert "[stopped]" in stopped
    kept = json.loads(pathlib.Path("kept.json").read_text())["segments"]
    assert [s["role"] for s in kept] == ["human", "assistant"] * 2  # three were said


def test_undo_and_again(chat):
    straight = chat("/to text", "one", "two")
    # The same words after an undo are answered with the next seed; the first turn is as it was.
    undone = chat("/to text", "one", "two", "/undo", "two", "/again", "/save kept.json")
    assert undone[:2] == straight
    kept = json.loads(pathlib.Path("kept.json").read_text())["segments"]
    assert [s["content"] for s in kept if s["role"] == "human"] == ["one", "two"]
    assert printable(kept[-1]["content"]) == undone[-1]
    assert chat("/undo", "/new", "/undo")[-1] == "[0 segments of yours are left]"


def test_a_long_dialogue_drops_its_oldest_turns_and_nothing_else(chat):
    out = chat("/to text", *["the same words in every turn of this dialogue"] * 24)
    assert len(out) == 24


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/dance", "! There is no /dance; /help lists what there is."),
        ("/to smell", "! Answers can be text, image, speech, music, any, not 'smell'."),
        ("/image", "! /image takes one argument; /help says more."),
        ("/image nowhere.png", "! /image nowhere.png does not exist; check the path."),
        ("/save 'x", "! /save 'x: No closing quotation."),
        ("/load notes.txt", "! notes.txt is not a saved dialogue (Expecting value: line 1 column 1 (char 0))."),
    ],
)
def test_a_mistake_costs_a_sentence(chat, line, message):
    pathlib.Path("notes.txt").write_text("not json")
    out = chat(line, "/to text", "hello")
    assert out[0] == message and len(out) == 2


def test_a_dialogue_of_another_model_is_refused(chat):
    chat("/to text", "one", "/save kept.json")
    saved = json.loads(pathlib.Path("kept.json").read_text())
    pathlib.Path("kept.json").write_text(json.dumps({**saved, "vocabulary": "another"}))
    assert chat("/load kept.json")[0].startswith("! kept.json was saved with another model (its vocabulary differs)")


def test_the_model_cannot_command_the_terminal():
    assert (
        printable("a fox\x1b[2J\nis\tsmall 日本\r\x9b1A\x07")
        == "a fox\ufffd[2J\nis\ufffdsmall 日本\ufffd\ufffd1A\ufffd"
    )


def test_what_was_heard_is_told_apart_from_the_reply():
    """As `Format.parse` has it, however the text arrives; of our own format nothing is held back."""

    class Own:
        def parse(self, segments):
            return Parsed(None, tuple(Segment(m, text, "assistant") for m, text in segments if text))

    def shown(formatter, pieces) -> str:
        out: list[str] = []
        world = types.SimpleNamespace(
            pipeline=types.SimpleNamespace(formatter=formatter),
            show=lambda line: out.append(f"{line}\n"),
            write=out.append,
        )
        telling = _Telling(world)
        for i, piece in enumerate(pieces):
            telling.add(Text(piece, last=i == len(pieces) - 1))
        return "".join(out)

    released = Released(None, None)
    text = "<-Ins-> draw a fox\n <-Res-> here it is,\nas you said"
    for size in (1, 3, len(text)):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        if size == len(text):
            assert shown(released, pieces) == "[heard: draw a fox]\nhere it is,\nas you said\n"
        assert shown(Own(), pieces) == f"{text}\n"
    # Dividers are single tokens and come whole.
    pieces = ["<-Ins->", " draw", " a fox", "\n <-Res->", " here it is,\n", "as you said"]
    assert shown(released, pieces) == "[heard: draw a fox]\nhere it is,\nas you said\n"
    assert shown(released, ["no", " <-Res->", " yes"]) == "no yes\n"
    assert shown(released, ["<-Ins-> only heard"]) == "[heard: only heard]\n"


def test_a_conversation_has_no_beams(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["chat", "--beams", "4"])
    assert stop.value.code == 2 and "--beams" in capsys.readouterr().err


def test_half_blocks_are_the_picture():
    image = np.zeros((4, 4, 3), np.uint8)
    image[0], image[3] = (255, 0, 0), (0, 0, 255)
    upper, lower = half_blocks(image, columns=4).splitlines()
    assert upper == "\x1b[38;2;255;0;0;48;2;0;0;0m▀" * 4 + "\x1b[0m"
    assert lower == "\x1b[38;2;0;0;0;48;2;0;0;255m▀" * 4 + "\x1b[0m"
