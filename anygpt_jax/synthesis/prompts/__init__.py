"""What language models are asked for AnyInstruct's stages: the files of this folder put together.

The constraints are the paper's (AnyGPT, section 3.3 and its appendix), the words and the demonstrations our own.
Templates have `{slots}`; demonstrations are JSON lines with a topic, its requirement, a scenario and, for dialogues, a
script (script.py).
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import random
import re
from collections.abc import Mapping, Sequence

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.backends import Message

FOLDER = pathlib.Path(__file__).parent
FILES = (
    "meta_topics.txt", "topics.txt", "topics_more.txt", "scenarios.txt", "dialogues.txt", "demonstrations_scenarios.jsonl",
    "demonstrations_dialogues.jsonl",
)  # fmt: skip
SPOKEN = "spoken.txt"  # not among FILES, as other dialogues do not depend on it
SCENARIO_DEMONSTRATIONS, DIALOGUE_DEMONSTRATIONS = 5, 3  # a request, as in the paper
# Which media a scenario must have; several are joined by "+".
REQUIREMENTS: Mapping[str, str] = {
    "user_image": "the user provides a picture",
    "user_music": "the user provides a piece of music",
    "ask_image": "the user asks the assistant to draw a picture",
    "ask_music": "the user asks the assistant to play a piece of music",
}
_ITEM = re.compile(r"^[\s*_#]*(\d{1,3})\s*[*_]*\s*[.):][\s*_]*(.*)$")
_INLINE = re.compile(r"\s+(?=\d{1,3}[.)]\s)")
_BULLET = re.compile(r"^\s*[-*•]\s+(.*)$")


@functools.cache
def read(name: str) -> str:
    """One of `FILES`, or SPOKEN."""
    return (FOLDER / name).read_text(encoding="utf-8")


def _version() -> str:
    """A digest of all files: another one is another recipe."""
    digest = hashlib.sha256()
    for name in FILES:
        digest.update(f"{name}\0{read(name)}\0".encode())
    return digest.hexdigest()[:12]


VERSION = _version()


def meta_topics() -> str:
    """Our own, one a line."""
    return read("meta_topics.txt")


def demonstrations(stage: str) -> list[dict[str, str]]:
    """Those of "scenarios" or "dialogues", in the file's order."""
    return [json.loads(line) for line in read(f"demonstrations_{stage}.jsonl").splitlines()]


def required(requirement: str) -> tuple[str, ...]:
    """The names that are joined in a requirement. UserError for one that is not known."""
    names = tuple(requirement.split("+"))
    unknown = [name for name in names if name not in REQUIREMENTS]
    if unknown:
        raise UserError(f"Unknown requirement '{unknown[0]}'; there are {', '.join(REQUIREMENTS)}, joined by '+'.")
    return names


def _in_words(requirement: str) -> str:
    """What a scenario must have, as prompts say it. UserError for a requirement that is not known."""
    return " and ".join(REQUIREMENTS[name] for name in required(requirement))


def topics_messages(meta_topic: str, count: int, earlier: Sequence[str] = ()) -> list[Message]:
    """`earlier` are the answers of earlier rounds, which the model sees and is not to repeat."""
    messages: list[Message] = [("user", _fill("topics.txt", meta_topic=meta_topic, count=str(count)))]
    for answer in earlier:
        more = _fill("topics_more.txt", meta_topic=meta_topic, count=str(count))
        messages += [("assistant", answer), ("user", more)]
    return messages


def scenarios_messages(topics: Sequence[str], requirement: str, seed: int) -> list[Message]:
    """One scenario for each of the topics."""
    chosen = _sample("scenarios", SCENARIO_DEMONSTRATIONS, seed)
    shown = "\n".join(f"- {one['topic']}: {one['scenario']}" for one in chosen)
    listed = "\n".join(f"{i}. {topic}" for i, topic in enumerate(topics, 1))
    asked = _fill("scenarios.txt", requirement=_in_words(requirement), demonstrations=shown, topics=listed)
    return [("user", asked)]


def dialogues_messages(scenario: str, requirement: str, rounds: int, seed: int) -> list[Message]:
    """A script of one scenario; `seed` draws the demonstrations. UserError as of `required`."""
    chosen = _sample("dialogues", DIALOGUE_DEMONSTRATIONS, seed)
    shown = "\n\n".join(f"Situation: {d['scenario']}\n{d['script']}" for d in chosen)
    slots = {"scenario": scenario, "rounds": str(rounds), "requirement": _in_words(requirement)}
    return [("user", _fill("dialogues.txt", demonstrations=shown, **slots))]


def spoken_messages(script: str) -> list[Message]:
    """A conversation that was written, to be said aloud."""
    return [("user", _fill(SPOKEN, script=script))]


def numbered(text: str) -> list[str]:
    """The items of a numbered list as language models write it, without numbers, bold face and quotation marks.

    What stands before the first item, after a blank line without a number, and as a bullet under an item is left out;
    a line right after an item goes on with it. Without any number, bullets are the items.
    """
    if sum(bool(_ITEM.match(line)) for line in text.splitlines()) == 1:
        text = _INLINE.sub("\n", text)  # "1. one 2. two"
    items: list[str] = []
    bullets: list[str] = []
    within = False
    for line in text.splitlines():
        found, bullet = _ITEM.match(line), _BULLET.match(line)
        if found:
            items.append(found[2])
        elif bullet:
            bullets.append(bullet[1])
        elif within and line.strip():
            items[-1] = f"{items[-1]} {line.strip()}"
        within = bool(items) and bool(line.strip()) and not bullet
    clean = (re.sub(r"\*\*|__", "", item).strip().strip("\"“”'*").strip() for item in items or bullets)
    return [" ".join(item.split()) for item in clean if item]


def _fill(name: str, **slots: str) -> str:
    """A template with its slots filled. Braces in what fills them stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: slots[match[1]], read(name)).strip()


def _sample(stage: str, count: int, seed: int) -> list[dict[str, str]]:
    return random.Random(f"{stage}/{seed}").sample(demonstrations(stage), count)
