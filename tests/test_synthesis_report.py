"""The page of a synthesis: its figures against counts by hand, and that it needs nothing else and escapes all."""

import dataclasses
import itertools
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from synthesis_dialogues import dialogue, png, tone, wav

from anygpt_jax.synthesis import report
from anygpt_jax.synthesis.dialogue import Made, Medium, Said
from anygpt_jax.synthesis.report import StageCount
from anygpt_jax.synthesis.report_counts import Counts, Lowest, binned, likeness

NASTY = '"></q><script>alert(1)</script><img src=x onerror=alert(2)>'
ASKS = ("src", "srcset", "poster", "data", "action", "background")


class Page(HTMLParser):
    """What a browser would find: the tables' cells by row, tags, classes, and what is asked for."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.asked, self.classes, self._cell = [], [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        assert not [name for name in attributes if name.startswith("on")]
        self.tags.append(tag)
        self.classes += (attributes.get("class") or "").split()
        self.asked += [attributes[name] for name in ASKS if name in attributes]
        self.asked += [attributes["href"]] if "href" in attributes else []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._cell:
            self.rows[-1][-1] += data.strip()


FILES = {"i.png": png(np.full((64, 64, 3), (255, 0, 0), np.uint8)), "m.wav": wav(tone(0.3)), "s.wav": wav(tone(0.2))}
MADE = Made("painter-2", "a fox", 11, "ef" * 32)


def medium(modality, text, **scores):
    file = {"image": "i.png", "music": "m.wav", "speech": "s.wav"}[modality]
    return Medium(modality, text, file, made=MADE, scores=scores)


def several():
    """Four dialogues: 10 turns, 2 images, 3 voices, 2 music, three topics."""
    fox = Said(
        "assistant", "here it is", (medium("image", "a fox", clip=0.25),), medium("speech", "here it is", wer=0.1)
    )
    jig = Said("assistant", "a jig", (medium("music", "a slow jig", clap=0.5),))
    ask = Said("human", "draw a fox", speech=medium("speech", "draw a fox", wer=0.3))
    shown = Said("human", "play this", (medium("image", "a violin", clip=0.35),))
    return [
        dialogue(name="a", topic="foxes", turns=(ask, fox)),
        dialogue(name="b", topic="foxes", turns=(shown, jig)),
        dialogue(name="c", topic="music", meta_topic="music", turns=(Said("human", "play a jig"), jig)),
        dialogue(name="d", topic="fish", turns=(Said("human", "hello"), Said("assistant", "hello"), ask, Said("assistant", "no"))),
    ]  # fmt: skip


def written(tmp_path, dialogues=(), removed=(), stages=(), read=FILES.__getitem__):
    path = report.write(tmp_path / "out", stages, iter(dialogues), iter(removed), read)
    assert path == tmp_path / "out" / "index.html"
    return path.read_text("utf-8")


def test_the_table_is_the_papers(tmp_path):
    rows = Page(written(tmp_path, several())).rows
    assert rows[0] == ["", "here", "of one conversation", "AnyInstruct-108k", "of one conversation"]
    assert rows[1:7] == [
        ["conversations", "4", "", "108k", ""],
        ["images", "2", "0.50", "205k", "1.90"],
        ["voice recordings", "3", "0.75", "503k", "4.66"],
        ["music", "2", "0.50", "113k", "1.05"],
        ["turns", "10", "2.50", "–", ""],
        ["mean rounds", "1.25", "", "2 to 3 asked for", ""],
    ]
    assert ["image", "1", "25.0 %"] in rows and ["music", "2", "50.0 %"] in rows and ["text", "3", "75.0 %"] in rows


def test_counts_of_words_and_scores():
    found = Counts.of(several())
    assert found.rounds == {1: 3, 2: 1} and found.topics == 3 and found.meta_topics == 2
    assert found.words == {1: 3, 2: 3, 3: 4}
    tokens = [turn.text.split() for d in several() for turn in d.turns]
    pairs = [pair for said in tokens for pair in itertools.pairwise(said)]
    words = [word for said in tokens for word in said]
    assert found.distinct == (len(set(words)) / len(words), len(set(pairs)) / len(pairs))
    assert found.scores[("image", "clip")] == [0.25, 0.35] and list(found.scores) == sorted(found.scores)
    assert (found.taken, found.given) == ({"text": 3, "image": 1}, {"music": 2, "image": 1, "text": 1})


def test_likeness_is_the_mean_over_pairs_by_hand():
    texts = ["draw a red fox now", "draw a red fox please", "play the slow violin tune"]
    dialogues = [dialogue(name=t, turns=(Said("human", t),)) for t in texts]
    # {draw a red, a red fox, red fox now} and {…, red fox please} share two of four; the third has none of them.
    assert likeness(dialogues) == pytest.approx((2 / 4 + 0 + 0) / 3)
    assert likeness(dialogues[:1]) == 0.0


def test_the_draw_does_not_depend_on_the_order():
    dialogues = [dialogue(name=f"d{i}") for i in range(50)]
    drawn = []
    for seed in range(3):
        lowest = Lowest(5)
        for d in random.Random(seed).sample(dialogues, 50):
            lowest.add(d)
        drawn.append([d.id for d in lowest])
    assert drawn[0] == drawn[1] == drawn[2] and len(set(drawn[0])) == 5


def test_six_dialogues_are_shown_and_of_every_combination():
    rare = [dialogue(name=f"rare{i}", turns=several()[i].turns) for i in (1, 3)]
    found = Counts.of([dialogue(name=f"d{i}", turns=several()[0].turns) for i in range(40)] + rare)
    assert len(found.shown) == 6 and {"rare1", "rare3"} <= {d.id for d in found.shown}


def test_what_each_filter_refused_with_three_samples(tmp_path):
    removed = [dialogue(name=f"l{i}", removed_by="language", reason=f"taken for de {i}") for i in range(5)]
    removed += [dialogue(name="s", removed_by="safety", reason="'gun' is on the list")]
    assert [(r.name, r.n, len(r.samples)) for r in report.refused(removed)] == [("language", 5, 3), ("safety", 1, 1)]
    text = written(tmp_path, several(), removed)
    assert text.count("taken for de") == 3 and "&#39;gun&#39; is on the list" in text
    assert "[image: a large fox in the center on a blue background]" in text  # the script of a sample


def test_from_written_to_exported_every_dialogue_is_accounted_for(tmp_path):
    removed = [dialogue(name=f"l{i}", removed_by="language", reason="no") for i in range(5)]
    removed += [dialogue(name="n", removed_by="near_duplicate", reason="no")]
    # 25 asked for; 5 gave no script and 20 did, of which 6 were refused, 10 had a medium that could not be made, 4 are left.
    stages = [
        StageCount("scenarios", 25, failed=2), StageCount("dialogues", 20, failed=5), StageCount("checked", 20, removed=5),
        StageCount("selected", 15, removed=1), StageCount("media", 4, failed=10), StageCount("exported", 4),
    ]  # fmt: skip
    rows = Page(written(tmp_path, several(), removed, stages)).rows
    first = rows.index(["asked for", "25", ""])
    assert rows[first + 1 : first + 7] == [
        ["no dialogue came of it", "−5", ""],
        ["written", "20", "100.0 %"],
        ["refused by language", "−5", "25.0 %"],
        ["refused by near duplicate", "−1", "5.0 %"],
        ["a medium could not be made", "−10", "50.0 %"],
        ["in the set", "4", "20.0 %"],
    ]


def test_stages_and_traces(tmp_path):
    stages = [StageCount("topics", 1200), StageCount("checked", 900, failed=3, removed=47)]
    text = written(tmp_path, several(), stages=stages)
    page = Page(text)
    assert ["topics", "1,200", "–", "–"] in page.rows and ["checked", "900", "3", "47"] in page.rows
    for trace in ("painter-2", ">11<", "ef" * 8, "0.250", "writer-1", "a slow jig"):
        assert trace in text


def test_media_are_in_the_page_and_nothing_is_asked_for_elsewhere(tmp_path):
    page = Page(written(tmp_path, several()))
    assert page.tags.count("img") == 2 and page.tags.count("audio") == 5
    assert all(re.match(r"data:(image/png|audio/mpeg);base64,", asked) for asked in page.asked) and len(page.asked) == 7
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "index.html"]


def test_hostile_text_stays_text(tmp_path):
    bad = Medium("image", NASTY, "i.png", voice=NASTY, made=Made(NASTY, NASTY, 1, NASTY), scores={NASTY: 0.5})
    d = dialogue(
        name=NASTY, topic=NASTY, meta_topic=NASTY, scenario=NASTY, requirement=NASTY, scores={NASTY: 1.0}, made={NASTY: Made(NASTY, "", 1, NASTY)},
        turns=(Said("human", NASTY, (bad,)), Said("assistant", NASTY, (dataclasses.replace(bad, modality="music", file="i.png"),))),
    )  # fmt: skip
    refused = dialogue(name="x", removed_by=NASTY, reason=NASTY, turns=(Said("human", NASTY),))
    text = written(tmp_path, [d], [refused], [StageCount(NASTY, 1)])
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("img") == 2
    assert text.count("&lt;script&gt;alert(1)") >= 15
    assert not re.search(r"@import|url\(", text)


def test_media_that_are_gone_or_broken_are_told(tmp_path):
    def read(file):
        if file == "i.png":
            raise FileNotFoundError(2, "gone")
        return b"no sound"

    text = written(tmp_path, several(), read=read)
    assert text.count("image that cannot be shown") == 2 and text.count("music that cannot be shown") == 2


def test_an_empty_set_has_a_page(tmp_path):
    text = written(tmp_path)
    assert "No dialogue was refused." in text and "Whole dialogues" not in text
    assert "0 dialogues" in text


def test_it_is_read_by_day_and_night_and_on_a_narrow_screen(tmp_path):
    text = written(tmp_path, several())
    assert '<meta name="viewport" content="width=device-width' in text and "prefers-color-scheme: dark" in text
    light, dark = (re.findall(r"(--[\w]+):", part) for part in re.findall(r":root \{(.*?)\}", text, re.S))
    assert light == dark and set(re.findall(r"var\((--\w+)\)", text)) <= set(light)
    classes = set(Page(text).classes)
    assert {"scroll", "dialogue", "turn", "human", "assistant", "trace"} <= classes


def test_bins():
    edges, counts = binned([0.0, 0.1, 0.9, 1.0], 2)
    assert edges == pytest.approx([0.0, 0.5, 1.0]) and counts == [2, 2]
    assert binned([3.0, 3.0])[1] == [2]
    values = np.random.default_rng(0).random(1000)
    edges, counts = binned(list(values), 10)
    expected, where = np.histogram(values, 10)
    assert counts == list(expected) and edges == pytest.approx(list(where))


def test_a_histogram_has_a_bar_a_size_and_its_height_is_its_count():
    svg = report.histogram([("1", 4), ("2", 0), ("3", 2)], "a <b>")
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)]
    assert heights[1] == 0 and heights[0] == pytest.approx(2 * heights[2], abs=0.02)
    assert 'aria-label="a &lt;b&gt;"' in svg and "<title>1: 4</title>" in svg
