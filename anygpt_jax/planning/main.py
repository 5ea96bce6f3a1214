"""`anygpt plan`: the train step of a config, compiled for TPUs that need not be there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import pathlib
from typing import Any

import jax
import ml_collections
from tqdm import tqdm

from anygpt_jax.cache import load_vocabulary, write_atomically
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.remat import POLICIES
from anygpt_jax.model.sharding import mesh_shape
from anygpt_jax.planning import page, sweep
from anygpt_jax.planning.chips import CHIPS, Topology
from anygpt_jax.planning.compile import compile_step, compiler_version, default_cache, mesh_axes
from anygpt_jax.planning.estimate import ASSUMPTIONS, CONVENTION, OMITTED, PUBLISHED, Estimate, estimate
from anygpt_jax.training.checks import config_problems, problem_of, refuse
from anygpt_jax.vocabulary import Vocabulary

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--topology", required=True, metavar="CHIP:AxBxC", help=f"a slice, as v5p:4x4x4; chips: {', '.join(CHIPS)}"
    )
    parser.add_argument("--slices", type=int, default=1, metavar="N", help="so many slices, data parallel over DCN")
    parser.add_argument("--json", metavar="PATH", help="write the estimate (with --sweep: all of them) there")
    parser.add_argument(
        "--vocab-size", type=int, metavar="N", help="ids of the vocabulary; default: that of the workdir's token cache"
    )
    parser.add_argument("--cache", metavar="DIR", help=f"where compiled programs are kept; default: {default_cache()}")
    parser.add_argument("--sweep", action="store_true", help="try mesh × remat × batch and rank what fits")
    parser.add_argument(
        "--sweep-mesh", action="append", metavar="AXES", help="a mesh to try, as fsdp=16,tensor=4; may be repeated"
    )
    parser.add_argument(
        "--sweep-remat", nargs="+", choices=tuple(POLICIES), default=list(sweep.REMAT), metavar="POLICY",
        help=f"policies to try of {', '.join(POLICIES)}; default: {' '.join(sweep.REMAT)}",
    )  # fmt: skip
    parser.add_argument(
        "--sweep-rows", nargs="+", type=int, default=list(sweep.ROWS), metavar="N",
        help=f"batch rows a device to try; default: {' '.join(map(str, sweep.ROWS))}",
    )  # fmt: skip


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    if config.get("kind") != "decoder":
        raise UserError(f"`anygpt plan` plans a decoder's training, and config.kind is '{config.get('kind')}'.")
    topology = Topology.parse(args.topology, args.slices)
    compiler_version()
    jax.config.update("jax_platforms", "cpu")  # nothing runs here: a TPU of this machine stays free
    vocabulary = _vocabulary(config, args.vocab_size)
    cache = pathlib.Path(args.cache) if args.cache else default_cache()
    if args.sweep:
        found = _sweep(config, args, vocabulary, topology, cache)
        print(page.table(found))
        written: Any = [as_json(e) for e in found]
    else:
        planned = plan(config, vocabulary, topology, cache)
        print(page.page(planned))
        written = as_json(planned)
    if args.json:
        write_atomically(pathlib.Path(args.json), json.dumps(written, indent=1).encode())


def plan(
    config: ml_collections.ConfigDict, vocabulary: Vocabulary, topology: Topology, cache: pathlib.Path | None
) -> Estimate:
    """Compiles the config's train step (or finds it compiled) and reads it."""
    of_mesh = problem_of(mesh_axes, config.mesh, topology)
    axes = mesh_shape(config.mesh) if of_mesh else mesh_axes(config.mesh, topology)
    on_slice = ml_collections.ConfigDict(config.to_dict() | {"mesh": axes})
    refuse(
        of_mesh
        + config_problems(on_slice, vocabulary, max(topology.devices, math.prod(axes.values())))
        + quantization_problems(config.model.get("quantization", "none"), topology)
    )
    model, train = ModelConfig.from_config(config.model, vocabulary), config.train
    modalities = 1 + len(vocabulary.modalities or config.get("modalities", ()))
    log.info("Compiling for %s × %d, mesh %s: minutes for a large model.", topology.name, topology.slices, axes)
    compiled = compile_step(model, train, axes, modalities, topology, cache)
    return estimate(
        compiled, model, topology, axes, train.batch_size, train.seq_len, train.steps, compiler_version(),
        train.microbatches,
    )  # fmt: skip


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
) -> list[Estimate]:
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
            found = plan(changed, vocabulary, topology, cache)
            bar.update()
            return found

        return sweep.sweep(iter(groups), one)
