"""Dialogues for the tests of synthesis: written as scripts, of the embedded world's sentences, or with media."""

import dataclasses
import io
import random

import numpy as np
import soundfile
from PIL import Image

from anygpt_jax.embedded import scenes, sentences
from anygpt_jax.synthesis import filters, script
from anygpt_jax.synthesis.dialogue import Dialogue, Made, Medium, Said

GOOD = """User: please draw a large fox on a blue background
Assistant: here it is [image: a large fox in the center on a blue background]
User: now play something slow on the violin
Assistant: this is a slow jig [music: a slow jig in d major played on the violin]"""


def dialogue(text=GOOD, name="d0", **more):
    values = {
        "id": name, "meta_topic": "animals", "topic": "a fox", "split": "train", "requirement": "ask_image",
        "scenario": "someone asks for a fox", "turns": script.parse(text), "made": {"dialogues": Made("writer-1", "dialogues, prompts 1", 7, "cd" * 32)},
    }  # fmt: skip
    known = {field.name for field in dataclasses.fields(Dialogue)}
    return Dialogue(**{k: v for k, v in (values | more).items() if k in known})


def of_turns(*turns, name="d0", **more):
    """Of (role, text, media…), where a script would not be read."""
    said = tuple(Said(role, text, tuple(media)) for role, text, *media in turns)
    return dialogue(name=name, turns=said, **more)


def with_medium(medium, name="d0"):
    """One round whose answer is this medium; speech is beside the words."""
    answer = Said("assistant", medium.description, (), medium) if medium.modality == "speech" else None
    return dialogue(name=name, turns=(Said("human", "hello"), answer or Said("assistant", "here", (medium,))))


def world(count, seed=0, rounds=2):
    """Dialogues of the embedded world, in its lower case and without punctuation."""
    rng = np.random.default_rng(seed)
    drawn = [s for s in sentences.sample("train", 400, rng) if s.kind in ("image", "music")]
    found = []
    for i in range(count):
        turns = []
        for _ in range(rounds):
            asked = drawn[rng.integers(len(drawn))]
            description = sentences.caption_scene(scenes.sample(rng, "train"), rng)
            turns += [Said("human", asked.text), Said("assistant", "here it is", (Medium("image", description),))]
        found.append(dialogue(name=f"w{i:05}", turns=tuple(turns)))
    return found


def applied(chain, d, read=None):
    """One dialogue after these filters; without `read` they may open no file."""
    [found] = filters.apply_many(chain, [d], read)
    return found


def png(picture):
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def wav(samples, rate=16_000):
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV")
    return out.getvalue()


def tone(seconds=2.0, loudness=0.3):
    return np.sin(np.arange(int(16_000 * seconds)) / 5) * loudness


def random_words(rng: random.Random, count, vocabulary=4000):
    """Words with few of them frequent, as in a language."""
    return " ".join(f"w{int(vocabulary ** rng.random())}" for _ in range(count))
