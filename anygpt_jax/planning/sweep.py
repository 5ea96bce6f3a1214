"""Which mesh, remat policy and batch: every combination is compiled, those that fit are ranked."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from anygpt_jax.errors import UserError
from anygpt_jax.model.sharding import BATCH_AXES, MESH_AXES
from anygpt_jax.planning import prices
from anygpt_jax.planning.chips import Topology
from anygpt_jax.planning.estimate import Estimate

TENSOR = (1, 2, 4)  # tensor-parallel widths tried unless meshes are named
REMAT = ("minimal", "qkv_attention", "full")  # from the most memory to the least
ROWS = (1, 2, 4, 8)  # of the batch on each device that has rows of its own


@dataclasses.dataclass(frozen=True)
class Candidate:
    """What is compiled once: a mesh as (axis, size) pairs, a remat policy, and rows as in `ROWS`."""

    mesh: tuple[tuple[str, int], ...]
    remat: str
    rows: int

    @property
    def batch_size(self) -> int:
        """Global: `rows` for every part that the mesh cuts the batch into."""
        cut = dict(self.mesh)
        return self.rows * math.prod(cut.get(axis, 1) for axis in BATCH_AXES)


def parse_mesh(text: str) -> dict[str, int]:
    """Reads `fsdp=16,tensor=4`. UserError if it is not that."""
    found = {}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in MESH_AXES or not size.isdigit() or int(size) < 1:
            raise UserError(f"--sweep-mesh {text}: write AXIS=N,AXIS=N with axes of {', '.join(MESH_AXES)}.")
        found[axis] = int(size)
    return found


def default_meshes(topology: Topology) -> list[dict[str, int]]:
    """FSDP over a slice, with some tensor parallelism, or within each row of a torus of two dimensions; replicas
    over the rest and over slices."""
    size = topology.slice_devices
    meshes = [
        {"slice": topology.slices, "fsdp": size // width, "tensor": width} for width in TENSOR if size % width == 0
    ]
    if len(topology.shape) == 2 and min(topology.shape) > 1:
        meshes.append({"slice": topology.slices, "data": size // topology.shape[-1], "fsdp": topology.shape[-1]})
    return meshes


def candidates(
    meshes: Sequence[Mapping[str, int]], remats: Sequence[str], rows: Sequence[int]
) -> Iterator[list[Candidate]]:
    """Lists of one mesh and policy with growing batch: after the first that does not fit none of its list does."""
    for mesh, remat in itertools.product(meshes, remats):
        yield [Candidate(tuple(mesh.items()), remat, n) for n in sorted(rows)]


def sweep(
    groups: Iterator[list[Candidate]], plan: Callable[[Candidate], Estimate], paid: float | None = None
) -> tuple[list[Estimate], dict[Candidate, str]]:
    """Plans the candidates, larger batches only as long as they fit: sorted by `rank`, and why others were refused.

    `plan` raises UserError for a candidate that no run takes, as one whose heads do not divide over the mesh.
    """
    found: list[Estimate] = []
    refused: dict[Candidate, str] = {}
    for group in groups:
        for candidate in group:
            try:
                found.append(plan(candidate))
            except UserError as e:
                refused[candidate] = str(e)
                continue
            if not found[-1].fits:
                break
    return sorted(found, key=lambda e: rank(e, paid)), refused


def worth(estimate: Estimate, paid: float | None = None) -> float:
    """Tokens a dollar, at what is paid a chip-hour or the list price on demand; 0 where there is none."""
    rate = next(iter(prices.rates(estimate.topology.partition(":")[0], paid).values()))
    return prices.tokens_per_dollar(estimate.speed.tokens_per_second_per_chip, rate) if rate and estimate.speed else 0.0


def rank(estimate: Estimate, paid: float | None = None) -> tuple[bool, float, float]:
    """Most tokens a dollar first, then most tokens a second and chip; what does not fit last."""
    fast = estimate.speed.tokens_per_second_per_chip if estimate.speed else 0.0
    return not estimate.fits, -worth(estimate, paid), -fast
