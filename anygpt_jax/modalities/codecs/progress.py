"""Training steps with a progress bar and, every so often, a line of metrics in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import jax
from tqdm import tqdm

log = logging.getLogger(__name__)
Report = Callable[[Mapping[str, jax.Array]], None]


def steps_with_progress(steps: int, name: str, log_every: int) -> Iterator[tuple[int, Report]]:
    """(step, function that takes the step's metrics); metrics are read only when they are logged."""
    with tqdm(total=steps, desc=name, mininterval=1.0) as bar:
        for i in range(steps):

            def report(metrics: Mapping[str, jax.Array], i: int = i) -> None:
                if (i + 1) % log_every == 0 or i + 1 == steps:
                    text = " ".join(f"{k}={float(v):.4g}" for k, v in metrics.items())
                    log.info("%s step %d: %s", name, i + 1, text)

            yield i, report
            bar.update()
