"""Data, tasks and a metric of depth maps: a ball on the floor of a room, of which every pixel is known.

The data are drawn by a formula, so that nothing needs to be downloaded. For data of your own, put a
`seqio.TfdsDataSource` in the place of `SOURCE`; the rest stays.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from anygpt_depth import SIZE, DepthTokenizer
from anygpt_jax.tasks import preprocessors, registry
from anygpt_jax.tasks.metrics.scores import attribute_scores

FOCAL = 48.0  # px: a field of view of 53 degrees
HEIGHT, RADIUS, WALL = 1.2, 0.6, 9.0  # m: of the camera over the floor, of the ball, to the wall
DISTANCES = {"near": 2.2, "middle": 3.6, "far": 6.0}  # m
SIDES = {"left": -0.3, "center": 0.0, "right": 0.3}  # of the distance
COUNTS = {"train": 512, "validation": 32, "test": 64}


def room() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel its ray (x, y per metre of depth, y downwards), and the depth of the empty room."""
    y, x = (np.mgrid[:SIZE, :SIZE] + 0.5 - SIZE / 2) / FOCAL
    return x, y, np.minimum(WALL, HEIGHT / np.maximum(y, 1e-6))


def render(distance: float, side: float) -> np.ndarray:
    """float32[48, 48] in metres: where a pixel's ray z·(x, y, 1) meets the ball, the floor or the wall first."""
    x, y, empty = room()
    centre = np.array([side * distance, HEIGHT - RADIUS, distance])
    along = x * centre[0] + y * centre[1] + centre[2]
    square = x**2 + y**2 + 1
    root = along**2 - square * (centre @ centre - RADIUS**2)
    ball = np.where(root > 0, (along - np.sqrt(np.maximum(root, 0))) / square, np.inf)
    return np.minimum(empty, ball).astype(np.float32)


def examples(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
    """Every example is a function of the split's name and its number."""
    rows: dict[str, list[bytes]] = {"key": [], "depth": [], "caption": [], "attributes": []}
    names = [(distance, side) for distance in DISTANCES for side in SIDES]
    for i in range(COUNTS[split]):
        distance, side = names[i % len(names)]
        rng = np.random.default_rng([sorted(COUNTS).index(split), i])
        depth = render(DISTANCES[distance] * rng.uniform(0.9, 1.1), SIDES[side] + rng.uniform(-0.05, 0.05))
        rows["key"].append(f"depth/{split}/{i:05d}".encode())
        rows["depth"].append(DepthTokenizer().save(depth))
        rows["caption"].append(f"a ball {distance} on the {side}".encode())
        rows["attributes"].append(json.dumps({"distance": distance, "side": side}).encode())
    return tf.data.Dataset.from_tensor_slices(rows)


SOURCE = seqio.FunctionDataSource(examples, splits=tuple(COUNTS), num_input_examples=COUNTS)


# --- The metric: it knows the room, and neither the tokenizer nor the model -------------------------------------------


def read_map(depth: np.ndarray | None) -> Mapping[str, str]:
    """What stands in front of the empty room: its distance and its side. {} if nothing does."""
    if depth is None:
        return {}
    x, _, empty = room()
    ball = depth < 0.8 * empty
    if not ball.any():
        return {}
    distance, side = float(np.median(depth[ball])) + RADIUS / 2, float(np.mean(x[ball]))
    return {
        "distance": min(DISTANCES, key=lambda name: abs(np.log(DISTANCES[name] / distance))),
        "side": min(SIDES, key=lambda name: abs(SIDES[name] - side)),
    }


def read_words(text: str | None) -> Mapping[str, str]:
    """The distance and the side that a caption names."""
    words = (text or "").split()
    found = {"distance": [w for w in words if w in DISTANCES], "side": [w for w in words if w in SIDES]}
    return {name: named[0] for name, named in found.items() if len(named) == 1}


def depth_attributes(targets: Sequence[Mapping[str, Any]], predictions: Sequence[Any]) -> dict[str, float]:
    """Share of distance and side that a map, or a caption, has right; "attributes" is the score."""
    readings = [read_words(p) if isinstance(p, str) else read_map(p) for p in predictions]
    return attribute_scores(targets, readings, ("distance", "side"))


# --- The tasks ----------------------------------------------------------------------------------------------------------

FIELDS = {"text": "caption", "depth": "depth"}

for (source, target), asked_by in DepthTokenizer.instructions.items():
    pair = functools.partial(
        preprocessors.pair,
        source=source,
        target=target,
        source_field=FIELDS[source],
        target_field=FIELDS[target],
        asked_by=asked_by,
    )
    seqio.TaskRegistry.add(
        f"{source}_to_{target}",
        source=SOURCE,
        preprocessors=[pair],
        output_features=preprocessors.OUTPUT_FEATURES,
        postprocess_fn=registry.postprocess,
        metric_fns=[depth_attributes],
    )
