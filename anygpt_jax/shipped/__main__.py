"""`python -m anygpt_jax.shipped RUN`: puts a run's model into the package."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax import nnx

from anygpt_jax import shipped
from anygpt_jax.cli import load_config
from anygpt_jax.errors import UserError
from anygpt_jax.training import checksums, folders
from anygpt_jax.training.checkpoints import Checkpoints, restore_model

DTYPES = ("bfloat16", "float32")


def make(
    run: pathlib.Path,
    to: pathlib.Path,
    *,
    dtype: str = "bfloat16",
    ema: bool = False,
    settings: ml_collections.ConfigDict | None = None,
) -> int:
    """Writes a run's newest whole checkpoint to `to`: its parameters, stored in `dtype`, config and vocabulary.

    `ema` takes the average of the weights, `settings` gives the config's data and its sections of generation and
    evaluation: what it is measured on, where a run went on from another with other examples. What is computed in
    stays as the run has it. Returns the step. UserError if there is no such checkpoint, or one in `to` already.
    """
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"{to} is not empty; remove the old checkpoint first.")
    model = restore_model(run / "checkpoints", ema=ema)
    with contextlib.closing(Checkpoints(run / "checkpoints", read_only=True)) as theirs:
        config = ml_collections.ConfigDict(theirs.description(model.step).config)
    config.workdir = shipped.WORKDIR
    config.model.param_dtype = dtype
    if settings is not None:
        for section in ("seed", "data", "tokenize", "generate", "evaluate"):
            config[section] = settings[section]
    params = nnx.to_pure_dict(nnx.state(model.decoder, nnx.Param))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    with contextlib.closing(Checkpoints(to)) as ours:
        ours.save(model.step, {"params": params}, config, model.vocabulary)
    forget_the_place(to / str(model.step))
    return model.step


def forget_the_place(checkpoint: pathlib.Path) -> None:
    """Orbax's marks of success name the folder in which they were written, which is nobody's business elsewhere."""
    for mark in checkpoint.rglob(folders.COMMITTED):
        mark.write_text("Checkpoint commit was successful.\n")
    checksums.write(epath.Path(checkpoint))


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, or 2 for what the user must change."""
    parser = argparse.ArgumentParser(prog="python -m anygpt_jax.shipped", description=__doc__)
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="a run's folder")
    parser.add_argument("--ema", action="store_true", help="the average of the weights, not the last ones")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="that the parameters are stored in")
    parser.add_argument("--config", metavar="FILE", help="whose data and settings of generation and evaluation it gets")
    parser.add_argument("--to", metavar="DIR", type=pathlib.Path, default=shipped.folder(), help="default: %(default)s")
    args = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing here is worth an accelerator, or the search for one
    try:
        settings = load_config(args.config) if args.config else None
        step = make(args.run, args.to, dtype=args.dtype, ema=args.ema, settings=settings)
    except UserError as e:
        print(f"anygpt: {e}", file=sys.stderr)
        return 2
    files = [path for path in args.to.rglob("*") if path.is_file()]
    print(f"step {step}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB in {args.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
