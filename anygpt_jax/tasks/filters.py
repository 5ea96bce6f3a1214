"""Rules that refuse examples: lengths, language, shapes of images, sound, duplicates, and the direction of a pair.

Every function here gives a preprocessor of a task, by `preprocessors.keep`: an example that is refused is marked with
the rule's name and counted. A medium that cannot be read is refused by no rule: the tokenizer rejects it and says why.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pathlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

import numpy as np
import seqio
import soundfile
import tensorflow as tf
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import mp3
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks.encoding import Stop
from anygpt_jax.tasks.preprocessors import Attributes, keep

Step = Callable[[tf.data.Dataset], tf.data.Dataset]

WINDOW = 0.02  # s: the stretch whose loudness is compared; shorter than a syllable


def _step(rule: Callable[..., bool], name: str, *fields: str) -> Step:
    return functools.partial(keep, rule=rule, name=name, fields=fields)


def text_length(field: str, least: int = 1, most: int = 1 << 20, *, words: bool = False) -> Step:
    """Texts of `least` to `most` characters (code points), or words between white space."""
    return _step(functools.partial(has_length, least=least, most=most, words=words), "text_length", field)


def has_length(text: bytes, *, least: int, most: int, words: bool) -> bool:
    """The rule of `text_length`. White space around the text does not count; what is not UTF-8 is replaced."""
    decoded = text.decode("utf-8", "replace").strip()
    return least <= len(decoded.split() if words else decoded) <= most


def script(field: str, name: str = "LATIN", share: float = 0.9) -> Step:
    """Texts of whose letters at least `share` are of one script, by Unicode's names of characters: LATIN, CJK, GREEK …

    This tells Russian from English and not German from English: for that the data must declare it (`declared`).
    """
    return _step(functools.partial(is_script, name=name.upper(), share=share), "script", field)


def is_script(text: bytes, *, name: str, share: float) -> bool:
    """The rule of `script`. Only letters count; a text without any is let through."""
    letters = [c for c in text.decode("utf-8", "replace") if c.isalpha()]
    return not letters or sum(unicodedata.name(c, "").split(" ")[0] == name for c in letters) >= share * len(letters)


def declared(attribute: str, values: Collection[str], name: str = "") -> Step:
    """Examples whose attribute is one of `values`, say the language that a column or a detector wrote down."""
    rule = functools.partial(declares, attribute=attribute, values=tuple(sorted(values)))
    return _step(rule, name or attribute, "attributes")


def declares(attributes: Attributes, *, attribute: str, values: tuple[str, ...]) -> bool:
    """The rule of `declared`. Values are compared as text; an attribute that is absent is "" there."""
    return str(attributes.get(attribute, "")) in values


def at_least(attribute: str, number: float, name: str = "") -> Step:
    """Examples whose attribute, say the CLIP score of a pair, is at least `number`; without it they are refused."""
    return _step(functools.partial(reaches, attribute=attribute, number=number), name or attribute, "attributes")


def reaches(attributes: Attributes, *, attribute: str, number: float) -> bool:
    """The rule of `at_least`; false of what is absent or no number."""
    value = attributes.get(attribute)
    try:
        return float(value) >= number  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def image_shape(field: str, least_side: int = 0, most_ratio: float = float("inf")) -> Step:
    """Images whose shorter side has `least_side` pixels and whose longer one is at most `most_ratio` as long.

    Only the header is read.
    """
    return _step(functools.partial(has_shape, least_side=least_side, most_ratio=most_ratio), "image_shape", field)


def has_shape(data: bytes, *, least_side: int, most_ratio: float) -> bool:
    """The rule of `image_shape`, on encoded bytes; true of what cannot be opened."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            short, long = sorted(image.size)
    except Exception:  # Pillow's readers raise whatever their parsing met; the tokenizer will say what
        return True
    return short >= least_side and long <= most_ratio * short


def duration(field: str, least: float = 0.0, most: float = float("inf")) -> Step:
    """Sounds of `least` to `most` seconds, by the header; of a file whose header does not say, by decoding it."""
    return _step(functools.partial(lasts, least=least, most=most), "duration", field)


def lasts(data: bytes, *, least: float, most: float) -> bool:
    """The rule of `duration`, on encoded bytes; true of what cannot be read."""
    try:
        info = soundfile.info(io.BytesIO(mp3.with_length(data)))
        seconds = info.frames / info.samplerate
        if info.frames >= 1 << 62:  # libsndfile's way to say that it does not know
            sound = load_audio(data)
            seconds = len(sound.samples) / sound.sample_rate
    except Exception:  # the tokenizer will say what is wrong with it
        return True
    return least <= seconds <= most


def audible(field: str, share: float = 0.1, floor_db: float = -60.0) -> Step:
    """Sounds of which at least `share` is louder than `floor_db` of full scale (root mean square of 20 ms)."""
    return _step(functools.partial(is_audible, share=share, floor_db=floor_db), "silence", field)


def is_audible(data: bytes, *, share: float, floor_db: float) -> bool:
    """The rule of `audible`, on encoded bytes; true of what cannot be decoded, as the tokenizer will say why."""
    try:
        sound = load_audio(data)
    except Exception:
        return True
    return loud_share(sound, floor_db) >= share


def loud_share(sound: Audio, floor_db: float) -> float:
    """The share of 20 ms windows whose root mean square is above `floor_db` of full scale; 0 of an empty sound."""
    window = max(1, round(WINDOW * sound.sample_rate))
    samples = sound.samples[: len(sound.samples) // window * window] if len(sound.samples) > window else sound.samples
    if not len(samples):
        return 0.0
    power = np.square(samples, dtype=np.float64).reshape(-1, min(window, len(samples))).mean(1)
    return float(np.mean(power > 10 ** (floor_db / 10)))


def find_duplicates(source: seqio.DataSource, field: str, path: str | pathlib.Path) -> dict[str, int]:
    """One pass over a source; writes to `path` which examples `unique` refuses. Returns how many of every split.

    Within a split, of all examples of the same bytes (SHA-256) the first by the order of keys stays: the answer does
    not depend on shards. The pass holds about 300 bytes an example.
    """
    refused: dict[str, list[str]] = {}
    for split in source.splits:
        keys: dict[bytes, list[bytes]] = defaultdict(list)
        for example in source.get_dataset(split=split, shuffle=False).as_numpy_iterator():
            if example[field]:  # nothing is no duplicate of nothing: it is rejected
                keys[hashlib.sha256(example[field]).digest()].append(example["key"])
        refused[split] = sorted(k.decode("utf-8", "backslashreplace") for of in keys.values() for k in sorted(of)[1:])
    pathlib.Path(path).write_text(json.dumps(refused, indent=1), encoding="utf-8")
    return {split: len(of) for split, of in refused.items()}


def unique(path: str | pathlib.Path) -> Step:
    """Examples that `find_duplicates` did not list in `path`; the file's contents decide what is tokenized anew."""
    try:
        contents = pathlib.Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"{path} cannot be read ({e.strerror}); write it first by filters.find_duplicates.") from e
    rule = functools.partial(is_first, path=str(path), sha256=hashlib.sha256(contents).hexdigest())
    return _step(rule, "duplicate", "key")


def is_first(key: bytes, *, path: str, sha256: str) -> bool:
    """The rule of `unique`. Stop if the file at `path` does not have this SHA-256 when a process reads it."""
    return key.decode("utf-8", "backslashreplace") not in _refused(path, sha256)


@functools.lru_cache(maxsize=8)
def _refused(path: str, sha256: str) -> frozenset[str]:
    contents = pathlib.Path(path).read_bytes()
    if hashlib.sha256(contents).hexdigest() != sha256:
        raise Stop(f"{path} changed while it was in use; run the same command again.")
    return frozenset(key for keys in json.loads(contents).values() for key in keys)


def direction(x_to_text: float, *, to_text: bool) -> Step:
    """The direction policy: `x_to_text` of the pairs are trained from their medium to text, the others from text to it.

    The key alone decides, so that every pair goes one way on every machine. 1 and 0 are one way only. AnyGPT takes 0.5
    for speech and music, 1 for captioned images and 0 for images that are to be drawn (stage1_pretrain, x2text_prob).
    """
    if not 0 <= x_to_text <= 1:
        raise ValueError(f"x_to_text must be a share from 0 to 1, not {x_to_text}")
    return _step(functools.partial(goes, x_to_text=x_to_text, to_text=to_text), "direction", "key")


def goes(key: bytes, *, x_to_text: float, to_text: bool) -> bool:
    """The rule of `direction`: whether the key's hash, as a number from 0 to 1, is on this way's side of the share."""
    # "direction" keeps this from following the choice of the instruction, which is by the key's hash too.
    number = int.from_bytes(hashlib.sha256(b"direction " + key).digest()[:8], "little")
    return (number < x_to_text * 2**64) == to_text


def without(field: str, expressions: Iterable[str], name: str = "words") -> Step:
    """Texts in which none of the regular expressions is found, whatever their case."""
    return _step(functools.partial(lacks, pattern="|".join(f"(?:{e})" for e in expressions)), name, field)


def lacks(text: bytes, *, pattern: str) -> bool:
    """The rule of `without`, with all its expressions in one."""
    return re.search(pattern, text.decode("utf-8", "replace"), re.IGNORECASE) is None
