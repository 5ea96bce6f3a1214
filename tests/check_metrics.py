"""CI's look at a finished run: `python tests/check_metrics.py DIR/report`. Exits non-zero if something is missing."""

import json
import math
import pathlib
import re
import sys

MODALITIES = ("text", "image", "speech", "music")
TRAINED = {(a, "text") for a in MODALITIES[1:]} | {("text", b) for b in MODALITIES[1:]}
FIELDS = {"metric", "score", "chance", "ceiling", "n", "trained", "higher_is_better"}


def main(report: pathlib.Path) -> None:
    metrics = json.loads((report / "metrics.json").read_text())
    assert {"quickstart", "shipped", "timings", "versions"} <= metrics.keys(), sorted(metrics)
    matrix = metrics["quickstart"]["matrix"]
    assert metrics["shipped"]["matrix"].keys() == matrix.keys()  # what the model in the package reaches, beside it
    for source in MODALITIES:
        for target in MODALITIES:
            if source == target:
                continue
            cell = matrix[source][target]
            where = f"{source} to {target}: {cell}"
            assert cell.keys() >= FIELDS, where
            assert cell["n"] > 0, where
            assert cell["trained"] is ((source, target) in TRAINED), where
            for field in ("score", "chance", "ceiling"):
                assert math.isfinite(cell[field]), where
                assert cell[field] >= 0, where
            # Even the small run keeps its tokenizers: a reconstruction is judged better than a random answer.
            better = cell["ceiling"] > cell["chance"]
            assert better is cell["higher_is_better"], where
    stages = {t["stage"] for t in metrics["timings"]}
    assert {"build-data", "tokenize", "train", "evaluate"} <= stages, stages
    page = (report / "index.html").read_text()
    assert len(page) > 10_000
    outside = re.findall(r"""(?:src|href)=["'](?:https?:)?//[^"']+""", page)
    loaded = [link for link in outside if not link.startswith("href")]
    assert not loaded, f"the page loads from the network: {loaded[:3]}"
    print(f"{report}: every pair is measured, {len(page) / 1e6:.1f} MB page.")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
