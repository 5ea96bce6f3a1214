"""The page of published evaluations: what stands in its tables, which examples it shows, and that it needs nothing else."""

import dataclasses
import io
import json
import pathlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import protocols, suite_report
from anygpt_jax.evaluation.examples import Example
from anygpt_jax.evaluation.measures import Measure, mean, ratio
from anygpt_jax.evaluation.measures.captions import ROUGE_L
from anygpt_jax.evaluation.suite_extremes import extremes

NASTY = "</q><script>alert(1)</script><img src=x onerror=alert(2)>"
# Attributes by which a page can ask for something; a link is asked for by a person alone.
ASKS = ("src", "srcset", "poster", "data", "action", "background")


class Page(HTMLParser):
    """What a browser would find: the tables' cells by row, links, tags, and what is asked for."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.links, self.tags, self.asked, self._cell = [], [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.asked += [attributes[name] for name in ASKS if name in attributes]
        self.asked += [attributes["href"]] if tag == "link" else []
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


def score(value, higher=True, **bounds):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "higher_is_better": higher, **bounds}


def result(task, scores, n, **more):
    protocol = protocols.by_name(task)
    return {
        "task": task, "title": protocol.title, "n": n, "published_n": protocol.examples, "step": 4000, "scores": scores, "citation": protocol.citation,
        "published": [dataclasses.asdict(row) for row in protocol.published], **more,
    }  # fmt: skip


def png(colour, side=32):
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "PNG")
    return out.getvalue()


def wav(seconds=0.2):
    out = io.BytesIO()
    soundfile.write(out, np.sin(np.arange(int(16_000 * seconds)) / 10) / 2, 16_000, format="WAV")
    return out.getvalue()


def captioned(predictions):
    """Examples of COCO captions whose score under `GIVEN` is in their prediction's place in the list."""
    examples = [
        Example(f"k{i}", {"captions": ["a dog", "a dog", "a big dog"]}, ("image", png((i, 0, 0))), ("text", b"a dog"))
        for i in range(len(predictions))
    ]
    lines = {
        e.key: {"key": e.key, "error": text[6:]} if text.startswith("error ") else {"key": e.key, "text": text}
        for e, text in zip(examples, predictions, strict=True)
    }
    return examples, lines


def given(scores, higher=True, name="given"):
    measure = Measure(name, higher, lambda references, predictions: np.zeros((0, 1)), mean)
    return {name: (measure, np.array(scores, np.float64)[:, None])}


def page_of(tmp_path, results, examples=None):
    path = suite_report.write(tmp_path, results, examples or {}, "this model, step 7", 256)
    return path.read_text("utf-8")


def test_the_measured_row_stands_among_the_published_ones_with_their_citations(tmp_path):
    scores = {"cider": score(0.9), "bleu4": score(0.2)}
    page = Page(page_of(tmp_path, [result("coco_caption", scores, 5_000)]))
    assert page.rows == [
        ["system", "CIDEr higher is better", "BLEU-4 higher is better", "where"],
        ["this model, step 7", "0.900 0.800 to 1.000", "0.200 0.100 to 0.300", ""],
        ["AnyGPT 8B", "1.075", "–", "arXiv 2402.12226"],
        ["SEED-LLaMA 8B", "1.236", "–", "arXiv 2402.12226"],
        ["DreamLLM 8B", "1.154", "–", "arXiv 2402.12226"],
        ["MIO 7B", "1.204", "–", "arXiv 2601.17761"],
        ["AR-Omni 7B", "0.5653", "–", "arXiv 2601.17761"],
    ]
    assert page.links.count("https://arxiv.org/abs/2402.12226") == 3
    assert page.links.count("https://arxiv.org/abs/1504.00325") == 1  # of the data


def test_fewer_examples_than_published_are_told_and_no_bound_stands_where_there_is_none(tmp_path):
    few = page_of(tmp_path, [result("librispeech_clean", {"wer_paper": score(0.1, False)}, 16)])
    assert "Measured on 16 examples. The published figures are over 2,620." in few
    assert "Where the score is lost" not in few and "the originals" not in few
    assert "Measured on" not in page_of(
        tmp_path, [result("librispeech_clean", {"wer_paper": score(0.1, False)}, 2_620)]
    )


def test_what_other_networks_judged_has_columns_of_its_own(tmp_path):
    scores = {"wer_pocketsphinx": score(0.43, False, original=0.40, tokenizer=0.41)}
    text = page_of(tmp_path, [result("vctk", scores, 16)])
    page = Page(text)
    assert page.rows[0] == [
        "system", "word error rate, by PocketSphinx lower is better", "word error rate, by Whisper medium by other judges",
        "speaker similarity, by WavLM-TDNN by other judges", "word error rate by other judges", "where",
    ]  # fmt: skip
    by_system = {row[0]: row[1:5] for row in page.rows}
    assert by_system["VALL-E"] == ["–", "0.079", "0.75", "–"] and by_system["AR-Omni 7B"] == ["–", "–", "–", "0.065"]
    assert by_system["the originals"] == ["0.400", "–", "–", "–"] and by_system["the tokenizer’s copies"][0] == "0.410"
    assert "were judged by other networks" in text
    assert "https://doi.org/10.7488/ds/2645" in page.links
    told = re.sub(r"<[^>]+>|\s+", " ", text)
    assert "The tokenizer loses 0.010, the model loses 0.020." in told  # of a rate more is worse


def test_a_comparison_has_its_interval_and_p(tmp_path):
    compared = {"cider": {"value": -0.2, "low": -0.3, "high": -0.1, "p": 0.0}}
    page = Page(page_of(tmp_path, [result("coco_caption", {"cider": score(0.9)}, 9, compared=compared)]))
    assert ["difference to the other run", "−0.200 −0.300 to −0.100, p < 0.002", ""] in page.rows


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_examples_come_best_first_and_the_worst_worst_first(higher):
    values = [3, 9, 1, 7, 5, 0, 8, 2, 6, 4]
    examples, lines = captioned([f"said {v}" for v in values])
    found = extremes(protocols.by_name("coco_caption"), examples, lines, given(values, higher), pathlib.Path())
    best, worst = ([e.prediction[0][1].decode() for e in shown] for shown in (found.best, found.worst))
    ends = [f"said {v}" for v in (9, 8, 7, 6)], [f"said {v}" for v in (0, 1, 2, 3)]
    assert (best, worst) == (ends if higher else ends[::-1])
    assert found.best[0].score == ("9.000" if higher else "0.000")


def test_few_examples_are_shown_once_and_a_rate_with_both_its_numbers():
    examples, lines = captioned(["x", "y", "error no such picture"])
    errors = Measure("wer", False, lambda references, predictions: np.zeros((0, 2)), ratio)
    rows = {"wer": (errors, np.array([[1, 4], [0, 3], [5, 5]], np.float64))}
    found = extremes(protocols.by_name("coco_caption"), examples, lines, rows, pathlib.Path())
    assert [(e.key, e.score) for e in found.best] == [("k1", "0 errors in 3"), ("k0", "1 error in 4")]
    assert [(e.key, e.error, e.prediction) for e in found.worst] == [("k2", "no such picture", None)]
    assert found.unanswered == 1


def test_a_measure_without_a_score_of_one_example_is_passed_over():
    def distance(rows):
        raise UserError("at least 2")

    examples, lines = captioned(["a", "b"])
    rows = {"fid": (Measure("fid", False, ROUGE_L.rows, distance), np.zeros((2, 3)))}
    caption = protocols.by_name("coco_caption")
    assert extremes(caption, examples, lines, rows, pathlib.Path()) is None
    assert extremes(caption, examples, lines, rows | given([0, 1]), pathlib.Path()).measure == "given"


def test_hostile_text_stays_text_and_nothing_is_asked_for_elsewhere(tmp_path):
    examples, lines = captioned([NASTY, f"error {NASTY}"])
    examples = [dataclasses.replace(e, attributes={"captions": [NASTY, NASTY]}) for e in examples]
    examples[0] = dataclasses.replace(examples[0], source=("image", NASTY.encode()))  # no picture
    found = extremes(protocols.by_name("coco_caption"), examples, lines, given([1, 0]), pathlib.Path())
    shown = page_of(tmp_path, [result("coco_caption", {"given": score(0.5)}, 2, title=NASTY)], {"coco_caption": found})
    page = Page(shown)
    assert "script" not in page.tags and page.tags.count("img") == 1
    assert all(asked.startswith("data:image/png;base64,") for asked in page.asked)
    assert shown.count("&lt;script&gt;alert(1)") >= 4  # title, prediction, error and references
    assert "2 times" in shown and "image that cannot be shown" in shown
    assert not re.search(r"@import|url\(", shown)


def test_media_are_inside_the_page_or_beside_it(tmp_path, monkeypatch):
    (tmp_path / "made.wav").write_bytes(wav(0.3))
    example = Example("k", {"text": "hello", "file": "", "voice": ""}, ("text", b"hello"), ("speech", wav()))
    lines = {"k": {"key": "k", "file": "made.wav"}}
    found = extremes(protocols.by_name("vctk"), [example], lines, given([0.5]), tmp_path)
    results, examples = [result("vctk", {"given": score(0.5)}, 1)], {"vctk": found}
    inside = Page(page_of(tmp_path, results, examples)).asked
    assert len(inside) == 2 and len(set(inside)) == 2  # what was made and the original
    assert all(asked.startswith("data:audio/mpeg;base64,") for asked in inside)
    assert not (tmp_path / suite_report.MEDIA).exists()
    monkeypatch.setattr(suite_report, "INSIDE", 100)
    beside = Page(page_of(tmp_path, results, examples)).asked
    lengths = sorted(soundfile.info(tmp_path / asked).duration for asked in beside)
    assert lengths == pytest.approx([0.2, 0.3], abs=0.08)  # MP3 pads to whole frames


def test_a_large_picture_is_made_smaller():
    mime, data = suite_report.small(("image", png("red", 2_000)))
    assert mime == "image/jpeg" and Image.open(io.BytesIO(data)).size == (suite_report.SIDE, suite_report.SIDE)


def test_what_was_scored_before_is_on_the_page_without_examples(tmp_path):
    (tmp_path / "vqav2").mkdir()
    before = result("vqav2", {"vqa_accuracy": score(0.3)}, 10)
    (tmp_path / "vqav2" / "scores.json").write_text(json.dumps(before))
    rows = Page(page_of(tmp_path, [result("coco_caption", {"cider": score(0.9)}, 9)])).rows
    assert ["measured before, step 4000", "0.300 0.200 to 0.400"] in rows
