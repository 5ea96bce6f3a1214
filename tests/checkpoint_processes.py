"""One of several processes that write and check one folder of checkpoints: INDEX COUNT PORT FOLDER WHAT."""

import json
import sys

import checkpoint_world as world
import jax
import numpy as np
import synthetic
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anygpt_jax.errors import UserError
from anygpt_jax.training import checksums
from anygpt_jax.training.checkpoints import Checkpoints

SUMMED: list[str] = []  # the files that this process read to sum them
SUM_OF = checksums.sum_of


def noted(path):
    SUMMED.append(path.as_posix())
    return SUM_OF(path)


def spread(step: int, size: int = 64) -> dict:
    """The state of a step, its first parameter's rows over all devices and the rest everywhere."""
    mesh = Mesh(np.array(jax.devices()), ("fsdp",))

    def one(path, x):
        over = PartitionSpec("fsdp") if "embedding" in str(path) else PartitionSpec()
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, NamedSharding(mesh, over), lambda i: x[i])

    return jax.tree_util.tree_map_with_path(one, world.state(step, size))


def abstract(step: int) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), spread(step))


def restored_as_saved(checkpoints: Checkpoints, step: int) -> bool:
    found = checkpoints.restore(step, abstract(step))
    same = jax.tree.map(
        lambda a, b: all(np.array_equal(s.data, t.data) for s, t in zip(a.addressable_shards, b.addressable_shards, strict=True)),
        found, spread(step),
    )  # fmt: skip
    return all(jax.tree.leaves(same))


def answers(folder: str, what: str) -> dict:
    settings = world.settings(last=2, mirror=f"{folder}-mirror" if what.startswith("mirror") else None)
    checkpoints = Checkpoints(folder, settings)
    answer: dict = {"newest": checkpoints.newest_whole()}
    if what in ("write", "mirror"):
        for step in (1, 2, 3):
            about = {"batch_offset": step}
            checkpoints.save(step, spread(step), world.CONFIG, synthetic.vocabulary(), about, {"loss": 1.0 / step})
        checkpoints.wait()
        answer["summed"] = sorted({part for name in SUMMED for part in name.split("/") if "ocdbt.process" in part})
        answer["newest"] = checkpoints.newest_whole()
    if answer["newest"] is not None:
        answer["same"] = restored_as_saved(checkpoints, answer["newest"])
        answer["progress"] = checkpoints.description(answer["newest"]).progress
    try:
        checkpoints.restore(99, {})
    except UserError as e:
        answer["refused"] = str(e)
    checkpoints.close()
    return answer


if __name__ == "__main__":
    index, count, port, folder, what = sys.argv[1:]
    checksums.sum_of = noted
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    print(json.dumps(answers(folder, what)), flush=True)
    jax.distributed.shutdown()
