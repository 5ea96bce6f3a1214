"""Documents and dialogues that interweave pictures, speech, music and text.

An answer to speech, or an answer by speech, passes through text (AnyGPT's chain of modality): a spoken request
is first written down, what will be spoken is first written. Speech, pictures and music thus never meet without
text between them, and what the model does from one to another directly it has not been taught.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from anygpt_jax.embedded import grammar, scenes, sentences, voices
from anygpt_jax.embedded.parts import Example, generator, key, size, to_json, tune_clip
from anygpt_jax.embedded.settings import Settings
from anygpt_jax.embedded.splits import TRAIN, pair_split
from anygpt_jax.modalities import pictures

HUMAN, ASSISTANT, DOCUMENT = "human", "assistant", "document"
DOCUMENT_SHARE = 1 / 3
TRIES = 50  # utterances drawn until one can be pictured

# What is said to the model in writing; one is drawn for every dialogue.
REQUESTS: Mapping[str, tuple[str, ...]] = {
    "draw": ("please draw this", "draw what i say", "make a picture of it", "listen and draw"),
    "describe": (
        "what do you see say it aloud", "describe this picture aloud", "tell me what is here", "speak about it"
    ),
    "play": ("please play this", "play what i ask for", "make the music that i want", "listen and play"),
    "play_pictured": (
        "play a tune on this instrument", "what does this sound like", "play this for me", "make music with it"
    ),
    "draw_heard": (
        "draw the instrument that you hear", "what plays here draw it", "show me the instrument",
        "paint what is playing",
    ),
    "describe_tune": ("what do you hear say it aloud", "describe this tune aloud", "tell me about the music"),
    "draw_written": ("please draw {}", "i would like {}", "make a picture of {}", "show me {}"),
    "colour": ("what color is the background", "which color is behind it", "tell me the color"),
    "size": ("how big is it", "what size is it", "is it small or large"),
    "object": ("what is it", "what do you see in the picture", "what did you draw"),
    "describe_written": ("describe the picture in writing", "what is in this picture", "write a caption for it"),
    "say": ("please say {}", "read this aloud {}", "say aloud {}"),
    "play_written": ("please play {}", "i would like to hear {}", "let me hear {}"),
    "name_tune": ("which tune is this", "write about the music", "describe the tune in writing"),
    "write": ("write down what i say", "please write this", "what am i saying"),
    "repeat": ("now say it yourself", "please say it again", "say the same"),
}  # fmt: skip
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "colour": ("it is {}", "the background is {}"),
    "size": ("it is {}",),
    "object": ("it is a picture of {}", "it shows {}"),
}


@dataclasses.dataclass(frozen=True)
class Spoken:
    """One utterance of the speech part."""

    text: str
    voice: str
    kind: str
    mentioned: Mapping[str, str]
    sound: bytes  # FLAC

    @classmethod
    def from_example(cls, attributes: Mapping[str, str], sound: bytes) -> Spoken:
        """Of the speech part's parsed `attributes`; what is neither text, voice nor kind is `mentioned`."""
        mentioned = {k: v for k, v in attributes.items() if k not in ("text", "voice", "kind")}
        return cls(attributes["text"], attributes["voice"], attributes["kind"], mentioned, sound)


Segment = tuple[str, str, str | bytes]  # modality, role, content
Story = tuple[list[Segment], dict[str, Any]]  # and the attributes of what is answered


class LackingError(Exception):
    """A split, a very small one, has nothing to say for a form."""


class Narrator:
    """Draws the material of one split and puts it together. All media in it belong to that split."""

    def __init__(self, rng: np.random.Generator, split: str, settings: Settings, utterances: Sequence[Spoken]):
        self.rng = rng
        self.split = split
        self.names = scenes.objects(settings.objects)
        self.two_objects = settings.two_objects
        self.utterances = {kind: [u for u in utterances if u.kind == kind] for kind in ("image", "music", "everyday")}
        self.imitated = set(voices.names("tts"))

    def choose(self, options: Sequence[Any]) -> Any:
        """One of the options, all equally likely."""
        return options[int(self.rng.integers(len(options)))]

    def request(self, name: str, value: str = "") -> Segment:
        """What the human writes to ask for something: one of `REQUESTS[name]`, with `value` for its {}."""
        return "text", HUMAN, self.choose(REQUESTS[name]).format(value)

    def answer(self, name: str, value: str) -> Segment:
        """What the assistant writes: one of `ANSWERS[name]`, with `value` for its {}."""
        return "text", ASSISTANT, self.choose(ANSWERS[name]).format(value)

    def scene(self, **fixed: str) -> tuple[dict[str, str], bytes]:
        """Attributes and PNG. What a held-out sentence names may be a training pair."""
        if "second" in fixed or (not fixed and self.rng.random() * 100 < self.two_objects):
            named = self.split == TRAIN or not fixed
            attributes = scenes.sample_two(self.rng, self.split if named else None, self.names, **fixed)
        else:
            split = self.split
            if "object" in fixed and "colour" in fixed:
                split = pair_split(fixed["object"], fixed["colour"])
            attributes = scenes.sample(self.rng, split, self.names, **fixed)
        return attributes, pictures.save_png(scenes.render(attributes))

    def caption(self, attributes: Mapping[str, str]) -> str:
        """A written caption of a scene, or of a tune where there is no "object"."""
        write = sentences.caption_scene if "object" in attributes else sentences.caption_music
        return write(attributes, self.rng, self.split)

    def noun_phrase(self, attributes: Mapping[str, str]) -> str:
        """A caption that can follow "please draw"."""
        return sentences.caption_scene(attributes, self.rng, self.split, noun_phrase=True)

    def spoken(self, kind: str, answer: bool = False) -> Spoken:
        """An utterance of this kind.

        One that can be an `answer` is no request, and by a voice that the model learns to speak with.
        """
        pool = self.utterances[kind]
        if answer:
            pool = [u for u in pool if u.voice in self.imitated and not sentences.is_request(u.text)]
        if not pool:
            raise LackingError(kind)
        return self.choose(pool)

    def pictured(self, answer: bool = False) -> tuple[Spoken, dict[str, str], bytes]:
        """An utterance with a picture of what it mentions."""
        for _ in range(TRIES):
            spoken = self.spoken("image", answer)
            try:
                return spoken, *self.scene(**spoken.mentioned)
            except ValueError:  # this split has no pair with what is mentioned
                continue
        raise LackingError("image")

    def tune(self, **fixed: str) -> tuple[bytes, dict[str, Any]]:
        """(FLAC, attributes) of a random clip of this split; `fixed` attributes are kept."""
        return tune_clip(self.rng, self.split, **fixed)

    def instrument(self) -> tuple[dict[str, str], bytes]:
        """A picture of an instrument."""
        drawn = [name for name, _ in scenes.pairs(self.split) if name in scenes.INSTRUMENTS]
        return self.scene(object=self.choose(drawn))


def draw_spoken(n: Narrator) -> Story:
    """Speech about a picture → its words, and the picture. Half of the time a written request comes before it."""
    spoken, attributes, png = n.pictured()
    asked = [n.request("draw")] if n.rng.random() < 0.5 else []
    turn = [*asked, ("speech", HUMAN, spoken.sound)]
    return [*turn, ("text", ASSISTANT, spoken.text), ("image", ASSISTANT, png)], attributes


def describe_aloud(n: Narrator) -> Story:
    """A picture → what is said about it, written and then spoken; "text" of the attributes are its words."""
    spoken, attributes, png = n.pictured(answer=True)
    answer: list[Segment] = [("text", ASSISTANT, spoken.text), ("speech", ASSISTANT, spoken.sound)]
    return [n.request("describe"), ("image", HUMAN, png), *answer], {**attributes, "text": spoken.text}


def play_spoken(n: Narrator) -> Story:
    """Speech about music → its words, and a tune with what they mention.

    Half of the time a written request comes before it.
    """
    spoken = n.spoken("music")
    sound, attributes = n.tune(**spoken.mentioned)
    asked = [n.request("play")] if n.rng.random() < 0.5 else []
    turn = [*asked, ("speech", HUMAN, spoken.sound)]
    return [*turn, ("text", ASSISTANT, spoken.text), ("music", ASSISTANT, sound)], attributes


def play_pictured(n: Narrator) -> Story:
    """A picture of an instrument → a caption of a tune on it, and the tune, whose attributes are told."""
    pictured, png = n.instrument()
    sound, attributes = n.tune(instrument=pictured["object"])
    answer: list[Segment] = [("text", ASSISTANT, n.caption(attributes)), ("music", ASSISTANT, sound)]
    return [n.request("play_pictured"), ("image", HUMAN, png), *answer], attributes


def draw_heard(n: Narrator) -> Story:
    """A tune → a caption of a picture of its instrument, and the picture, whose attributes are told."""
    attributes, png = n.instrument()
    sound, _ = n.tune(instrument=attributes["object"])
    answer: list[Segment] = [("text", ASSISTANT, n.caption(attributes)), ("image", ASSISTANT, png)]
    return [n.request("draw_heard"), ("music", HUMAN, sound), *answer], attributes


def describe_tune(n: Narrator) -> Story:
    """A tune → what is said about it, written and then spoken; "text" of the attributes are its words."""
    spoken = n.spoken("music", answer=True)
    sound, attributes = n.tune(**spoken.mentioned)
    answer: list[Segment] = [("text", ASSISTANT, spoken.text), ("speech", ASSISTANT, spoken.sound)]
    return [n.request("describe_tune"), ("music", HUMAN, sound), *answer], {**attributes, "text": spoken.text}


def several_turns(n: Narrator) -> Story:
    """A picture that is asked for in writing, then questions about it, answered in writing.

    There are two of them about one object, and one (the colour) about two.
    """
    attributes, png = n.scene()
    turns = [n.request("draw_written", n.noun_phrase(attributes)), ("image", ASSISTANT, png)]
    known = [name for name in ANSWERS if name in attributes and "second" not in attributes] or ["colour"]
    for name in n.rng.permutation(known)[:2]:
        value = attributes[name] if name != "object" else grammar.article(attributes["object"])
        turns += [n.request(name), n.answer(name, value)]
    return turns, attributes


def write_and_repeat(n: Narrator) -> Story:
    """An everyday sentence is written down, then said again: by the same sound that was heard."""
    spoken = n.spoken("everyday", answer=True)
    turns = [n.request("write"), ("speech", HUMAN, spoken.sound), ("text", ASSISTANT, spoken.text)]
    return [*turns, n.request("repeat"), ("speech", ASSISTANT, spoken.sound)], {"text": spoken.text}


def draw_written(n: Narrator) -> Story:
    """A written request with a caption → its picture."""
    attributes, png = n.scene()
    return [n.request("draw_written", n.noun_phrase(attributes)), ("image", ASSISTANT, png)], attributes


def describe_written(n: Narrator) -> Story:
    """A picture → its written caption."""
    attributes, png = n.scene()
    asked: list[Segment] = [n.request("describe_written"), ("image", HUMAN, png)]
    return [*asked, ("text", ASSISTANT, n.caption(attributes))], attributes


def say(n: Narrator) -> Story:
    """An everyday sentence in writing → its sound."""
    spoken = n.spoken("everyday", answer=True)
    return [n.request("say", spoken.text), ("speech", ASSISTANT, spoken.sound)], {"text": spoken.text}


def play_written(n: Narrator) -> Story:
    """A written request with a caption → its tune."""
    sound, attributes = n.tune()
    return [n.request("play_written", n.caption(attributes)), ("music", ASSISTANT, sound)], attributes


def name_tune(n: Narrator) -> Story:
    """A tune → its written caption: instrument, tempo, dance and key, not the title."""
    sound, attributes = n.tune()
    return [n.request("name_tune"), ("music", HUMAN, sound), ("text", ASSISTANT, n.caption(attributes))], attributes


def conversation(n: Narrator) -> Story:
    """Two or three requests one after the other, at most one of them with music: it is long."""
    forms = [SHORT[i] for i in n.rng.permutation(len(SHORT))[: 2 + int(n.rng.random() < 0.5)]]
    with_music = [form for form in forms if form in MUSICAL]
    turns: list[Segment] = []
    attributes: dict[str, Any] = {}
    for form in forms:
        if form not in with_music[1:]:
            segments, attributes = form(n)
            if turns and segments[0][0] != "text":  # media of two turns would meet without text between
                turns.append(n.request("draw" if form is draw_spoken else "play"))
            turns += segments
    return turns, attributes


def picture_book(n: Narrator) -> Story:
    """A picture, what is said about it, and another picture."""
    spoken, attributes, png = n.pictured(answer=True)
    second, second_png = n.scene()
    return [
        ("text", DOCUMENT, n.caption(attributes)),
        ("image", DOCUMENT, png),
        ("text", DOCUMENT, spoken.text),
        ("speech", DOCUMENT, spoken.sound),
        ("text", DOCUMENT, n.caption(second)),
        ("image", DOCUMENT, second_png),
    ], attributes


def song_book(n: Narrator) -> Story:
    """A tune and the instrument that plays it."""
    pictured, png = n.instrument()
    sound, attributes = n.tune(instrument=pictured["object"])
    return [
        ("text", DOCUMENT, n.caption(attributes)),
        ("music", DOCUMENT, sound),
        ("text", DOCUMENT, n.caption(pictured)),
        ("image", DOCUMENT, png),
    ], attributes


def concert(n: Narrator) -> Story:
    """Someone says what is about to be played."""
    spoken = n.spoken("music", answer=True)
    sound, attributes = n.tune(**spoken.mentioned)
    return [
        ("text", DOCUMENT, spoken.text),
        ("speech", DOCUMENT, spoken.sound),
        ("text", DOCUMENT, n.caption(attributes)),
        ("music", DOCUMENT, sound),
    ], attributes


DIALOGUES: tuple[Callable[[Narrator], Story], ...] = (
    draw_spoken, conversation, describe_aloud, several_turns, play_spoken, conversation, play_pictured, draw_heard,
    conversation, describe_tune, write_and_repeat, conversation,
)  # fmt: skip
MUSICAL: tuple[Callable[[Narrator], Story], ...] = (
    play_spoken, play_pictured, draw_heard, describe_tune, play_written, name_tune
)  # fmt: skip
SHORT: tuple[Callable[[Narrator], Story], ...] = (
    draw_written, describe_written, say, draw_spoken, describe_aloud, write_and_repeat, several_turns, *MUSICAL
)  # fmt: skip
DOCUMENTS: tuple[Callable[[Narrator], Story], ...] = (picture_book, song_book, concert)


def _tell(
    narrator: Narrator, forms: Sequence[Callable[[Narrator], Story]], turn: int
) -> tuple[str, list[Segment], dict[str, Any]]:
    """(form's name, segments, attributes). The forms take turns; one that lacks its material is passed over."""
    for k in range(len(forms)):
        form = forms[(turn + k) % len(forms)]
        with contextlib.suppress(LackingError):
            return form.__name__, *form(narrator)
    raise AssertionError("several_turns and song_book need no speech")


def interleaved(settings: Settings, split: str, utterances: Sequence[Spoken]) -> Iterator[Example]:
    """Examples of a split; `utterances` are the same split of the speech part."""
    narrator = Narrator(generator(settings, "interleaved", split), split, settings, utterances)
    for i in range(size(settings, "interleaved", split)):
        is_document = narrator.rng.random() < DOCUMENT_SHARE
        name, segments, attributes = _tell(narrator, DOCUMENTS if is_document else DIALOGUES, i)
        modality, role, content = zip(*segments, strict=True)
        yield {
            "key": key("interleaved", split, i),
            "kind": "document" if is_document else "dialogue",
            "modality": list(modality),
            "role": list(role),
            "content": [c.encode() if isinstance(c, str) else c for c in content],
            "attributes": to_json({**attributes, "form": name}),
        }
