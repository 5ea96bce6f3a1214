"""OUT/index.html of `anygpt evaluate --tasks=…`: each protocol's scores among the published ones, and its extremes.

One page without anything from elsewhere. Media are inside it, or beside it in OUT/media where they are more than a megabyte.
"""

from __future__ import annotations

import hashlib
import html
import io
import itertools
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe
import numpy as np
import soundfile
from PIL import Image

from anygpt_jax.cache import write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import pages
from anygpt_jax.evaluation.report_media import data_uri
from anygpt_jax.evaluation.statistics import RESAMPLES
from anygpt_jax.evaluation.suite_extremes import Extremes
from anygpt_jax.modalities.audio import load_audio
from anygpt_jax.modalities.pictures import load_picture
from anygpt_jax.templates import TEXT

PAGE = "index.html"
BEFORE = "measured before, step {}"  # the row of a task that this run has not scored
MEDIA = "media"
INSIDE = 1_000_000  # bytes of media that travel inside the page
SIDE = 448  # pixels: a larger picture is made smaller for the page
BOUNDS = ("original", "tokenizer")
NAMES = {
    "cider": "CIDEr", "bleu4": "BLEU-4", "rouge_l": "ROUGE-L", "vqa_accuracy": "VQA accuracy",
    "clip_i": "CLIP, to the picture", "clip_t": "CLIP, to the caption",
    "wer": "word error rate", "wer_paper": "word error rate, the paper’s normalizer",
    "wer_whisper": "word error rate, Whisper’s normalizer", "wer_pocketsphinx": "word error rate, by PocketSphinx",
    "similarity": "speaker similarity", "clap_score": "CLAP, music and text", "speaker_resemblyzer": "speaker similarity, by Resemblyzer",
    "speaker_wavlm": "speaker similarity, by WavLM-TDNN", "fid": "FID", "fad": "FAD, by VGGish",
    **{f"wer_whisper_{size}": f"word error rate, by Whisper {size}" for size in ("tiny", "base", "small", "medium", "large")},
    "modalities": "exactly the modalities asked for", "decodable": "media that can be decoded",
}  # fmt: skip
_CITED = re.compile(r"arXiv (\d{4}\.\d{4,5})|doi (10\.\d{4,9}/[\w./-]+\w)")


def write(
    out: pathlib.Path,
    results: Sequence[Mapping[str, Any]],
    examples: Mapping[str, Extremes | None],
    model: str,
    bounded: int,
) -> pathlib.Path:
    """OUT/index.html of results as `suite.score` makes them, with the examples of each task; returns its path.

    Of a task that was scored before into OUT, and not now, the page has the scores alone. `model` is the name of the
    row that was measured now; at most `bounded` originals were judged.
    """
    now = {result["task"] for result in results}
    scored = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*/scores.json"))]
    every = [*results, *(result for result in scored if result["task"] not in now)]
    extremes_of = {task: found for task, found in examples.items() if found}
    page = (
        pages.environment(number=number, cited=cited)
        .get_template("suite_report.html.j2")
        .render(
            tasks=[
                {
                    **result,
                    **table(result, model if result["task"] in now else BEFORE.format(result.get("step"))),
                    "lost": lost(result),
                    "notes": notes(result),
                    "extremes": found,
                }
                for result in every
                for found in [extremes_of.get(result["task"])]
            ],
            names=NAMES,
            bounded=bounded,
            medium=_Media(out, list(extremes_of.values())).tag,
        )
    )
    write_atomically(out / PAGE, page.encode())
    return out / PAGE


def table(result: Mapping[str, Any], model: str) -> dict[str, Any]:
    """{"columns": [(name, is it ours, is higher better)], "rows": [{system, kind, cells, where}]}.

    What others have measured under a name that is not ours stands in a column of its own.
    """
    ours = result["scores"]
    foreign = dict.fromkeys(name for row in result["published"] for name in row["scores"] if name not in ours)
    columns = [(name, True, score["higher_is_better"]) for name, score in ours.items()]
    columns += [(name, False, None) for name in foreign]

    def row(kind: str, system: str, cells: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        return {"kind": kind, "system": system, "cells": [cells.get(name) for name, *_ in columns], "where": where}

    def told(score: Mapping[str, Any]) -> dict[str, str]:
        below = "" if number(score["low"]) == "–" else f"{number(score['low'])} to {number(score['high'])}"
        return {"value": number(score["value"]), "below": below}

    rows = []
    for bound in BOUNDS:
        cells = {name: {"value": number(score[bound])} for name, score in ours.items() if bound in score}
        if cells:
            rows.append(
                row("bound", {"original": "the originals", "tokenizer": "the tokenizer’s copies"}[bound], cells)
            )
    rows.append(row("ours", model, {name: told(score) for name, score in ours.items()}))
    if compared := result.get("compared"):
        cells = {
            name: {**told(d), "below": ", ".join(filter(None, (told(d)["below"], chance(d["p"]))))}
            for name, d in compared.items()
        }
        rows.append(row("difference", "difference to the other run", cells))
    for published in result["published"]:
        cells = {name: {"value": f"{value:g}"} for name, value in published["scores"].items()}
        rows.append(row("published", published["system"], cells, published["where"]))
    return {"columns": columns, "rows": rows}


def lost(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every measure with bounds: the values from the original to the model, and what each step between them costs."""
    found = []
    for name, score in result["scores"].items():
        steps = [(bound, _float(score[bound])) for bound in BOUNDS if bound in score]
        steps.append(("model", _float(score["value"])))
        if len(steps) > 1 and all(math.isfinite(value) for _, value in steps):
            sign = 1 if score["higher_is_better"] else -1
            costs = [None, *(sign * (a - b) for (_, a), (_, b) in itertools.pairwise(steps))]
            most = max(abs(value) for _, value in steps) or 1.0
            bars = [
                {"step": step, "value": value, "cost": cost, "width": 100 * min(max(value / most, 0.0), 1.0)}
                for (step, value), cost in zip(steps, costs, strict=True)
            ]
            found.append({"measure": name, "higher": score["higher_is_better"], "bars": bars})
    return found


def notes(result: Mapping[str, Any]) -> list[str]:
    """What must be known before a figure is held against another."""
    found = []
    full, n = result.get("published_n"), result["n"]
    if full and n < full:
        whose = "The published figures are over" if result["published"] else "The published set has"
        found.append(f"Measured on {n:,} examples. {whose} {full:,}.")
    others = {name: None for row in result["published"] for name in row["scores"] if name not in result["scores"]}
    if others:
        told = " and ".join(NAMES.get(name, name) for name in others)
        found.append(
            f"The published {told} were judged by other networks than this model’s: they stand in columns of their own "
            "and cannot be compared with it."
        )
    return found


def _float(value: float | str | None) -> float:
    """Of a score as `suite.to_json` writes it."""
    return math.nan if value is None else float(value)


def number(value: float | str | None) -> str:
    """With three decimals, and a minus sign that is one; None and NaN say that there is none."""
    value = _float(value)
    return "–" if math.isnan(value) else "∞" if value == math.inf else f"{round(value, 3) + 0:.3f}".replace("-", "−")


def chance(p: float | None) -> str:
    """Of so many samples no smaller one can be told; "" without one."""
    if p is None or math.isnan(p):
        return ""
    return f"p = {p:.3f}" if p else f"p < {2 / RESAMPLES:g}"


def cited(where: str) -> markupsafe.Markup:
    """The text as HTML, its arXiv numbers and DOIs as links."""

    def link(found: re.Match[str]) -> str:
        place = f"arxiv.org/abs/{found[1]}" if found[1] else f"doi.org/{found[2]}"
        return f'<a href="https://{place}">{found[0]}</a>'

    return markupsafe.Markup(_CITED.sub(link, html.escape(where)))


class _Media:
    """Contents as HTML. Whether media go inside the page is known once all of them are."""

    def __init__(self, out: pathlib.Path, shown: Sequence[Extremes]):
        examples = [example for e in shown for example in (*e.best, *e.worst)]
        contents = {
            c
            for e in examples
            for c in (*e.source, *(r for r, _ in e.reference), *(e.prediction or ()))
            if c[0] != TEXT
        }
        self._small = {content: file for content in contents if (file := small(content))}
        self._inside = sum(len(data) for _, data in self._small.values()) <= INSIDE
        self._out = out

    def tag(self, content: tuple[str, bytes]) -> markupsafe.Markup:
        modality, data = content
        if modality == TEXT:
            return markupsafe.Markup("<q>{}</q>").format(data.decode("utf-8", "replace"))
        if content not in self._small:
            return markupsafe.Markup("<em>{} that cannot be shown</em>").format(modality)
        mime, shown = self._small[content]
        uri = data_uri(shown, mime) if self._inside else self._link(mime, shown)
        form = '<audio controls preload="none" src="{}"></audio>' if mime == "audio/mpeg" else '<img alt="" src="{}">'
        return markupsafe.Markup(form).format(uri)

    def _link(self, mime: str, data: bytes) -> str:
        ending = {"image/png": "png", "image/jpeg": "jpg", "audio/mpeg": "mp3"}[mime]
        path = self._out / MEDIA / f"{hashlib.sha256(data).hexdigest()[:16]}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
        return f"{MEDIA}/{path.name}"


def small(content: tuple[str, bytes]) -> tuple[str, bytes] | None:
    """(MIME type, bytes) of a picture or a sound as browsers show it, read and written anew; None of anything else."""
    modality, data = content
    for read in (_picture, _sound) if modality == "image" else (_sound, _picture):
        try:
            return read(data)
        except UserError:
            continue
    return None


def _picture(data: bytes) -> tuple[str, bytes]:
    picture = Image.fromarray(load_picture(data))
    picture.thumbnail((SIDE, SIDE))
    kind = "PNG" if max(picture.size) <= 128 else "JPEG"  # a small one is enlarged, and would show JPEG's blocks
    out = io.BytesIO()
    picture.save(out, kind, quality=88, optimize=True)
    return f"image/{kind.lower()}", out.getvalue()


def _sound(data: bytes) -> tuple[str, bytes]:
    sound = load_audio(data)
    out = io.BytesIO()
    soundfile.write(out, np.clip(sound.samples, -1, 1), sound.sample_rate, format="MP3")
    return "audio/mpeg", out.getvalue()
