"""OUT/index.html of `anygpt synthesize`: what each stage made and refused, what is left, and six whole dialogues.

One page without anything from elsewhere, its media in it.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import importlib.resources
import pathlib
from collections.abc import Iterable, Sequence

import markupsafe

from anygpt_jax.cache import write_atomically
from anygpt_jax.evaluation import pages
from anygpt_jax.evaluation.report_media import data_uri
from anygpt_jax.evaluation.suite_report import small
from anygpt_jax.synthesis import script
from anygpt_jax.synthesis.dialogue import Dialogue, Medium
from anygpt_jax.synthesis.filters import Read
from anygpt_jax.synthesis.report_counts import DRAWN, Counts, Lowest, binned

PAGE = "index.html"
SAMPLES = 3  # of every filter
PAPER = "arXiv 2402.12226, section 3.3"
MODALITIES = {"image": "images", "speech": "voice recordings", "music": "music"}
# What the paper says of AnyInstruct-108k, in thousands.
PUBLISHED = {"conversations": 108, "images": 205, "voice recordings": 503, "music": 113}


@dataclasses.dataclass(frozen=True)
class StageCount:
    """`removed` are those of its `items` that a filter refused there; `failed` gave no item."""

    name: str
    items: int
    failed: int = 0
    removed: int = 0


@dataclasses.dataclass(frozen=True)
class Refused:
    """By one filter."""

    name: str
    n: int
    samples: Sequence[tuple[str, str]]  # reason, script


@dataclasses.dataclass(frozen=True)
class Step:
    """From the dialogues asked for to the set: how many there are here (`whole`), or how many go."""

    what: str
    n: int
    share: float | None  # of the dialogues written, if any
    whole: bool = False


def write(
    out: pathlib.Path,
    stages: Sequence[StageCount],
    dialogues: Iterable[Dialogue],
    removed: Iterable[Dialogue],
    read: Read,
) -> pathlib.Path:
    """OUT/index.html; returns its path. Each of the iterables is gone through once; `read` opens the media shown."""
    counts = Counts.of(dialogues)
    found = refused(removed)
    text = importlib.resources.files("anygpt_jax.synthesis").joinpath("report.html.j2").read_text("utf-8")
    media = _Media(read)
    page = (
        pages.environment(medium=media.tag, number=number)
        .from_string(text)
        .render(
            stages=stages,
            steps=steps(stages, found, counts.dialogues),
            refused=found,
            counts=counts,
            table=table(counts),
            variety=variety(counts),
            charts=charts(counts),
            scores=_score_charts(counts),
            paper=PAPER,
            drawn=min(DRAWN, counts.dialogues),
        )
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / PAGE, page.encode())
    return out / PAGE


def refused(removed: Iterable[Dialogue]) -> list[Refused]:
    """By filter, the one that refused most first, with SAMPLES scripts each."""
    counts: collections.Counter[str] = collections.Counter()
    drawn: dict[str, Lowest] = collections.defaultdict(lambda: Lowest(SAMPLES))
    for dialogue in removed:
        counts[dialogue.removed_by] += 1
        drawn[dialogue.removed_by].add(dialogue)
    return [
        Refused(name, n, [(d.reason, script.write(d.turns)) for d in drawn[name]])
        for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def steps(stages: Sequence[StageCount], refused: Sequence[Refused], kept: int) -> list[Step]:
    """What became of every dialogue that was asked for."""
    failed = {stage.name: stage.failed for stage in stages}
    unwritten, unmade = failed.get("dialogues", 0), failed.get("media", 0)
    written = kept + unmade + sum(r.n for r in refused)

    def step(what: str, n: int, whole: bool = False) -> Step:
        return Step(what, n, n / written if written else None, whole)

    return [
        Step("asked for", written + unwritten, None, whole=True),
        Step("no dialogue came of it", unwritten, None),
        step("written", written, whole=True),
        *(step(f"refused by {r.name.replace('_', ' ')}", r.n) for r in refused),
        step("a medium could not be made", unmade),
        step("in the set", kept, whole=True),
    ]


def table(counts: Counts) -> list[dict[str, str]]:
    """As the paper counts its set: {what, here, each (of one conversation), paper, paper_each}."""
    n = counts.dialogues

    def row(what: str, here: int, each: bool = True) -> dict[str, str]:
        published = PUBLISHED.get(what)
        return {
            "what": what,
            "here": f"{here:,}",
            "each": f"{here / n:.2f}" if each and n else "",
            "paper": f"{published}k" if published else "",
            "paper_each": f"{published / PUBLISHED['conversations']:.2f}" if published and each else "",
        }

    turns = row("turns", counts.turns)
    rounds = {
        "what": "mean rounds",
        "here": f"{counts.turns / 2 / n:.2f}" if n else "–",
        "each": "",
        "paper": "2 to 3 asked for",
        "paper_each": "",
    }
    media = [row(name, counts.media.get(modality, 0)) for modality, name in MODALITIES.items()]
    return [row("conversations", n, each=False), *media, turns, rounds]


def variety(counts: Counts) -> list[tuple[str, str, str]]:
    """(what, figure, how it is measured)."""
    return [
        ("topics", f"{counts.topics:,}", f"of {counts.meta_topics:,} meta-topics; the paper has 20,000 of 100"),
        ("distinct-1", number(counts.distinct[0]), "different words over all words said; it falls as a set grows"),
        ("distinct-2", number(counts.distinct[1]), "the same of pairs of words"),
        (
            "mean likeness",
            number(counts.likeness),
            f"mean Jaccard similarity of three-word shingles of every two of {min(DRAWN, counts.dialogues)} dialogues drawn",
        ),
    ]


def charts(counts: Counts) -> list[tuple[str, markupsafe.Markup]]:
    """(title, SVG) of the lengths; none of an empty set."""
    found = []
    for title, by_size in (("rounds of a dialogue", counts.rounds), ("words of an utterance", counts.words)):
        if by_size:
            low, high = min(by_size), max(by_size)
            bars = [(str(size), by_size.get(size, 0)) for size in range(low, high + 1)]
            found.append((title, histogram(bars, title)))
    return found


def _score_charts(counts: Counts) -> list[tuple[str, markupsafe.Markup]]:
    """Of every score that differs among the media."""
    found = []
    for (modality, name), values in counts.scores.items():
        if min(values) == max(values):
            continue
        edges, bars = binned(values)
        named = [(f"{low:.3g}", n) for low, n in zip(edges, bars, strict=False)]
        title = f"{modality}: {name}"
        found.append((title, histogram(named, f"{title} of {len(values):,} media", f"{edges[-1]:.3g}")))
    return found


def histogram(bars: Sequence[tuple[str, int]], label: str, end: str = "") -> markupsafe.Markup:
    """Bars as inline SVG, with the first, the middle and the last named; `end` is the upper edge of the last one."""
    width, height, bottom, top = 360, 150, 22, 16
    most, step = max(n for _, n in bars) or 1, 360 / len(bars)
    parts = []
    for i, (name, n) in enumerate(bars):
        tall = (height - bottom - top) * n / most
        parts.append(
            f'<rect class="bar" x="{i * step + min(1, step / 8):.2f}" y="{height - bottom - tall:.2f}" '
            f'width="{max(min(step * 0.9, step - 1), 0.5):.2f}" height="{tall:.2f}"><title>{html.escape(name)}: {n:,}</title></rect>'
        )
    parts.append(f'<line class="axis" x1="0" x2="{width}" y1="{height - bottom}" y2="{height - bottom}"/>')
    parts.append(f'<text class="tick" x="0" y="11">{most:,} at most</text>')
    marks = dict.fromkeys((0, len(bars) // 2)) if end else dict.fromkeys((0, len(bars) // 2, len(bars) - 1))
    for i in marks:
        anchor, x = ("start", i * step) if end else ("middle", (i + 0.5) * step)
        anchor, x = ("start", max(x - 4, 0)) if i == 0 else ("end", width) if i == len(bars) - 1 else (anchor, x)
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{height - 6}" text-anchor="{anchor}">{html.escape(bars[i][0])}</text>'
        )
    if end:
        parts.append(f'<text class="tick" x="{width}" y="{height - 6}" text-anchor="end">{html.escape(end)}</text>')
    aria = html.escape(label, quote=True)
    return markupsafe.Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{aria}">{"".join(parts)}</svg>'
    )


def number(value: float) -> str:
    """Three decimals, but whole numbers without any and with commas between thousands."""
    return f"{value:.3f}" if isinstance(value, float) and not value.is_integer() else f"{value:,.0f}"


class _Media:
    def __init__(self, read: Read):
        self._read = read

    def tag(self, medium: Medium) -> markupsafe.Markup:
        """A medium as HTML, made small for the page."""
        try:
            shown = small((medium.modality, self._read(medium.file))) if medium.file else None
        except OSError:
            shown = None
        if shown is None:
            return markupsafe.Markup("<em>{} that cannot be shown</em>").format(medium.modality)
        mime, data = shown
        form = (
            '<audio controls preload="none" src="{}"></audio>' if mime == "audio/mpeg" else '<img alt="{1}" src="{0}">'
        )
        return markupsafe.Markup(form).format(data_uri(data, mime), medium.description)
