"""The one grammar of the small world, as plain data: captions, spoken sentences and their recognizer.

A template is a line of lower-case words and `{slots}`. A slot stands for an attribute and is filled with one
of the phrases for its value; `a_` before a slot puts the right article there.
"""

from __future__ import annotations

from anygpt_jax.embedded import scenes

Phrases = dict[str, tuple[str, ...]]  # value of an attribute -> ways to say it


def _places() -> Phrases:
    phrases: Phrases = {}
    for place in scenes.PLACES:
        if place == "center":
            phrases[place] = ("in the center", "in the middle")
        elif place in ("left", "right"):
            phrases[place] = (f"on the {place}", f"on the {place} side")
        elif " " in place:
            phrases[place] = (f"in the {place}", f"at the {place}", f"in the {place} corner")
        else:
            phrases[place] = (f"at the {place}", f"on the {place}")
    return phrases


OBJECTS: Phrases = {name: (name,) for name in scenes.OBJECTS}
COLOURS: Phrases = {name: (name,) for name in scenes.COLOURS}
SIZES: Phrases = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACES: Phrases = _places()
RELATIONS: Phrases = {
    "left of": ("left of", "to the left of"), "right of": ("right of", "to the right of"),
    "above": ("above", "over"), "below": ("below", "under"),
}  # fmt: skip
# The same scene told from its second object.
REVERSED = {"left of": "right of", "above": "below"}
INSTRUMENTS: Phrases = {name: (name,) for name in scenes.INSTRUMENTS}
TEMPOS: Phrases = {"slow": ("slow",), "medium": ("medium", "moderate"), "fast": ("fast", "quick")}
DANCES: Phrases = {name: (name,) for name in ("reel", "jig", "hornpipe")}
KEYS: Phrases = {
    f"{tonic} {mode}": (f"{tonic} {mode}",)
    for mode, tonics in {"major": ("g", "d", "a", "f", "c", "e", "b flat", "e flat"), "minor": tuple("gdaeb")}.items()
    for tonic in tonics
}

# slot -> (attribute it sets, phrases)
IMAGE_SLOTS: dict[str, tuple[str, Phrases]] = {
    "object": ("object", OBJECTS), "colour": ("colour", COLOURS), "size": ("size", SIZES), "where": ("place", PLACES),
    "second": ("second", OBJECTS), "relation": ("relation", RELATIONS),
}  # fmt: skip
MUSIC_SLOTS: dict[str, tuple[str, Phrases]] = {
    "instrument": ("instrument", INSTRUMENTS), "tempo": ("tempo", TEMPOS), "dance": ("dance", DANCES),
    "key": ("key", KEYS),
}  # fmt: skip
EVERYDAY_SLOTS: dict[str, tuple[str, ...]] = {
    "daytime": ("morning", "evening", "afternoon"),
    "when": ("today", "this morning", "this evening", "tonight", "now", "every day"),
    "weather": ("nice", "cold", "warm", "sunny", "cloudy"),
    "feeling": ("happy", "tired", "hungry", "well", "sad"),
    "who": ("my friend", "my mother", "my brother", "my sister", "our teacher"),
    "work": ("picture", "song", "story", "book"),
    "do": ("sing", "dance", "play music", "draw", "read a book", "go home"),
    "number": ("two", "three", "four", "five", "six", "seven", "nine"),
    "many": ("pictures", "songs", "books", "friends"),
}

# Written captions name every attribute. They are worded unlike the spoken ones.
IMAGE_CAPTIONS = (
    "a {size} {object} {where} on {a_colour} background",
    "a {size} {object} {where} with {a_colour} background",
    "{a_colour} background with a {size} {object} {where}",
    "on {a_colour} background there is a {size} {object} {where}",
    "the picture shows a {size} {object} {where} on a plain {colour} background",
    "a picture of a {size} {object} {where} against {a_colour} background",
    "against {a_colour} background a {size} {object} can be seen {where}",
    "{where} of {a_colour} picture there is a {size} {object}",
    "{a_colour} scene with a {size} {object} {where}",
    "the background is {colour} and a {size} {object} is {where}",
    "a {size} {object} is {where} and everything else is {colour}",
    "{where} a {size} {object} and behind it plain {colour}",
)
TWO_OBJECT_CAPTIONS = (
    "{a_object} {relation} {a_second} on {a_colour} background",
    "{a_object} is {relation} {a_second} and the background is {colour}",
    "on {a_colour} background there is {a_object} {relation} {a_second}",
    "a picture of {a_object} {relation} {a_second} against {a_colour} background",
    "{a_colour} scene with {a_object} {relation} {a_second}",
    "the picture shows {a_object} {relation} {a_second} on a plain {colour} background",
)
# Those of them that name a thing instead of telling something.
IMAGE_NOUN_PHRASES = tuple(t for t in IMAGE_CAPTIONS if t.startswith(("a ", "{a_")) and " is " not in t)
TWO_OBJECT_NOUN_PHRASES = tuple(t for t in TWO_OBJECT_CAPTIONS if t.startswith(("a ", "{a_")) and " is " not in t)
MUSIC_CAPTIONS = (
    "a {tempo} {dance} in {key} played on the {instrument}",
    "a {tempo} {dance} played on the {instrument} in {key}",
    "{a_instrument} plays a {tempo} {dance} in {key}",
    "a {dance} in {key} for {instrument} at a {tempo} tempo",
    "the {instrument} is playing a {tempo} {dance} in {key}",
    "{tempo} music for the {instrument} which is a {dance} in {key}",
    "this {dance} in {key} is played on the {instrument} at a {tempo} tempo",
    "a {tempo} old {dance} tune in {key} on the {instrument}",
)
SPOKEN_IMAGE = (
    "a {size} {object} on {colour}",
    "a {size} {object} {where}",
    "{a_object} {where} on {colour}",
    "a {size} {object} {where} on {colour}",
    "i see {a_object} {where}",
    "i see {a_object} on {a_colour} background",
    "i see a {size} {object} on {colour}",
    "there is {a_object} {where} on {colour}",
    "there is a {size} {object} on {colour}",
    "here is a {size} {object} {where}",
    "here is {a_object} on {a_colour} background",
    "the {object} is {size} and the background is {colour}",
    "the {object} is {where} on {colour}",
    "draw {a_object} on {a_colour} background",
    "draw a {size} {object} {where}",
    "draw a {size} {object} {where} on {colour}",
    "please draw {a_object} {where} on {colour}",
    "please draw a {size} {object} on {colour}",
    "please paint a {size} {object} {where}",
    "paint {a_object} {where} on {colour}",
    "show me a {size} {object} on {colour}",
    "show me {a_object} {where}",
    "show me {a_object} on {a_colour} background",
    "can you draw {a_object} {where}",
    "can you draw {a_object} on {colour}",
    "can you paint a {size} {object} on {colour}",
    "i want a picture of a {size} {object}",
    "i want {a_object} on {a_colour} background",
    "{a_object} {relation} {a_second}",
    "there is {a_object} {relation} {a_second}",
    "i see {a_object} {relation} {a_second}",
    "draw {a_object} {relation} {a_second}",
    "please paint {a_object} {relation} {a_second}",
    "show me {a_object} {relation} {a_second} on {colour}",
)
SPOKEN_MUSIC = (
    "a {tempo} {dance} on the {instrument}",
    "this is a {tempo} {dance} on the {instrument}",
    "this is a {dance} played on the {instrument}",
    "i hear a {tempo} {dance} on the {instrument}",
    "i hear {a_instrument} and the music is {tempo}",
    "the {instrument} plays a {tempo} {dance}",
    "here is a {tempo} {dance} for the {instrument}",
    "play a {tempo} {dance} on the {instrument}",
    "play something {tempo} on the {instrument}",
    "please play a {dance} on the {instrument}",
    "please play the {instrument} for me",
    "can you play a {tempo} {dance} on the {instrument}",
    "can you play {tempo} music on the {instrument}",
    "i want to hear a {tempo} {dance}",
    "i want to hear the {instrument}",
    "let me hear a {tempo} {dance} on the {instrument}",
    "could you play a {tempo} {dance} on the {instrument}",
    "i would like a {tempo} {dance} on the {instrument}",
    "someone plays a {tempo} {dance} on the {instrument}",
    "that is a {tempo} {dance} played on the {instrument}",
    "now a {tempo} {dance} on the {instrument}",
    "please play a {tempo} {dance} on the {instrument}",
)
SPOKEN_EVERYDAY = (
    "good {daytime} how are you",
    "good {daytime} i am {feeling}",
    "good {daytime} {who} is here",
    "how are you {when}",
    "i am {feeling} {when}",
    "i am very {feeling} {when}",
    "{who} is {feeling} {when}",
    "{who} is very {feeling}",
    "the weather is {weather} {when}",
    "it is {weather} {when}",
    "it is a {weather} {daytime}",
    "thank you for the {work}",
    "thank you very much for the {work}",
    "do you like the {work}",
    "i like to {do} {when}",
    "we want to {do} {when}",
    "{who} and i {do} {when}",
    "can you {do} {when}",
    "let us {do} {when}",
    "i have {number} {many} at home",
    "{who} has {number} {many}",
    "there are {number} {many} here",
    "we like {number} of the {many}",
    "{number} and {number} and {number}",
    "{who} likes the {work} very much",
    "tell me a {work} about {who}",
)
SPOKEN: dict[str, tuple[str, ...]] = {
    "image": SPOKEN_IMAGE, "music": SPOKEN_MUSIC, "everyday": SPOKEN_EVERYDAY
}  # fmt: skip
# How a sentence begins that asks for a picture or for music; the others tell about one.
REQUEST_OPENINGS = ("draw", "paint", "show me", "play", "please", "can you", "could you", "i want", "i would", "let me")
# Shares of the spoken sentences.
SPOKEN_SHARES = {"image": 0.5, "music": 0.25, "everyday": 0.25}
# There are not many more of these; a larger training split has more about pictures instead.
SPOKEN_MOST = {"music": 1300, "everyday": 900}


def article(phrase: str) -> str:
    """The phrase with "a" or "an" before it, by its first sound: an hourglass, a unicorn."""
    vowel = phrase.startswith("hour") or (phrase[0] in "aeiou" and not phrase.startswith("uni"))
    return f"{'an' if vowel else 'a'} {phrase}"


def slot_phrases(slot: str) -> Phrases:
    """All phrases of a slot by the value they stand for; everyday slots stand for nothing but themselves."""
    name = slot.removeprefix("a_")
    slots = IMAGE_SLOTS | MUSIC_SLOTS
    phrases: Phrases = slots[name][1] if name in slots else {p: (p,) for p in EVERYDAY_SLOTS[name]}
    if slot == name:
        return phrases
    return {value: tuple(article(p) for p in said) for value, said in phrases.items()}


def slot_attribute(slot: str) -> str | None:
    """The attribute that a slot mentions, if any."""
    entry = (IMAGE_SLOTS | MUSIC_SLOTS).get(slot.removeprefix("a_"))
    return entry[0] if entry else None
