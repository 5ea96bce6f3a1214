"""The tokenizers whose official checkpoints can be read, by name."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.rules import Layout


@dataclasses.dataclass(frozen=True)
class Kind:
    """One official checkpoint format.

    `settings(config, shapes)` makes our settings (JSON) of the official configuration, {} where none lies beside
    the weights, and of the shapes of the tensors; UserError for a network that is not supported. `build(settings)`
    is the module they go into, `layout(settings)` says how. Official tensors that match a pattern of `ignored`
    (regular expressions, of the whole name) are not needed to encode and decode. `subfolders`, for diffusers'
    folders: {prefix of the tensors' names: subfolder}, and the config is then {subfolder: its config}. `prefix` tells
    of the names in one file what they get in front, where a network is published in several files of their own names.
    """

    settings: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], dict[str, Any]]
    build: Callable[[dict[str, Any]], nnx.Module]
    layout: Callable[[dict[str, Any]], Layout]
    ignored: tuple[str, ...] = ()
    subfolders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prefix: Callable[[Collection[str]], str] = lambda names: ""


# kind -> (module with KIND, what it is)
KINDS = {
    "encodec": ("anygpt_jax.interop.tokenizers.encodec", "EnCodec 24 and 32 kHz, of Hugging Face or audiocraft"),
    "speechtokenizer": ("anygpt_jax.interop.tokenizers.speechtokenizer", "SpeechTokenizer, ELU or Snake (ckpt.dev)"),
    "soundstorm": (
        "anygpt_jax.interop.tokenizers.soundstorm",
        "AnyGPT's SoundStorm (speechtokenizer_soundstorm_mls.pt)",
    ),
    "mimi": ("anygpt_jax.interop.tokenizers.mimi", "Mimi, of Hugging Face or Kyutai"),
    "dac": ("anygpt_jax.interop.tokenizers.dac", "Descript's audio codec, of Hugging Face or weights.pth"),
    "seed2": ("anygpt_jax.interop.tokenizers.seed2", "SEED-2 (seed_quantizer.pt, with or beside eva_vit_g.pth)"),
    "unclip": ("anygpt_jax.interop.tokenizers.unclip", "Stable unCLIP 2.1's decoder (a diffusers folder)"),
    "janus_vq": ("anygpt_jax.interop.tokenizers.janus_vq", "Janus' and LlamaGen's image VQ"),
}


def get(name: str) -> Kind:
    """UserError if there is no such kind."""
    if name not in KINDS:
        raise UserError(f"There is no tokenizer kind '{name}'; the kinds are {', '.join(KINDS)}.")
    return importlib.import_module(KINDS[name][0]).KIND
