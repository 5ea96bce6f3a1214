"""`anygpt launch`: one config to this machine, to TPU pods, or to the clusters that tokenize data.

Everything that can be wrong with a job is said here, before a machine is rented; then its target takes over.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import pathlib
import re
from collections.abc import Sequence

import ml_collections

from anygpt_jax.cache import load_vocabulary
from anygpt_jax.errors import UserError
from anygpt_jax.launching.job import VERBS, Job, plain
from anygpt_jax.planning.accelerators import Accelerator
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# target -> module with `add_arguments(parser)` and `run(job, args)`
TARGETS = {
    "local": "anygpt_jax.launching.local",
    "gke": "anygpt_jax.launching.gke",
    "tpu-vm": "anygpt_jax.launching.tpu_vm",
    "slurm": "anygpt_jax.launching.slurm",
    "dataflow": "anygpt_jax.launching.beam",
    "flink": "anygpt_jax.launching.beam",
    "spark": "anygpt_jax.launching.beam",
}
ON_TPUS = ("gke", "tpu-vm")


def add_arguments_for(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """The flags of all targets, and those of the target that `argv` names."""
    parser.usage = "anygpt launch --config=FILE --target=TARGET … [-- ARGUMENTS of the verb that hosts run]"
    parser.add_argument("--target", required=True, choices=tuple(TARGETS), help="where; --help with it tells its flags")
    parser.add_argument("--job", default="train", choices=VERBS, help="the verb that hosts run (train)")
    parser.add_argument("--accelerator", metavar="CHIP-N", help="of a slice, as v5p-128 or v5e-256")
    parser.add_argument(
        "--slices", type=int, default=1, metavar="N", help="so many slices, over the data center network"
    )
    parser.add_argument("--name", help="the job's; default: of the workdir's last folder")
    parser.add_argument(
        "--max-restarts", type=int, default=100, metavar="N", help="of the whole job, when a host is lost (100)"
    )
    parser.add_argument(
        "--vocab-size", type=int, metavar="N",
        help="check the model's sizes with so many ids, where no token cache is at hand",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print what would be executed; needs no credentials")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENTS", help="after --, of the verb that hosts run")
    if target := _target(argv):
        importlib.import_module(TARGETS[target]).add_arguments(parser)


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Checks the job and hands it to its target's `run`. UserError of what is wrong with config and flags.

    SystemExit 2 for arguments that the verb itself does not take.
    """
    if args.max_restarts < 0:
        raise UserError(f"--max-restarts {args.max_restarts} must be at least 0.")
    refuse_secrets(config)
    name = args.name or default_name(config.workdir, args.job)
    accelerator = _accelerator(args)
    require_arguments(args.job, args.arguments)
    if accelerator is not None:
        config = for_slices(config, args.job, args.arguments, accelerator, args.vocab_size)
    job = Job(name, args.job, config, tuple(args.arguments), accelerator, args.max_restarts)
    importlib.import_module(TARGETS[args.target]).run(job, args)


def refuse_secrets(config: ml_collections.ConfigDict) -> None:
    """UserError for a value named like a password: the config goes into manifests and onto hosts as it is."""
    from anygpt_jax.training.run_folder import masked

    values = plain(config)
    if masked(values) != values:
        raise UserError("The config holds a value that is named like a password; name an environment variable instead.")


def default_name(workdir: str, verb: str) -> str:
    """runs/anygpt_7b → anygpt-7b, and anygpt-7b-evaluate for another verb than train."""
    name = pathlib.Path(workdir).name + ("" if verb == "train" else f"-{verb}")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def require_arguments(verb: str, arguments: Sequence[str]) -> None:
    """The verb's own parser must take the arguments; it says what is wrong and ends the process with 2, as ever."""
    if not arguments:
        return
    from anygpt_jax.cli import build_parser

    build_parser([verb]).parse_args([verb, "--config=", *arguments])


def require_processes(config: ml_collections.ConfigDict, verb: str, arguments: Sequence[str], processes: int) -> None:
    """UserError for what cannot run as so many processes."""
    if processes == 1:
        return
    if verb == "tokenize":
        raise UserError(
            f"--job=tokenize would run {processes} times over: take --target=dataflow, flink or spark, or one host."
        )
    if verb == "evaluate" and not any(a.partition("=")[0] == "--tasks" for a in arguments):
        raise UserError("Several processes share the work of `evaluate` with --tasks only; add it after --.")
    if config.get("kind") == "tokenizer":
        raise UserError("A modality tokenizer is trained by one process; take an accelerator of one host.")


def for_slices(
    config: ml_collections.ConfigDict,
    verb: str,
    arguments: Sequence[str],
    accelerator: Accelerator,
    vocab_size: int | None,
) -> ml_collections.ConfigDict:
    """The config as it runs on these slices. UserError of all that is wrong with it, a line each.

    A mesh of one device becomes FSDP within every slice and data parallel over slices, as `anygpt plan` takes it.
    """
    processes = accelerator.hosts * accelerator.slices
    require_processes(config, verb, arguments, processes)
    found = ml_collections.ConfigDict(config.to_dict())
    found.multihost = processes > 1
    if verb != "train" or found.get("kind") != "decoder":
        return found
    from anygpt_jax.planning.compile import mesh_axes  # here, because jax takes a second to import
    from anygpt_jax.planning.main import quantization_problems
    from anygpt_jax.training import checks

    topology = accelerator.topology
    found.mesh = ml_collections.ConfigDict(mesh_axes(found.mesh, topology))
    problems = quantization_problems(found.model.get("quantization", "none"), topology)
    checks.refuse(problems + problems_of(found, topology.devices, vocab_size))
    return found


def for_devices(
    config: ml_collections.ConfigDict, verb: str, devices: int, vocab_size: int | None
) -> ml_collections.ConfigDict:
    """The config as it runs on so many devices: a mesh of one becomes FSDP. UserError of all that is wrong with it."""
    found = ml_collections.ConfigDict(config.to_dict())
    if verb != "train" or found.get("kind") != "decoder":
        return found
    from anygpt_jax.model.sharding import mesh_shape
    from anygpt_jax.training import checks

    mesh, problems = mesh_shape(found.mesh), []
    size = math.prod(mesh.values())
    if size == 1:
        found.mesh = ml_collections.ConfigDict(mesh | {"fsdp": devices})
    elif size != devices:
        problems = [
            f"config.mesh is {size} devices, and there are {devices}; set --config.mesh.AXIS so that they agree."
        ]
    checks.refuse(problems or problems_of(found, devices, vocab_size))
    return found


def problems_of(config: ml_collections.ConfigDict, devices: int, vocab_size: int | None) -> list[str]:
    """What `anygpt train` would refuse, as far as the vocabulary is known here."""
    from anygpt_jax.model.sharding import mesh_problems, mesh_shape
    from anygpt_jax.training import checks

    vocabulary = known_vocabulary(config, vocab_size)
    if vocabulary is not None:
        return checks.config_problems(config, vocabulary, devices)
    log.warning("There is no token cache in %s: the model's sizes are not checked; see --vocab-size.", config.workdir)
    return mesh_problems(config.mesh, devices) or checks.batch_problems(config.train, mesh_shape(config.mesh))


def known_vocabulary(config: ml_collections.ConfigDict, size: int | None) -> Vocabulary | None:
    """Of so many ids, or that of the workdir's token cache, if the workdir is on this machine."""
    if size is not None:
        if size < 1:
            raise UserError(f"--vocab-size {size} must be at least 1.")
        return Vocabulary(size, "", 0, 1, 2, (), ())
    cache = pathlib.Path(config.workdir) / "cache"
    return load_vocabulary(cache) if (cache / "vocabulary.json").is_file() else None


def _accelerator(args: argparse.Namespace) -> Accelerator | None:
    if args.target not in ON_TPUS:
        if args.accelerator or args.slices != 1:
            raise UserError(f"--target={args.target} has no TPUs; drop --accelerator and --slices.")
        return None
    if not args.accelerator:
        raise UserError(f"--target={args.target} needs --accelerator, as v5p-128.")
    return Accelerator.parse(args.accelerator, args.slices)


def _target(argv: Sequence[str]) -> str | None:
    """The target, before its flags are known."""
    own = list(argv)[: list(argv).index("--")] if "--" in argv else list(argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--target", nargs="?")
    target = first.parse_known_args(own)[0].target
    return target if target in TARGETS else None
