"""`anygpt plan`: the train step of a config, compiled for TPUs that need not be there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from tqdm import tqdm

from anygpt_jax.cache import load_vocabulary, write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.remat import POLICIES
from anygpt_jax.model.sharding import mesh_shape
from anygpt_jax.planning import interruptions, page, storage, sweep, variants
from anygpt_jax.planning.accelerators import Accelerator
from anygpt_jax.planning.chips import CHIPS, Topology
from anygpt_jax.planning.compile import compile_step, compiler_version, default_cache, mesh_axes
from anygpt_jax.planning.estimate import ASSUMPTIONS, CONVENTION, OMITTED, PUBLISHED, Estimate, estimate
from anygpt_jax.planning.feed import reader_tokens, token_bytes
from anygpt_jax.planning.preflight import Assumptions, Bill, bills, preflight
from anygpt_jax.planning.preflight_page import change_lines, neighbours_table, preflight_lines
from anygpt_jax.training.checks import config_problems, problem_of, refuse
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Either --accelerator or --topology is required; defaults are those of the modules that take them."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--accelerator", action="append", metavar="CHIP-N",
        help="a slice by the name clouds have for it, as v5p-128; may be repeated with --sweep",
    )  # fmt: skip
    what.add_argument(
        "--topology", metavar="CHIP:AxBxC", help=f"or by its shape, as v5p:4x4x4; chips: {', '.join(CHIPS)}"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="so many slices, data parallel over DCN")
    parser.add_argument("--json", metavar="PATH", help="write all of it there as JSON")
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help="ids of the vocabulary; default: that of the workdir's token cache"
    )
    parser.add_argument("--cache", metavar="DIR", help=f"where compiled programs are kept; default: {default_cache()}")
    parser.add_argument(
        "--neighbours", action="store_true",
        help="the same run on the next slices of this kind and the nearest of the others; minutes each, once",
    )  # fmt: skip
    assumed = parser.add_argument_group("what is assumed")
    assumed.add_argument("--price", type=float, metavar="USD", help="per chip-hour; default: public list prices")
    assumed.add_argument(
        "--preempted-every", type=float, metavar="HOURS",
        help=f"mean time between preemptions of one slice; default: {interruptions.PREEMPTED_EVERY:g} of spot slices, "
        "failures alone of others",
    )  # fmt: skip
    assumed.add_argument(
        "--restart-minutes", type=float, default=interruptions.RESTART_MINUTES, metavar="N",
        help="from losing a slice to restoring on the next; default: %(default)g",
    )  # fmt: skip
    assumed.add_argument(
        "--storage-gbps", type=float, default=storage.STORAGE / 1e9, metavar="GB/S",
        help="gigabytes a second that a host writes to or reads from checkpoints' storage; default: %(default)g",
    )  # fmt: skip
    search = parser.add_argument_group("sweep")
    search.add_argument("--sweep", action="store_true", help="try mesh × remat × batch and rank by tokens a dollar")
    search.add_argument(
        "--sweep-mesh", action="append", metavar="AXES", help="a mesh to try, as fsdp=16,tensor=4; may be repeated"
    )
    search.add_argument(
        "--sweep-remat", nargs="+", choices=tuple(POLICIES), default=list(sweep.REMAT), metavar="POLICY",
        help=f"policies to try of {', '.join(POLICIES)}; default: {' '.join(sweep.REMAT)}",
    )  # fmt: skip
    search.add_argument(
        "--sweep-rows", nargs="+", type=int, default=list(sweep.ROWS), metavar="N",
        help=f"batch rows a device to try; default: {' '.join(map(str, sweep.ROWS))}",
    )  # fmt: skip


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """Prints the page, or the sweep's table, and writes --json. UserError if the config or the flags make no plan."""
    if config.get("kind") != "decoder":
        raise UserError(f"`anygpt plan` plans a decoder's training, and config.kind is '{config.get('kind')}'.")
    accelerators, assumed = _accelerators(args), _assumptions(args)
    compiler_version()
    jax.config.update("jax_platforms", "cpu")  # nothing runs here: a TPU of this machine stays free
    vocabulary = _vocabulary(config, args.vocab_size)
    cache = pathlib.Path(args.cache) if args.cache else default_cache()
    if args.sweep:
        found, refused = [], []
        for accelerator in accelerators:
            planned, why_not = _sweep(config, args, vocabulary, accelerator.topology, cache)
            found += planned
            refused += [page.refusal_line(accelerator.name, candidate, why) for candidate, why in why_not.items()]
        if not found:
            raise UserError("\n".join(["No run takes any of these:", *refused]))
        found.sort(key=lambda e: sweep.rank(e, args.price))
        print("\n".join([page.table(found, args.price), *refused]))
        written: Any = [as_json(e) for e in found]
    else:
        written = _one(config, args, vocabulary, accelerators[0], cache, assumed)
    if args.json:
        write_atomically(pathlib.Path(args.json), json.dumps(_finite(written), indent=1).encode())


def _accelerators(args: argparse.Namespace) -> list[Accelerator]:
    if args.topology:
        found = [Accelerator.of(Topology.parse(args.topology, args.slices))]
    else:
        found = [Accelerator.parse(name, args.slices) for name in args.accelerator]
    if args.sweep and args.neighbours:
        raise UserError("--neighbours is of one config; with --sweep repeat --accelerator instead.")
    if len(found) > 1 and not args.sweep:
        raise UserError("Several --accelerator are for --sweep; name one, and --neighbours for others beside it.")
    return found


def _assumptions(args: argparse.Namespace) -> Assumptions:
    for flag in ("price", "preempted_every", "storage_gbps"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{flag.replace('_', '-')} {value:g} must be above 0.")
    if not 0 <= args.restart_minutes < math.inf:
        raise UserError(f"--restart-minutes {args.restart_minutes:g} must be at least 0.")
    return Assumptions(args.price, args.preempted_every, args.restart_minutes, args.storage_gbps * 1e9)


def _one(
    config: ml_collections.ConfigDict, args: argparse.Namespace, vocabulary: Vocabulary, accelerator: Accelerator,
    cache: pathlib.Path, assumed: Assumptions,
) -> dict[str, Any]:  # fmt: skip
    """Prints the page, and the neighbours if they are asked for; the same for JSON."""
    # First, since it takes seconds: a cache that training would refuse is refused before minutes of compiling.
    data = token_bytes(config, vocabulary), reader_tokens(config, vocabulary)
    e = plan(config, vocabulary, accelerator.topology, cache)
    save_every = config.train.save_every
    written = as_json(e) | {"accelerator": accelerator.name, "preflight": None}
    below: list[str] = []
    if e.fits:
        flight = preflight(e, accelerator, save_every, assumed, *data)
        if flight:
            below, written["preflight"] = preflight_lines(flight), dataclasses.asdict(flight)
    else:
        change, tried, bigger = _what_fits(config, vocabulary, accelerator, e, cache)
        below = change_lines(change, tried, bigger)
        written["fitting"] = {
            "settings": change.settings if change else None, "accelerator": bigger.name if bigger else None, "tried": tried,
        }  # fmt: skip
    print(page.page(e, accelerator.name, below))
    if args.neighbours:
        rows: list[tuple[Accelerator, Estimate | str, Sequence[Bill]]] = []
        for other in (accelerator, *accelerator.neighbours()):
            found: Estimate | str
            try:
                here = accelerator.topology
                there = config if other is accelerator else variants.on(config, e.mesh, here, other.topology)
                found = e if other is accelerator else plan(there, vocabulary, other.topology, cache)
                rows.append((other, found, bills(found, other, save_every, assumed) if found.fits else ()))
            except UserError as error:
                rows.append((other, str(error).splitlines()[0], ()))
        print("\nThe same elsewhere:\n" + neighbours_table(rows))
        written["neighbours"] = [
            {"accelerator": other.name, "slices": other.slices, "estimate": found if isinstance(found, str) else as_json(found)}
            for other, found, _ in rows
        ]  # fmt: skip
    return written


def _what_fits(
    config: ml_collections.ConfigDict,
    vocabulary: Vocabulary,
    accelerator: Accelerator,
    e: Estimate,
    cache: pathlib.Path,
) -> tuple[variants.Change | None, tuple[str, ...], Accelerator | None]:
    """Settings that make it fit, those that were not enough, and otherwise a larger slice that does."""
    log.info("It does not fit; trying what would, minutes each.")
    change, tried = variants.first_that_fits(
        variants.lighter(config, e.mesh), lambda c: plan(c, vocabulary, accelerator.topology, cache)
    )
    if change is not None:
        return change, tried, None
    for other in variants.larger(accelerator):
        try:
            there = variants.on(config, e.mesh, accelerator.topology, other.topology)
            if plan(there, vocabulary, other.topology, cache).fits:
                return None, tried, other
        except UserError:  # rows or matrices do not divide over it
            continue
    return None, tried, None


def plan(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, topology: Topology, cache: pathlib.Path | None
) -> Estimate:
    """Compiles the config's train step (or finds it compiled) and reads it."""
    of_mesh = problem_of(mesh_axes, config.mesh, topology)
    if of_mesh:
        of_mesh = [of_mesh[0] + _suggestion(config, topology)]
    axes = mesh_shape(config.mesh) if of_mesh else mesh_axes(config.mesh, topology)
    on_slice = ml_collections.ConfigDict(config.to_dict() | {"mesh": axes})
    refuse(
        of_mesh
        + config_problems(on_slice, vocabulary, max(topology.devices, math.prod(axes.values())))
        + quantization_problems(config.model.get("quantization", "none"), topology)
    )
    model, train = ModelConfig.from_config(config.model, vocabulary), config.train
    modalities = 1 + len(vocabulary.modalities or config.get("modalities", ()))
    log.info(
        "Compiling (or finding) the step for %s × %d, mesh %s: minutes for a large model.",
        topology.name,
        topology.slices,
        axes,
    )
    compiled = compile_step(model, train, axes, modalities, topology, cache)
    return estimate(
        compiled, model, topology, axes, train.batch_size, train.seq_len, train.steps, compiler_version(),
        train.microbatches,
    )  # fmt: skip


def _suggestion(config: ml_collections.ConfigDict, topology: Topology) -> str:
    """A mesh that would do, as flags; empty if the batch divides over none."""
    given = mesh_shape(config.mesh)
    try:
        axes = variants.mesh_for(topology, config.train.batch_size, given["tensor"], given["context"])
    except UserError as e:
        return f" {e}"
    return (
        " For example: " + " ".join(f"--config.mesh.{axis}={n}" for axis, n in axes.items() if n != given[axis]) + "."
    )


def quantization_problems(quantization: str, topology: Topology) -> list[str]:
    """A chip without the matrix unit would do the products no faster, and less exactly."""
    chip = topology.chip
    if {"int8": chip.int8, "fp8": chip.fp8}.get(quantization, chip.bf16) is not None:
        return []
    return [f"{chip.name} has no {quantization} matrix unit; set model.quantization to none or another chip's."]


def as_json(e: Estimate) -> dict[str, Any]:
    """The estimate with what it rests on. Bytes, seconds, FLOPs; shares of 1."""
    return dataclasses.asdict(e) | {
        "fits": e.fits,
        "memory": dataclasses.asdict(e.memory) | {"total": e.memory.total},
        "flops_convention": CONVENTION,
        "assumptions": ASSUMPTIONS,
        "omitted": OMITTED,
        "published": [dataclasses.asdict(run) for run in PUBLISHED],
    }


def _vocabulary(config: ml_collections.ConfigDict, size: int | None) -> Vocabulary:
    if size is not None:
        if size < 1:
            raise UserError(f"--vocab-size {size} must be at least 1.")
        return Vocabulary(size, "", 0, 1, 2, (), ())
    cache = pathlib.Path(config.workdir) / "cache"
    if not (cache / "vocabulary.json").is_file():
        raise UserError(f"No vocabulary in {cache}; run `anygpt tokenize` first, or give its size with --vocab-size.")
    return load_vocabulary(cache)


def _sweep(
    config: ml_collections.ConfigDict,
    args: argparse.Namespace,
    vocabulary: Vocabulary,
    topology: Topology,
    cache: pathlib.Path,
) -> tuple[list[Estimate], dict[sweep.Candidate, str]]:
    meshes = [sweep.parse_mesh(text) for text in args.sweep_mesh or ()] or sweep.default_meshes(topology)
    if min(args.sweep_rows) < 1:
        raise UserError("--sweep-rows must be at least 1.")
    groups = list(sweep.candidates(meshes, args.sweep_remat, args.sweep_rows))
    with tqdm(total=sum(map(len, groups)), unit="program", desc="plan") as bar:

        def one(candidate: sweep.Candidate) -> Estimate:
            changed = ml_collections.ConfigDict(config.to_dict())
            changed.mesh = ml_collections.ConfigDict(dict(candidate.mesh))
            changed.model.remat = candidate.remat
            changed.train.batch_size = candidate.batch_size
            bar.update()
            return plan(changed, vocabulary, topology, cache)

        return sweep.sweep(iter(groups), one, args.price)


def _finite(value: Any) -> Any:
    """For JSON, which has no infinity: null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
