"""Rules by themselves, and what they mark through tf.data."""

import io
import json
import unicodedata

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio
from anygpt_jax.tasks import filters, text_normalization
from anygpt_jax.tasks.sources.folder import folder

RATE = 16_000


def marks(step, **columns):
    """What a step marks of examples that are given by columns."""
    columns = {name: tf.constant(values) for name, values in columns.items()}
    if "filtered" not in columns:
        columns["filtered"] = tf.constant([""] * len(next(iter(columns.values()))))
    return [e["filtered"].decode() for e in step(tf.data.Dataset.from_tensor_slices(columns)).as_numpy_iterator()]


def picture(width, height, kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, kind)
    return out.getvalue()


def sound(seconds, loudness=0.3, kind="FLAC", silence=0.0):
    samples = np.random.default_rng(0).uniform(-loudness, loudness, round(seconds * RATE)).astype(np.float32)
    samples[: round(silence * RATE)] = 0
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind)
    return out.getvalue()


def test_text_length_in_characters_and_words():
    texts = ["", "  ", "é" * 5, "one two three", "x" * 20]
    assert marks(filters.text_length("text", 1, 13), text=texts) == ["text_length"] * 2 + ["", "", "text_length"]
    assert marks(filters.text_length("text", 2, 3, words=True), text=texts) == ["text_length"] * 3 + ["", "text_length"]


def test_script_is_told_by_letters_alone():
    texts = ["Hello, 123!", "Привет", "Привет hello", "你好", "…", "naïve café"]
    assert marks(filters.script("text"), text=texts) == ["", "script", "script", "script", "", ""]
    assert marks(filters.script("text", "cyrillic", 0.5), text=texts)[:3] == ["script", "", ""]
    assert marks(filters.script("text", "CJK", 1.0), text=texts)[3] == ""


def test_declared_columns_and_scores():
    attributes = [
        json.dumps(a) for a in ({"language": "en", "similarity": 0.3}, {"language": "de", "similarity": "0.2"}, {})
    ]
    assert marks(filters.declared("language", {"en", "fr"}), attributes=attributes) == ["", "language", "language"]
    assert marks(filters.at_least("similarity", 0.25, "clip"), attributes=attributes) == ["", "clip", "clip"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_image_shape(kind):
    images = [picture(w, h, kind) for w, h in ((40, 20), (20, 40), (41, 20), (20, 41), (19, 19), (20, 20))]
    found = marks(filters.image_shape("image", least_side=20, most_ratio=2.0), image=images)
    assert found == ["", "", "image_shape", "image_shape", "image_shape", ""]


def test_an_image_is_judged_by_its_header_and_a_damaged_one_is_left_to_the_tokenizer():
    data = picture(300, 20)
    images = [data[:60], b"", b"no image", data[:20]]
    assert marks(filters.image_shape("image", most_ratio=2), image=images) == ["image_shape", "", "", ""]


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "OGG", "MP3"])
def test_duration(kind):
    sounds = [sound(s, kind=kind) for s in (0.4, 0.6, 1.4, 1.7)]
    assert marks(filters.duration("sound", 0.5, 1.6), sound=sounds) == ["duration", "", "", "duration"]


def test_duration_of_a_flac_that_does_not_say_its_length():
    data = bytearray(sound(1.0))
    data[21] &= 0xF0  # STREAMINFO's total of samples: 36 bits after the header's 4 + 4 + 13.5 bytes
    data[22:26] = b"\0\0\0\0"
    assert soundfile.info(io.BytesIO(bytes(data))).frames >= 1 << 62
    assert marks(filters.duration("sound", 0.9, 1.1), sound=[bytes(data)] * 2) == ["", ""]
    assert marks(filters.duration("sound", 0.0, 0.9), sound=[bytes(data)]) == ["duration"]


def test_silence():
    sounds = [
        sound(1.0),
        sound(1.0, 0.0),
        sound(1.0, 1e-4),
        sound(1.0, silence=0.95),
        sound(1.0, silence=0.8),
        b"damaged",
    ]
    assert marks(filters.audible("sound"), sound=sounds) == ["", "silence", "silence", "silence", "", ""]


def test_the_loud_share_is_that_of_windows():
    samples = np.zeros(1000, np.float32)
    samples[20:40] = 0.1
    samples[100] = 1.0  # root mean square of its window: 0.22
    sound = Audio(samples, 1000)
    assert filters.loud_share(sound, -60.0) == pytest.approx(2 / 50)
    assert filters.loud_share(sound, -15.0) == pytest.approx(1 / 50)
    assert filters.loud_share(Audio(samples[:0], 1000), -60.0) == 0
    assert filters.loud_share(Audio(samples[20:30], 1000), -60.0) == 1


def test_words_that_are_not_wanted():
    texts = ["Click here to buy", "a red fox", "SUBSCRIBE now"]
    assert marks(filters.without("text", [r"\bbuy\b", "subscribe"]), text=texts) == ["words", "", "words"]


def test_rules_come_one_after_another_and_the_first_one_counts():
    texts = ["", "Привет мир", "hello"]

    def both(dataset):
        return filters.script("text")(filters.text_length("text", 1)(dataset))

    assert marks(both, text=texts) == ["text_length", "script", ""]


def test_the_first_of_equal_media_stays_whatever_the_shards(tmp_path):
    contents = {"train": ["a", "b", "a", "c", "b", "a"], "test": ["a", "d", "d"]}
    for split, of in contents.items():
        (tmp_path / split).mkdir()
        for i, content in enumerate(of):
            (tmp_path / split / f"{i}.png").write_text(content)
        (tmp_path / split / "8.txt").write_text("no image")
        (tmp_path / split / "9.txt").write_text("no image either")
    source = folder({s: str(tmp_path / s) for s in contents}, {"image": "png"})
    listed = tmp_path / "duplicates.json"
    assert filters.find_duplicates(source, "image", listed) == {"train": 3, "test": 1}
    step = filters.unique(listed)
    found = {}
    for split in contents:
        for index in range(3):
            dataset = step(source.get_dataset(split=split, shard_info=filters.seqio.ShardInfo(index, 3)))
            found |= {e["key"].decode(): e["filtered"].decode() for e in dataset.as_numpy_iterator()}
    refused = {key for key, mark in found.items() if mark == "duplicate"}
    assert refused == {"train/2", "train/4", "train/5", "test/2"}
    assert len(found) == 6 + 3 + 4
    assert found["train/8"].startswith("!")


def test_a_list_of_duplicates_is_part_of_the_recipe(tmp_path):
    from anygpt_jax.tasks import recipe

    path = tmp_path / "duplicates.json"
    with pytest.raises(UserError, match="find_duplicates"):
        filters.unique(path)
    path.write_text('{"train": ["k"]}')
    before = recipe.value_digest(filters.unique(path))
    path.write_text('{"train": ["l"]}')
    assert recipe.value_digest(filters.unique(path)) != before
    path.write_text('{"train": ["k"]}')
    assert recipe.value_digest(filters.unique(path)) == before
    assert recipe.value_digest(filters.text_length("a", 1)) != recipe.value_digest(filters.text_length("a", 2))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_every_pair_goes_one_way_and_the_share_is_kept(share):
    keys = [f"train/{i}" for i in range(4000)]
    to_text = [filters.goes(k.encode(), x_to_text=share, to_text=True) for k in keys]
    assert to_text == [not filters.goes(k.encode(), x_to_text=share, to_text=False) for k in keys]
    # four standard deviations of a fair draw
    assert abs(sum(to_text) / 4000 - share) <= 4 * (share * (1 - share) / 4000) ** 0.5
    for way in (True, False):
        found = marks(filters.direction(share, to_text=way), key=keys[:20])
        assert found == ["" if to == way else "direction" for to in to_text[:20]]


def test_a_larger_share_moves_no_pair_back():
    keys = [f"k{i}".encode() for i in range(500)]
    few = {k for k in keys if filters.goes(k, x_to_text=0.2, to_text=True)}
    many = {k for k in keys if filters.goes(k, x_to_text=0.6, to_text=True)}
    assert few < many


def test_the_direction_does_not_choose_the_instruction():
    """Both come from a hash of the key; a common one would give each way a part of the instructions only."""
    from anygpt_jax.tasks.instructions import choose

    variants = tuple(str(i) for i in range(8))
    keys = [f"k{i}" for i in range(1000) if filters.goes(f"k{i}".encode(), x_to_text=0.3, to_text=True)]
    counts = np.bincount([int(choose(variants, k)) for k in keys], minlength=8)
    assert counts.min() > len(keys) / 8 * 0.5


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        filters.direction(1.5, to_text=True)


@pytest.mark.parametrize(
    ("text", "settings", "expected"),
    [
        ("  a\t b\u00a0\u3000c\r\nd ", {}, "a b c d"),
        ("a  \r\n\r\n\n\n b\rc", {"lines": True}, "a\n\nb\nc"),
        ("e\u0301 \x00x\x07 \ufeffy\u200b", {}, "é x y"),
        ("👩\u200d👩 نمی\u200cخواهم", {}, "👩\u200d👩 نمی\u200cخواهم"),
        ("ﬁne", {"form": "NFKC"}, "fine"),
        ("MISTER QUILTER IS", {"case": "lower"}, "mister quilter is"),
        ("HELLO, I SAID. WHO AM I? I'M HERE", {"case": "sentence"}, "Hello, I said. Who am I? I'm here"),
        ("Already Mixed", {"case": "sentence"}, "Already Mixed"),
        ("123", {"case": "sentence"}, "123"),
    ],
)
def test_normalized_texts(text, settings, expected):
    made = text_normalization.normalize(text, **settings)
    assert made == expected
    assert text_normalization.normalize(made, **settings) == made
    assert unicodedata.is_normalized(settings.get("form", "NFC"), made)


def test_gigaspeech_marks():
    by = text_normalization.gigaspeech
    assert by("FOUR O'CLOCK <COMMA> SAID WILLIAMS <PERIOD> WHY <QUESTIONMARK>") == "Four o'clock, said williams. Why?"
    assert by("NO <EXCLAMATIONPOINT>", case="lower") == "no!"
    assert by("<MUSIC>") == by("<SIL>") == ""


def test_a_step_normalizes_fields_and_the_texts_of_documents():
    columns = {
        "text": ["A  B", "c\x00"],
        "image": ["raw  bytes", "r\x00"],
        "content": [["X  Y", "I  I"]] * 2,
        "modality": [["text", "image"]] * 2,
    }
    dataset = tf.data.Dataset.from_tensor_slices(columns)
    made = list(text_normalization.texts("text", "content", case="lower")(dataset).as_numpy_iterator())
    assert [e["text"] for e in made] == [b"a b", b"c"]
    assert [e["image"] for e in made] == [b"raw  bytes", b"r\x00"]
    assert [list(e["content"]) for e in made] == [[b"x y", b"I  I"]] * 2
    broken = tf.data.Dataset.from_tensor_slices({"text": [b"\xff  x"]})
    (example,) = text_normalization.texts("text")(broken).as_numpy_iterator()
    assert example["text"] == b"\xff  x"
    with pytest.raises(ValueError, match="case must be one of"):
        text_normalization.texts("text", case="shouting")
