"""Filters of what is written: form, length, language and safety, before anything is spent on media.

AnyGPT asked its language model for two to three rounds of 5 to 15 words an utterance with at most two images and one
music (section 3.3 and appendix). The defaults here are wider, as they are limits and no wish.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.dialogue import Dialogue
from anygpt_jax.synthesis.filters import Filter, Read, Verdict, texts_of
from anygpt_jax.synthesis.filters.safety import CATEGORIES, Safety
from anygpt_jax.synthesis.filters.speakable import Speakable
from anygpt_jax.synthesis.instructions import REQUIREMENT
from anygpt_jax.synthesis.script import ASSISTANT, HUMAN, MEDIA

# What a dialogue may be taken for: of all 140 languages that the classifier knows, short texts have too many neighbours.
LANGUAGES = tuple(
    [
        "ar",
        "cs",
        "da",
        "de",
        "el",
        "en",
        "es",
        "fi",
        "fr",
        "he",
        "hi",
        "hu",
        "id",
        "it",
        "ja",
        "ko",
        "nl",
        "no",
        "pl",
        "pt",
        "ro",
        "ru",
        "sv",
        "tr",
        "uk",
        "vi",
        "zh",
    ]
)

_SELF = r"\b(?:i|we)(?:\s+am|\s+are|'m|’m|'re|\s+really|\s+simply|\s+just)?"
_DOERS = (
    "help|assist|do|draw|paint|make|create|generate|produce|provide|play|compose|show|share|comply|fulfil+|process|answer"
    "|respond|support|engage|continue|display|send|perform"
    r"|(?:view|see|hear|listen to|access|open)(?: the| your| any)? (?:images?|pictures?|photos?|audio|sounds?|music|files?)"
)
# "I can't help but smile", "I cannot make out" are no refusals.
_CANNOT = r"can\s?not|can['’]t|could ?n['’]t|could not|will not|won['’]t|unable to|not able to|not allowed to"
_REFUSES = re.compile(rf"{_SELF}\s+(?:{_CANNOT})\s+(?:\w+ly\s+)?(?:{_DOERS})\b(?!\s+(?:but|out|up)\b)", re.I)
_MACHINE = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?(?:language|text)[ -](?:based )?model)\b", re.I
)
_SORRY = re.compile(r"^\W*(?:i am|i['’]m|we are|we['’]re)?\s*(?:so |very |really )?(?:sorry|afraid|unable)\b", re.I)
_GOES_ON = re.compile(r"\b(?:but|however|instead|though|although)\b", re.I)

# What is left of a template, of markup, or of a model's own tokens.
_LEFTOVERS = (
    ("a brace", re.compile(r"[{}]")),
    ("a bracket", re.compile(r"[\[\]]")),
    ("a tag", re.compile(r"</?[a-z!|][^<>]{0,200}>", re.I)),
    ("a modality's token", re.compile(r"<[^\w\s<>]{1,3}\d+>|<eo[hm]>|<\|")),
    ("an entity", re.compile(r"&(?:[a-z]{2,8}|#\d{1,6}|#x[0-9a-f]{1,5});", re.I)),
    ("an address", re.compile(r"\b(?:https?|ftp)://|\bwww\.\w|\b[\w-]{2,}\.(?:com|org|net|html?)\b", re.I)),
    ("markdown", re.compile(r"```|`[^`]+`|\*\*|__\w|^\s*#{1,6}\s|!\(", re.M)),
    ("a placeholder", re.compile(r"%[sd]\b|\$\w*[a-z]\w*|\b(?:insert|your) \w+ here\b|\blorem ipsum\b", re.I)),
    ("another speaker", re.compile(r"\b(?:user|human|assistant|chatbot|system)\s*:", re.I)),
)


@dataclasses.dataclass(frozen=True)
class ScriptSettings:
    """Pairs are the least and the most."""

    rounds: tuple[int, int] = (1, 5)
    words: tuple[int, int] = (1, 60)  # of one utterance that has any
    images: int = 2  # of one dialogue, at most
    music: int = 1
    language: str = "en"
    confidence: float = 0.3  # in that language, among LANGUAGES
    unsafe: tuple[str, ...] = CATEGORIES  # that are refused

    def __post_init__(self):
        for name in ("rounds", "words"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(isinstance(n, int) for n in pair) or not 0 <= pair[0] <= pair[1]:
                raise UserError(f"`{name}` of the filters is {pair!r}; it must be the least and the most, like (1, 5).")
        if self.language not in LANGUAGES:
            raise UserError(f"The language {self.language!r} is not among those told apart: {', '.join(LANGUAGES)}.")
        if unknown := set(self.unsafe) - set(CATEGORIES):
            raise UserError(f"No list of words is called {min(unknown)!r}; there are {', '.join(CATEGORIES)}.")


def filters(settings: ScriptSettings) -> tuple[Filter, ...]:
    """In the order in which they are to be applied: each may rely on those before it."""
    return (
        Form(),
        Rounds(settings.rounds),
        Words(settings.words),
        Described({"image": settings.images, "music": settings.music}),
        Refusals(),
        Speakable(),
        Leftovers(),
        Language(settings.language, settings.confidence),
        Safety(settings.unsafe),
    )


@dataclasses.dataclass(frozen=True)
class Form:
    """Human and assistant take turns, the human first and the assistant last; a turn has words or a medium."""

    name: str = "form"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """No scores. The reason is the first fault; turns are counted from 1."""
        for i, said in enumerate(dialogue.turns):
            expected = (HUMAN, ASSISTANT)[i % 2]
            if said.role != expected:
                return Verdict(reason=f"Turn {i + 1} is {said.role}'s and should be {expected}'s.")
            if not said.text.strip() and not said.media:
                return Verdict(reason=f"Turn {i + 1} has neither words nor a medium.")
            for medium in said.media:
                if medium.modality not in MEDIA:
                    return Verdict(
                        reason=f"Turn {i + 1} has the medium {medium.modality!r}, which is none of a script."
                    )
                if not medium.description.strip():
                    return Verdict(reason=f"Turn {i + 1} has a medium of kind {medium.modality} without a description.")
        if not dialogue.turns or len(dialogue.turns) % 2:
            return Verdict(reason=f"It has {len(dialogue.turns)} turns and must end with the assistant's.")
        return Verdict()


@dataclasses.dataclass(frozen=True)
class Rounds:
    """A round is a turn of each."""

    limits: tuple[int, int]
    name: str = "rounds"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """Score: `rounds`, where a last turn without its answer counts half."""
        rounds, (least, most) = len(dialogue.turns) / 2, self.limits
        reason = None if least <= rounds <= most else f"It has {rounds:g} rounds; {least} to {most} are asked for."
        return Verdict({"rounds": rounds}, reason)


@dataclasses.dataclass(frozen=True)
class Words:
    """Scores: the words of the shortest and of the longest utterance. A turn that is a medium alone has none."""

    limits: tuple[int, int]
    name: str = "words"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """The reason is the first utterance outside the limits; turns are counted from 1."""
        counts = {i: len(said.text.split()) for i, said in enumerate(dialogue.turns) if said.text.strip()}
        least, most = self.limits
        outside = [(i, n) for i, n in counts.items() if not least <= n <= most]
        scores = (
            {"words_least": float(min(counts.values())), "words_most": float(max(counts.values()))} if counts else {}
        )
        if not outside:
            return Verdict(scores)
        i, n = outside[0]
        return Verdict(scores, f"Turn {i + 1} has {n} words; {least} to {most} are asked for.")


@dataclasses.dataclass(frozen=True)
class Described:
    """At least one medium, but for dialogues that are only to be spoken, and of each modality at most so many."""

    most: Mapping[str, int]
    name: str = "media"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """No scores. Modalities that `most` does not name may be there as often as they like."""
        described = [medium.modality for said in dialogue.turns for medium in said.media]
        if not described and dialogue.requirement != REQUIREMENT:
            return Verdict(reason="It has no medium.")
        for modality, most in self.most.items():
            if (n := described.count(modality)) > most:
                return Verdict(reason=f"It has {n} media of kind {modality}; {most} at most are asked for.")
        return Verdict()


@dataclasses.dataclass(frozen=True)
class Refusals:
    """An answer that only refuses: it says that it cannot, goes on with nothing else, and gives no medium."""

    name: str = "refusals"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """No scores. The reason has the answer's turn, counted from 1, and its first words."""
        for i, said in enumerate(dialogue.turns):
            if said.role == ASSISTANT and not said.media and refuses(said.text):
                return Verdict(reason=f"Turn {i + 1} only refuses: {_shortened(said.text)}")
        return Verdict()


def refuses(text: str) -> bool:
    """Whether a text is a refusal and nothing else: no "but" follows what it says that it cannot."""
    found = _REFUSES.search(text) or (_SORRY.search(text) and _MACHINE.search(text))
    return found is not None and not _GOES_ON.search(text, found.end())


@dataclasses.dataclass(frozen=True)
class Leftovers:
    """Braces, brackets, markup and addresses, in what is said and in the descriptions."""

    name: str = "leftovers"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """No scores. The reason has the first one found, and where."""
        for text in texts_of(dialogue):
            for what, pattern in _LEFTOVERS:
                if found := pattern.search(text):
                    return Verdict(reason=f"There is {what}, {found[0]!r}, in: {_shortened(text)}")
        return Verdict()


@dataclasses.dataclass(frozen=True)
class Language:
    """The classifier's share for the language, of all that is written: one utterance alone is too short to tell.

    py3langid 0.4.0 among LANGUAGES. At 0.3 it wrongly refuses 0.2 % of single sentences of the embedded world, which are in
    lower case and without punctuation, and none of 6,000 dialogues of one to three rounds with their descriptions.
    """

    language: str
    confidence: float
    name: str = "language"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """Score: the share of the language, 0 to 1, as `language_en` for English."""
        shares: dict[str, float] = dict(_classifier().rank("\n".join(texts_of(dialogue))))
        share, likeliest = shares[self.language], max(shares, key=lambda language: shares[language])
        reason = None
        if share < self.confidence:
            reason = f"It is taken for {likeliest}; {self.language} has a share of {share:.2f}."
        return Verdict({f"language_{self.language}": round(share, 4)}, reason)


@functools.cache
def _classifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    classifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    classifier.set_languages(LANGUAGES)
    return classifier


def _shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
