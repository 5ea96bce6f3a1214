"""What people ask for: many short instructions a direction, and the human turn that carries them.

Every word is lower case and simple. One verb belongs to one target (describe and write, draw and paint,
say and speak, play) and one noun to one source (picture, voice, tune), so that a pair that was never
trained is asked for in words that were. Short, because every token of an instruction is paid in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.templates import TEXT, Segment

# (source, target) -> instructions. The first one is the fixed choice of evaluation and of `anygpt generate`.
INSTRUCTIONS: dict[tuple[str, str], tuple[str, ...]] = {
    ("image", "text"): (
        "describe the picture",
        "describe this picture",
        "describe the image",
        "describe what you see",
        "what is in the picture",
        "what is in this image",
        "what do you see",
        "what does the picture show",
        "write about the picture",
        "write what you see",
        "write a caption",
        "tell me about this picture",
    ),
    ("text", "image"): (
        "draw this",
        "draw a picture",
        "draw the picture",
        "draw an image",
        "draw a picture of this",
        "please draw",
        "paint this",
        "paint a picture",
        "paint an image",
        "show me a picture",
        "show me this",
        "make a picture",
    ),
    ("speech", "text"): (
        "write what you hear",
        "write what the voice says",
        "write the words",
        "write down the words",
        "write this down",
        "write down the speech",
        "what does the voice say",
        "what is said",
        "what do you hear",
        "listen and write",
        "please write this",
        "write the speech as text",
    ),
    ("text", "speech"): (
        "say this",
        "say the words",
        "say it aloud",
        "please say this",
        "speak this",
        "speak the words",
        "speak the text",
        "read this aloud",
        "read the text aloud",
        "read this to me",
        "read aloud",
        "say this in your voice",
    ),
    ("music", "text"): (
        "describe the tune",
        "describe this tune",
        "describe the music",
        "describe what is played",
        "what is this tune",
        "what music is this",
        "what is played",
        "what tune do you hear",
        "write about the tune",
        "write about this music",
        "write a caption for the music",
        "tell me about this tune",
    ),
    ("text", "music"): (
        "play this",
        "play a tune",
        "play the tune",
        "play the music",
        "play some music",
        "play me this",
        "please play",
        "play it for me",
        "make music",
        "make a tune",
        "let me hear this tune",
        "let me hear this music",
    ),
    # Never trained: the same verbs and nouns, met in a new combination. The first ones are also asked in the
    # dialogues, where text stands between.
    ("speech", "image"): (
        "listen and draw",
        "draw what you hear",
        "draw what the voice says",
        "draw a picture of what is said",
        "draw this",
        "draw a picture",
        "draw the picture",
        "paint what you hear",
        "paint what the voice says",
        "show me what is said",
    ),
    ("image", "speech"): (
        "describe this picture aloud",
        "say what you see",
        "say what is in the picture",
        "say what is in this image",
        "speak about the picture",
        "speak about this image",
        "describe the picture aloud",
        "describe this image aloud",
        "say aloud what you see",
        "tell me aloud what you see",
    ),
    ("speech", "music"): (
        "listen and play",
        "play what you hear",
        "play what the voice says",
        "play the tune you hear about",
        "play this",
        "play a tune",
        "play the tune",
        "play the music",
        "make the music you hear about",
        "let me hear what the voice says",
    ),
    ("music", "speech"): (
        "describe this tune aloud",
        "say what you hear",
        "say what is played",
        "say what tune this is",
        "speak about the tune",
        "speak about this music",
        "describe the tune aloud",
        "describe this music aloud",
        "say aloud what is played",
        "tell me aloud about this tune",
    ),
    ("image", "music"): (
        "play a tune on this instrument",
        "play what you see",
        "play what is in the picture",
        "play what is in this image",
        "play the picture",
        "play a tune for the picture",
        "play music for this picture",
        "make a tune for this image",
        "make music for the picture",
        "let me hear the picture",
    ),
    ("music", "image"): (
        "draw the instrument that you hear",
        "draw what is played",
        "draw the tune",
        "draw a picture of what is played",
        "draw a picture for the tune",
        "draw a picture of the music",
        "paint what is played",
        "paint the music",
        "paint a picture for this tune",
        "show me a picture of this tune",
    ),
}


def all_instructions() -> list[str]:
    """Every instruction once, in a fixed order: the text tokenizer trains on them."""
    return list(dict.fromkeys(text for variants in INSTRUCTIONS.values() for text in variants))


def instructions(source: str, target: str, tokenizers: Mapping[str, object] | None = None) -> tuple[str, ...]:
    """The instructions of one direction, ours or those that one of its tokenizers brings; UserError if there are none."""
    known = dict(INSTRUCTIONS)
    for modality in (source, target):
        known |= getattr((tokenizers or {}).get(modality), "instructions", {})
    if (source, target) not in known:
        listed = ", ".join(f"{s} to {t}" for s, t in known)
        raise UserError(f"There is no instruction for {source} to {target}; there are: {listed}.")
    return known[source, target]


def choose(variants: tuple[str, ...], key: str | None) -> str:
    """One of the variants, the same for a key on every machine; the first if there is no key."""
    if key is None:
        return variants[0]
    digest = hashlib.sha256(key.encode()).digest()
    return variants[int.from_bytes(digest[:8], "little") % len(variants)]


def pair_segments(
    source: str,
    target: str,
    content: str | np.ndarray,
    key: str | None = None,
    tokenizers: Mapping[str, object] | None = None,
) -> list[Segment]:
    """The human turn of a pair: an instruction, then the source (text, or codes int32[N]).

    The tasks choose the instruction by the example's key; `None` is the fixed one of evaluation.
    """
    asked = choose(instructions(source, target, tokenizers), key)
    return [Segment(TEXT, asked, "human"), Segment(source, content, "human")]
