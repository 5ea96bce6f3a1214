"""The report: everything inside the page, shortfalls said plainly, numbers where they belong."""

import html.parser
import io
import json
import pathlib
from typing import Any

import ml_collections
import numpy as np
import pytest
import soundfile
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import report, report_charts, report_media

METRIC = {"image": "attributes", "text": "attributes", "speech": "wer", "music": "instrument"}
TRAINED = {"image_to_text", "text_to_image", "speech_to_text", "text_to_speech", "music_to_text", "text_to_music"}


def _entry(source: str, target: str, rng: np.random.Generator) -> dict[str, Any]:
    other = target if source == "text" else source
    metric = METRIC[other] if f"{source}_to_{target}" in TRAINED else "attributes"
    higher = metric != "wer"
    trained = f"{source}_to_{target}" in TRAINED
    score = float(rng.uniform(0.7, 0.97) if trained else rng.uniform(0.2, 0.9))
    score, chance, ceiling = (score, 0.12, 0.99) if higher else (1 - score, 1.01, 0.05)
    details = {"direct": {metric: score, "object": 0.8}, "chance": {metric: chance}, "ceiling": {metric: ceiling}}
    entry = {
        "metric": metric, "score": score, "chance": chance, "ceiling": ceiling, "n": 64, "trained": trained,
        "higher_is_better": higher, "interval": [score - 0.05, score + 0.05], "untrained": chance, "details": details,
    }  # fmt: skip
    if not trained:
        entry |= {"via_text": 0.81, "via_text_interval": [0.7, 0.9], "legs": 0.9}
        entry["share_of_legs"] = {"direct": 0.43, "via_text": None}
        details["via_text"] = {metric: 0.81}
    return entry


def _save(folder: pathlib.Path, stem: str, modality: str, rng: np.random.Generator) -> dict[str, str]:
    if modality == "text":
        return {"modality": "text", "file": _write(folder / f"{stem}.txt", b"x"), "text": "a small fox <at> the top"}
    buffer = io.BytesIO()
    if modality == "image":
        pixels = np.full((72, 72, 3), rng.integers(60, 220, 3), np.uint8)
        pixels[24:48, 24:48] = rng.integers(0, 255, 3)
        Image.fromarray(pixels).save(buffer, "PNG")
        return {"modality": modality, "file": _write(folder / f"{stem}.png", buffer.getvalue())}
    time = np.arange(32_000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * rng.integers(200, 900) * time * (1 + 0.2 * np.floor(time * 4)))
    soundfile.write(buffer, tone, 16_000, format="WAV")
    return {"modality": modality, "file": _write(folder / f"{stem}.wav", buffer.getvalue())}


def _write(path: pathlib.Path, data: bytes) -> str:
    path.write_bytes(data)
    return path.name


def sample_run(workdir: pathlib.Path) -> dict[str, Any]:
    """A workdir as `anygpt evaluate` leaves it, with invented numbers."""
    rng = np.random.default_rng(0)
    matrix: dict[str, dict[str, Any]] = {}
    for source in report.MODALITIES:
        for target in report.MODALITIES:
            if source == target:
                continue
            matrix.setdefault(source, {})[target] = entry = _entry(source, target, rng)
            folder = workdir / "predictions" / f"{source}_to_{target}"
            folder.mkdir(parents=True)
            lines = []
            for i in range(5):
                row = {"key": f"k{i}", "attributes": {"object": "fox", "colour": "blue"}, "score": 0.75}
                row["source"] = _save(folder, f"k{i}.source", source, rng)
                row["direct"] = _save(folder, f"k{i}", target, rng)
                if entry["trained"]:
                    row["truth"] = _save(folder, f"k{i}.truth", target, rng)
                else:
                    row["thought"], row["via_text"] = "a fox", _save(folder, f"k{i}.via_text", target, rng)
                lines.append(json.dumps(row))
            (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    matrix["image"]["text"]["score"] = 0.5
    metrics = {
        "quickstart": {
            "matrix": matrix,
            "hard": {"image_to_text": {"test_openmoji": _entry("image", "text", rng)}},
            "tokenizers": {
                "image": {"n": 64, "codes": 37.0, "attributes": 0.99, "judge_attributes": 1.0, "psnr": 27.1},
                "speech": {"n": 64, "codes": 46.0, "wer": 0.2, "judge_wer": 0.01},
                "music": {"n": 64, "codes": 200.0, "instrument": 0.98, "pitch": 0.93, "notes": 900},
            },
            "dialogues": {
                "exact": 0.95,
                "interval": [0.91, 0.98],
                "n": 200,
                "several_turns": {"exact": 0.93, "interval": [0.88, 0.97], "n": 140},
                "one_turn": {"exact": None, "interval": None, "n": 0},
                "by_form": {"draw_spoken": {"exact": 0.987, "interval": [0.9, 1.0], "n": 20}},
            },
            "text": {"sentences": {"perplexity_per_word": 12.34, "perplexity_per_token": 4.5, "tokens": 1234, "n": 96}},
            "step": 4500,
        },
        "shipped": {"matrix": {}},
        "timings": [],
        "versions": {"python": "3.11.7", "jax": "0.10.2"},
    }
    logs = workdir / "logs"
    logs.mkdir()
    with (logs / "metrics.jsonl").open("w") as file:
        for step in range(50, 4501, 50):
            by_modality = {m: 1 + i + 3 * np.exp(-step / 900) for i, m in enumerate(report.MODALITIES)}
            row = {"step": step, "split": "train", "loss": 2.0, "loss_by_modality": by_modality, "mfu": 0.4}
            file.write(json.dumps({**row, "tokens_per_second": 9000.0}) + "\n")
            if step % 500 == 0:
                file.write(json.dumps({**row, "split": "validation"}) + "\n")
        file.write('{"step": 45')  # cut off
    (workdir / "report").mkdir()
    (workdir / "report" / "metrics.json").write_text(json.dumps(metrics))
    (workdir / "timings.json").write_text(json.dumps([{"stage": "train", "seconds": 480.0}]))
    return metrics


class _Page(html.parser.HTMLParser):
    """Collects what a browser would load, and checks that tags are closed in order."""

    VOID = ("meta", "img", "br", "line", "polyline", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    workdir = tmp_path_factory.mktemp("run")
    sample_run(workdir)
    report.run(ml_collections.ConfigDict({"workdir": str(workdir)}), None)
    assert json.loads((workdir / "report" / "metrics.json").read_text())["timings"][0]["stage"] == "train"
    return (workdir / "report" / "index.html").read_text()


def test_page_is_self_contained_and_well_formed(page):
    parsed = _Page()
    parsed.feed(page)
    assert not parsed.open
    assert parsed.loads
    assert all(value.startswith("data:") for value in parsed.loads)
    assert "@import" not in page
    assert "url(" not in page
    assert "<script" not in page
    assert len(page) < 6_000_000
    assert {"audio", "img", "svg", "table"} <= set(parsed.tags)


def test_page_says_shortfalls_and_numbers_plainly(page):
    short = page.partition("Where it falls short")[2].partition("</ul>")[0]
    assert "image to text: attributes right 0.50, mark at least 0.85" in short
    assert "speech tokenizer: word error rate 0.20, mark at most 0.12" in short
    assert "music tokenizer" not in short
    assert page.count("<span>never trained</span>") == 6
    assert page.count('<div class="cell self">') == 4
    assert "Twemoji" in page
    assert "CC BY 4.0" in page


def test_text_of_a_model_is_escaped(page):
    assert "<at>" not in page
    assert "&lt;at&gt;" in page


def test_report_without_measurements_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="anygpt evaluate"):
        report.run(ml_collections.ConfigDict({"workdir": str(tmp_path)}), None)


def test_cell_measures_the_way_from_chance_to_ceiling():
    wer = {"metric": "wer", "score": 0.55, "chance": 1.05, "ceiling": 0.05, "higher_is_better": False}
    cell = report.cell("speech", "text", wer)
    assert cell["reached"] == pytest.approx(0.5)
    assert cell["mark"] == 0.5
    assert cell["met"] is False
    assert report.cell("speech", "image", {**wer, "score": 9.0})["reached"] == 0.0


def test_log_stops_at_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "split": "train", "loss_by_modality": {"text": 2.0}}\n{"step"')
    assert report_charts.loss_curves(report_charts.read_log(path)) == {"train": {"text": [(1, 2.0)]}}
    assert report_charts.loss_svg({}) == ""


@pytest.mark.parametrize("rate", [6_000, 8_000, 16_000, 22_050, 24_000, 44_100, 48_000, 96_000])
def test_spectrogram_shows_a_tone_at_its_height(tmp_path, rate):
    import base64

    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate), rate)
    data = base64.b64decode(report_media.spectrogram_uri(path).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"), float)
    # A column every 16 ms; 64 rows for 0..4 kHz from the bottom: 1 kHz is row 16 from there, and no other is as bright.
    assert pixels.shape[0] == 64 and abs(pixels.shape[1] - 1000 / 16) <= 5
    assert abs((63 - pixels.mean(1).argmax()) - 16) <= 1
    assert pixels.mean(1)[: 63 - 20].max() < 0.5 * pixels.mean(1).max()
