"""`anygpt train`: the decoder, or a modality tokenizer, whichever the config describes."""

from __future__ import annotations

import argparse

import ml_collections

from anygpt_jax.errors import UserError


def run(config: ml_collections.ConfigDict, args: argparse.Namespace) -> None:
    """By `config.kind`, decoder or tokenizer; the other's modules are not imported. UserError if it is neither."""
    if config.kind == "decoder":
        from anygpt_jax.training import loop

        loop.run(config)
    elif config.kind == "tokenizer":
        from anygpt_jax.modalities.codecs import train  # only here: training the decoder needs no codec

        train.run(config)
    else:
        raise UserError(f"config.kind '{config.kind}' must be decoder or tokenizer.")
