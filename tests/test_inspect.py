"""`anygpt inspect`: the counts it shows, the pages it writes, and every kind of damage that --verify must name."""

import argparse
import base64
import collections
import json
import re
import shutil

import numpy as np
import pytest
import synthetic
from array_record.python.array_record_data_source import ArrayRecordDataSource

from anygpt_jax import cli
from anygpt_jax.cache import Ledger, Manifest, write_shard
from anygpt_jax.data import inspect, inspect_codebooks, inspect_page, inspect_verify
from anygpt_jax.errors import UserError
from anygpt_jax.modalities import audio, pictures
from anygpt_jax.modalities.base import Audio, Grammar
from anygpt_jax.records import Span, TokenRecord

VOCABULARY = synthetic.vocabulary()


class Words:
    fingerprint = "none"

    def decode(self, ids):
        return " ".join(f"<w{i}>" for i in ids)


class Picture:
    """Six codes, the grey of six pixels."""

    fingerprint = "none"
    grammar = Grammar(cycle=((0, 4), (4, 16)), min_length=6, max_length=6)

    def decode(self, codes):
        return [np.repeat(np.array(c, np.uint8).reshape(2, 3, 1) * 10, 3, axis=2) for c in codes]

    def save(self, media):
        return pictures.save_png(media)


class Sound:
    fingerprint = "none"
    grammar = Grammar(cycle=((0, 12),), min_length=1, max_length=9)

    def decode(self, codes):
        return [Audio(np.repeat(np.asarray(c, np.float32) / 20, 160), 16_000) for c in codes]

    def save(self, media):
        return audio.save_wav(media)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("run") / "cache"
    made = [synthetic.record(VOCABULARY, "images", i, np.random.default_rng(i)) for i in range(12)]
    filtered = collections.Counter({"length": 5, "language": 2})
    ledgers = [Ledger(14, [("a", "cut at 3"), ("b", "cut at 40")], filtered), Ledger(7, [("c", "silent")])]
    ledgers[0] = Ledger(6 + 2 + 7, ledgers[0].rejects, filtered)
    halves = zip((made[:6], made[6:]), ledgers, strict=True)
    shards = [write_shard(root, f"images/train/0000{i}-of-00002", half, of, "r") for i, (half, of) in enumerate(halves)]
    VOCABULARY.save(root / "vocabulary.json")
    sources = {"images": {"train": 25}}
    Manifest(VOCABULARY.fingerprint, "none", {"image": "none"}, {"images": {"train": shards}}, sources=sources).save(
        root
    )
    return root


def args(**given):
    defaults = {"task": None, "split": "train", "limit": 3, "json": None, "sample": 0, "record": None, "html": None}
    return argparse.Namespace(**{**defaults, "place": None, "workdir": None, "verify": False, **given})


def test_inputs_are_records_filtered_and_rejects(whole, capsys, tmp_path):
    inspect.run(None, args(place=str(whole), json=str(tmp_path / "out.json")))
    (row,) = json.loads((tmp_path / "out.json").read_text())["summary"]
    assert (row["inputs"], row["records"], row["rejects"]) == (25, 12, 3)
    assert row["filtered"] == {"length": 5, "dropped by the task's own steps": 3, "language": 2}
    assert row["rejected"] == {"cut at N": 2, "silent": 1}
    assert sum(row["modalities"].values()) == row["tokens"]
    assert row["modalities"]["image"] == 12 * 8
    printed = capsys.readouterr().out
    for line in ("filtered 5: length", "rejected 2: cut at N", "rejected 1: silent"):
        assert line in printed


def test_the_place_is_a_cache_a_run_or_a_config(whole, tmp_path):
    assert inspect.place_of(None, args(place=str(whole)))[0] == whole
    assert inspect.place_of(None, args(place=str(whole.parent)))[0] == whole
    folder, config = inspect.place_of(None, args(place="configs/quickstart.py", workdir=str(whole.parent)))
    assert folder == whole and config.modalities[0] == "image"
    assert inspect.place_of(config, args())[0] == whole
    with pytest.raises(UserError, match="Name a cache"):
        inspect.place_of(None, args())


def test_a_page_holds_text_pictures_and_sound(whole, tmp_path, monkeypatch):
    block, voice = VOCABULARY.block("image"), VOCABULARY.block("speech")
    image = [block.begin, *(block.start + np.array([1, 5, 2, 6, 3, 15])), block.end]
    sound = [voice.begin, *(voice.start + np.array([3, 11, 0])), voice.end]
    pieces = [
        ([VOCABULARY.bos], "text", False),
        ([7, 8], "text", False),
        (image, "image", True),
        (sound, "speech", True),
    ]
    tokens = np.concatenate([p for p, _, _ in pieces]).astype(np.int32)
    spans = tuple(Span(len(p), m, "document", loss) for p, m, loss in pieces)
    record = TokenRecord("<k>", "images", tokens, spans)
    shown = inspect_page.page(record, VOCABULARY, Words(), {"image": Picture(), "speech": Sound()})
    assert "&lt;w7&gt; &lt;w8&gt;" in shown and "images: &lt;k&gt;" in shown and "<w7>" not in shown
    (png,) = re.findall(r'src="data:image/png;base64,([^"]+)"', shown)
    np.testing.assert_array_equal(
        pictures.load_picture(base64.b64decode(png))[..., 0], np.array([[10, 50, 20], [60, 30, 150]])
    )
    (wav,) = re.findall(r'src="data:audio/wav;base64,([^"]+)"', shown)
    heard = audio.load_audio(base64.b64decode(wav))
    np.testing.assert_allclose(heard.samples, np.repeat([0.15, 0.55, 0.0], 160), atol=1 / 2**14)
    assert not re.findall(r"https?://|src=\"(?!data:)", shown)
    without = inspect_page.page(record, VOCABULARY, Words(), {"image": Picture()})
    assert "not at hand" in without and "3 11 0" in without

    monkeypatch.setattr(inspect.TextTokenizer, "load", lambda: Words())
    monkeypatch.setattr(inspect, "tokenizers_of", lambda *_: {"image": Picture()})
    inspect.run(None, args(place=str(whole), record=7, html=str(tmp_path / "seven.html")))
    assert "images: images-7" in (tmp_path / "seven.html").read_text()
    inspect.run(None, args(place=str(whole), record=0))
    assert (whole.parent / "inspect" / "images-train-0.html").is_file()
    with pytest.raises(UserError, match="no record 12; it has 0 to 11"):
        inspect.run(None, args(place=str(whole), record=12))


def test_use_of_codebooks_by_hand():
    """Of a codebook of 4, two used evenly: perplexity 2. Of one of 12, three: twice, once, once."""
    rows = []
    for codes in ([0, 4, 1, 5, 0, 6], [1, 4, 0, 4, 1, 5]):
        block = VOCABULARY.block("image")
        tokens = np.array([block.begin, *(block.start + np.array(codes)), block.end], np.int32)
        rows.append(TokenRecord("k", "t", tokens, (Span(8, "image", "document", True),)))
    counts = inspect_codebooks.count_codes(rows, VOCABULARY)
    first, second = inspect_codebooks.codebook_use(counts, {"image": Picture.grammar})
    assert (first.low, first.high, first.codes, first.used) == (0, 4, 6, 0.5)
    assert first.perplexity == pytest.approx(2.0, rel=1e-12)
    p = np.array([3, 2, 1]) / 6
    assert (second.low, second.high, second.used) == (4, 16, 0.25)
    assert second.perplexity == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
    (alone,) = inspect_codebooks.codebook_use(counts, {})
    assert (alone.low, alone.high, alone.codes, alone.used) == (0, 16, 12, 5 / 16)


def test_verify_finds_nothing_in_a_whole_cache(whole, capsys):
    assert list(inspect_verify.problems(whole)) == []
    assert cli.main(["inspect", str(whole), "--verify"]) == 0
    assert "2 shards are whole" in capsys.readouterr().out


def files(cache):
    return sorted(p.relative_to(cache) for p in cache.rglob("*") if p.is_file())


def test_verify_names_every_flipped_byte(whole, tmp_path):
    """At random offsets in every file of the cache; one bit or all of them."""
    shutil.copytree(whole, tmp_path / "cache")
    rng = np.random.default_rng(0)
    kinds = set()
    for name in files(whole):
        path = tmp_path / "cache" / name
        good = path.read_bytes()
        for offset in rng.choice(len(good), min(len(good), 12), replace=False):
            bad = bytearray(good)
            bad[offset] ^= int(rng.choice([1, 32, 255]))
            path.write_bytes(bad)
            found = list(inspect_verify.problems(tmp_path / "cache"))
            assert [problem for problem in found if problem.startswith(f"{name}:")], f"{name} at {offset}: {found}"
        path.write_bytes(good)
        kinds.add(name.suffix)
    assert kinds == {".json", ".jsonl", ".npy", ".array_record"}
    assert list(inspect_verify.problems(tmp_path / "cache")) == []


@pytest.mark.parametrize("harm", ["truncated", "emptied", "longer", "missing"])
def test_verify_names_every_harmed_file(whole, tmp_path, harm, capsys):
    shutil.copytree(whole, tmp_path / "cache")
    for name in files(whole):
        path = tmp_path / "cache" / name
        good = path.read_bytes()
        if harm == "missing":
            path.unlink()
        elif harm == "emptied" and not good:
            continue
        else:
            path.write_bytes({"truncated": good[:-1], "emptied": b"", "longer": good + b"\n"}[harm])
        found = list(inspect_verify.problems(tmp_path / "cache"))
        assert [problem for problem in found if problem.startswith(f"{name}:")], f"{name}: {found}"
        path.write_bytes(good)
    (tmp_path / "cache" / files(whole)[0]).unlink()
    assert cli.main(["inspect", str(tmp_path / "cache"), "--verify"]) == 2
    said = capsys.readouterr()
    assert str(files(whole)[0]) in said.out and "damaged" in said.err


def test_verify_says_which_records_are_lost(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "cache")
    path = tmp_path / "cache" / "images/train/00001-of-00002.array_record"
    good = path.read_bytes()
    seen = set()
    for offset in range(90, 1300, 37):  # the records are at the beginning of the file
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        source, lost = ArrayRecordDataSource([str(path)]), []
        for i in range(6):
            try:
                source[i]
            except RuntimeError:
                lost.append(i)
        (problem,) = inspect_verify.problems(tmp_path / "cache")
        if lost:
            assert problem.endswith(f"{len(lost)} of 6 records cannot be read: {', '.join(map(str, lost))}")
            seen.update(lost)
    assert len(seen) > 3


def test_verify_finds_a_shard_that_disagrees_with_itself(whole, tmp_path):
    """Whole by every checksum, but made by a program with a mistake."""
    root = tmp_path / "cache"
    shutil.copytree(whole, root)
    made = [synthetic.record(VOCABULARY, "images", i, np.random.default_rng(i)) for i in range(3)]
    strange = TokenRecord("s", "others", np.array([VOCABULARY.size, 1], np.int32), (Span(2, "text", "document", True),))
    shard = write_shard(root, "images/train/00000-of-00001", [*made, strange], Ledger(4))
    Manifest(VOCABULARY.fingerprint, "none", {}, {"images": {"train": [shard]}}).save(root)
    found = list(inspect_verify.problems(root))
    assert len(found) == 2
    assert "record 3 (s) is of others" in found[0] and "not in the vocabulary" in found[1]
    assert "images/train/00001-of-00002.json" in inspect_verify.unlisted(root, Manifest.load(root))
