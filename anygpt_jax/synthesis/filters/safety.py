"""The filter of what should not be in a data set: versioned lists of words (`words/*.txt`), and data about persons.

Lists are no judgement. They find plain words, not what is meant by others, misspelt or written in another language.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.resources
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from anygpt_jax.synthesis.dialogue import Dialogue
from anygpt_jax.synthesis.filters import Read, Verdict, texts_of

PERSONAL = "personal"
LISTS = ("sexual", "hate", "violence", "self-harm", "drugs")
CATEGORIES = (*LISTS, PERSONAL)

Phrase = tuple[frozenset[str], ...]  # the forms of each of its words


@dataclasses.dataclass(frozen=True)
class Entry:
    """A word or a phrase of a list."""

    term: str
    forms: Phrase
    phrases: tuple[Phrase, ...]  # around it, where it is harmless
    companions: tuple[Phrase, ...]  # beside which it is harmless, anywhere in the text

    def stands(self, words: Sequence[str], at: int) -> bool:
        """Whether it is there, at this word, and means harm."""
        if not _stands(self.forms, words, at) or any(_find(words, companion) for companion in self.companions):
            return False
        return not any(
            start <= at and at + len(self.forms) <= start + len(phrase)
            for phrase in self.phrases
            for start in _find(words, phrase)
        )


@dataclasses.dataclass(frozen=True)
class Safety:
    """The words of the lists, and data about persons, in what is said and in the descriptions."""

    categories: tuple[str, ...] = CATEGORIES
    name: str = "safety"

    def check(self, dialogue: Dialogue, read: Read) -> Verdict:
        """No scores. The reason names the first entry found, but of data about a person only the kind."""
        for text in texts_of(dialogue):
            if found := unsafe(text, self.categories):
                category, what = found
                return Verdict(
                    reason=f"{what!r} is on the list {category!r}." if category != PERSONAL else f"It has {what}."
                )
        return Verdict()


def unsafe(text: str, categories: Sequence[str] = CATEGORIES) -> tuple[str, str] | None:
    """(category, the word of its list or the kind of data) of the first that a text has; None of a harmless one."""
    words = _words(text)
    for category in categories:
        if category == PERSONAL:
            if kind := personal(text):
                return category, kind
            continue
        entries = read_list(category)
        for at, word in enumerate(words):
            for entry in entries.get(word, ()):
                if entry.stands(words, at):
                    return category, entry.term
    return None


@functools.cache
def read_list(category: str) -> Mapping[str, Sequence[Entry]]:
    """The entries of a list by every form of their first word."""
    text = (
        importlib.resources.files("anygpt_jax.synthesis.filters")
        .joinpath("words", f"{category}.txt")
        .read_text("utf-8")
    )
    entries: dict[str, list[Entry]] = collections.defaultdict(list)
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            entry = _entry(line)
            for form in entry.forms[0]:
                entries[form].append(entry)
    return dict(entries)


def _entry(line: str) -> Entry:
    term, _, harmless = line.partition("/")
    forms = _phrase(term)
    around: list[Phrase] = []
    beside: list[Phrase] = []
    for words in filter(None, map(_words, harmless.split(","))):
        within = any(_stands(forms, words, i) for i in range(len(words)))
        (around if within else beside).append(_phrase(" ".join(words)))
    return Entry(term.strip(), forms, tuple(around), tuple(beside))


def _phrase(text: str) -> Phrase:
    return tuple(map(inflected, _words(text)))


@functools.cache
def inflected(word: str) -> frozenset[str]:
    """The word and its regular forms: plural, third person, past, participle, who does it, and the possessive.

    Some that no one says are among them, which does no harm.
    """
    stems = {word}
    if word.endswith("e"):
        forms = {f"{word[:-1]}{ending}" for ending in ("ing", "er", "ers", "ed", "es")}
    elif re.search(r"[^aeiou]y$", word):
        forms = {f"{word[:-1]}{ending}" for ending in ("ies", "ied", "ier")} | {f"{word}ing"}
    else:
        if re.search(r"[^aeiou][aeiou][^aeiouwxy]$", word):
            stems.add(word + word[-1])
        forms = {f"{stem}{ending}" for stem in stems for ending in ("ing", "er", "ers", "ed")} | {f"{word}es"}
    return frozenset({word, f"{word}s", *forms} | {f"{form}'s" for form in (word, f"{word}s")} | {f"{word}s'"})


def _words(text: str) -> list[str]:
    """Case and typography do not matter, nor do hyphens."""
    plain = unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
    return [word.strip("'") for word in re.findall(r"[^\W_](?:[^\W_]|')*", plain)]


def _stands(phrase: Phrase, words: Sequence[str], at: int) -> bool:
    there = words[at : at + len(phrase)]
    return len(there) == len(phrase) and all(word in forms for word, forms in zip(there, phrase, strict=True))


def _find(words: Sequence[str], phrase: Phrase) -> list[int]:
    return [i for i in range(len(words)) if _stands(phrase, words, i)]


def personal(text: str) -> str | None:
    """The kind of data about a person that a text has."""
    return next((kind for kind, pattern, holds in _PERSONAL for m in pattern.finditer(text) if holds(m[0])), None)


def _iban(text: str) -> bool:
    """ISO 13616: the letters as numbers, the first four characters at the end, leave 1 when divided by 97."""
    plain = re.sub(r"\s", "", text).upper()
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _card(text: str) -> bool:
    """ISO/IEC 7812: every second digit from the right doubled, the sum of all digits is a multiple of ten."""
    digits = [int(c) for c in text if c.isdigit()][::-1]
    return (
        13 <= len(digits) <= 19 and sum(sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(digits)) % 10 == 0
    )


def _phone(text: str) -> bool:
    return 8 <= sum(c.isdigit() for c in text) <= 15


def _any(text: str) -> bool:
    return True


_PERSONAL: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("an e-mail address", re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w|\b\w+ at (?:gmail|yahoo|hotmail|outlook) dot com\b", re.I), _any),
    ("a bank account", re.compile(r"\b[a-z]{2}\d{2}(?: ?[a-z0-9]{4}){2,7}(?: ?[a-z0-9]{1,3})?\b", re.I | re.ASCII), _iban),
    ("a card number", re.compile(r"(?<![\d.])\d(?:[ -]?\d){12,18}(?![\d.])"), _card),
    ("a social security number", re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), _any),
    ("a telephone number", re.compile(r"(?<!\w)(?:\+|00)[1-9]\d{0,2}(?:[ ().-]{0,2}\d){6,12}(?!\w)"), _phone),
    ("a telephone number", re.compile(r"(?<![\w-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"), _phone),
    ("a telephone number", re.compile(r"(?<![\w-])0\d{2,4}[ /-]\d{3,5}[ -]?\d{3,5}(?![\w-])"), _phone),
)  # fmt: skip
