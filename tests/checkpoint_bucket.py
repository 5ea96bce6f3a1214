"""A process whose gs://bucket/ is a local folder writes, reads and damages checkpoints there: FOLDER."""

import json
import pathlib
import shutil
import sys

import bucket

folder = pathlib.Path(sys.argv[1])
seen = bucket.install(folder / "root")

import checkpoint_world as world  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from anygpt_jax import cli  # noqa: E402
from anygpt_jax.training.checkpoints import Checkpoints, restore_model  # noqa: E402
from anygpt_jax.training.retention import CheckpointSettings, Retention  # noqa: E402


def newest(place, step, **how):
    """The newest whole step, whose state must be that of `step`."""
    checkpoints = Checkpoints(place, **how)
    found = checkpoints.newest_whole()
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), world.state(step))
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(found, wanted), world.state(step))
    about = checkpoints.description(found)
    checkpoints.close()
    return [found, about.progress["batch_offset"]]


answer = {}
there = folder / "root" / "bucket"

# A run whose checkpoints are in a bucket.
world.write("gs://bucket/run", [1, 2, 3], world.settings(last=1, best=1), {1: 0.5, 2: 0.9})
answer["written"] = world.held(there / "run")
answer["committed"] = (there / "run" / "3" / "commit_success.txt").is_file()
answer["newest"] = newest("gs://bucket/run", 3)
(there / "run" / "4").mkdir()  # begun, and never committed
(there / "run" / "4" / "checksums.json").write_text("{}")
answer["newest beside an unfinished one"] = newest("gs://bucket/run", 3, read_only=True)
world.write("gs://bucket/run", [5], world.settings(last=2))
answer["cleaned"] = world.held(there / "run")
answer["uploads"] = sum(line.startswith("POST") for line in seen)

# A run on a local disk, with a mirror in a bucket; then the disk is lost, and the mirror's newest is damaged.
mirrored = CheckpointSettings(Retention(1), "gs://bucket/mirror", Retention(2))
world.write(folder / "local", [1, 2, 3], mirrored)
answer["mirrored"] = world.held(there / "mirror")
shutil.rmtree(folder / "local")
answer["newest of the mirror"] = newest(folder / "local", 3, settings=mirrored)
path = next((there / "mirror" / "3").glob("params/ocdbt.process_0/d/*"))
path.write_bytes(path.read_bytes()[:-1] + b"?")
answer["newest whole of the mirror"] = newest(folder / "local", 2, settings=mirrored)
answer["set aside"] = world.held(there / "mirror")
answer["inspected"] = cli.main(["inspect", "gs://bucket/mirror", "--verify", "--json", str(folder / "inspect.json")])
answer["nowhere"] = ""
try:
    restore_model("gs://bucket/nowhere")
except Exception as e:
    answer["nowhere"] = str(e)
print(json.dumps(answer))
