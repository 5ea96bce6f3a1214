"""How to draw, said on the command line: one temperature for all, settings of a modality, beams."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.generation.request import Settings
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.templates import TEXT


def add_arguments(parser: argparse.ArgumentParser, *, beams: bool = False) -> None:
    """For every verb that draws answers, with --beams for one that also searches; `settings` reads them."""
    how = parser.add_argument_group("how to draw (default: as the config says)")
    how.add_argument("--temperature", type=float, help="of every modality; 0 is greedy")
    names = ", ".join(field.name for field in dataclasses.fields(Sampling))
    how.add_argument(
        "--sampling",
        action="append",
        default=[],
        metavar="MODALITY.NAME=VALUE",
        help=f"one of {names}; may be repeated",
    )
    if beams:
        how.add_argument(
            "--beams", type=int, metavar="N", help="search for the likeliest text by so many; 1: no search"
        )


def settings(config: ml_collections.ConfigDict, args: argparse.Namespace) -> Settings:
    """The config's settings with what the command line changes; UserError for what cannot be."""
    found = Settings.from_config(config.generate)
    modalities = (TEXT, *config.modalities)
    sampling = {modality: found.sampling.get(modality, Sampling()) for modality in modalities}
    if args.temperature is not None:
        sampling = {m: dataclasses.replace(one, temperature=args.temperature) for m, one in sampling.items()}
    for option in args.sampling:
        modality, name, value = _parsed(option, modalities)
        sampling[modality] = dataclasses.replace(sampling[modality], **{name: value})
    beams = getattr(args, "beams", None)
    if beams is not None and beams < 1:
        raise UserError(f"--beams must be at least 1, not {beams}.")
    return dataclasses.replace(found, sampling=sampling, beams=found.beams if beams is None else beams)


def _parsed(option: str, modalities: tuple[str, ...]) -> tuple[str, str, Any]:
    where, equals, text = option.partition("=")
    modality, dot, name = where.partition(".")
    if not (equals and dot):
        raise UserError(f"--sampling {option} must have the form MODALITY.NAME=VALUE, as in image.temperature=0.5.")
    if modality not in modalities:
        raise UserError(f"--sampling {option}: the modalities are {', '.join(modalities)}.")
    known = {field.name: field.type for field in dataclasses.fields(Sampling)}
    if name not in known:
        raise UserError(f"--sampling {option}: there are {', '.join(known)}.")
    try:
        return modality, name, int(text) if known[name] == "int" else float(text)
    except ValueError:
        raise UserError(f"--sampling {option}: '{text}' is not a number that {name} can be.") from None
