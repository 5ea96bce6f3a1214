"""`anygpt evaluate --tasks=… --follow`: every new checkpoint of a run that is training, into OUT/STEP."""

from __future__ import annotations

import argparse
import copy
import logging
import pathlib
import time

import ml_collections
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from anygpt_jax import multihost
from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import suite
from anygpt_jax.generation.pipeline import checkpoints_of
from anygpt_jax.training import folders

PAUSE = 20.0  # seconds between looks
log = logging.getLogger("anygpt.evaluate")


def run(config: ml_collections.ConfigDict, args: argparse.Namespace, pause: float = PAUSE) -> None:
    """Evaluates the newest checkpoint whenever there is a newer one, until that of the config's last step is done.

    A checkpoint that is replaced by a newer one while another is evaluated is left out. The leaderboard is OUT's.
    """
    multihost.join(config)
    out, done = pathlib.Path(args.out or pathlib.Path(config.workdir) / "benchmarks"), -1
    last = int(config.train.steps)
    while done < last:
        newest = max(folders.final_steps(epath.Path(checkpoints_of(config))), default=-1)
        newest = int(multihost_utils.broadcast_one_to_all(np.int32(newest)))  # one step for all processes
        if newest <= done:
            time.sleep(pause)
            continue
        log.info("step %d of %d", newest, last)
        one = copy.copy(args)
        one.out, one.leaderboard = str(out / str(newest)), str(out / suite.LEADERBOARD)
        try:
            suite.run(config, one)
        except UserError:
            if newest in folders.final_steps(epath.Path(checkpoints_of(config))):
                raise
            log.warning("step %d was removed by the run while it was read; raise train.keep_checkpoints", newest)
        done = newest
