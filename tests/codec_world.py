"""What the codecs' tests share: an official state dict through its kind's rules into our network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import nnx

from anygpt_jax.interop.tokenizers.rules import Layout
from anygpt_jax.modalities.codecs import weights


def tensors_of(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A PyTorch state dict as NumPy arrays."""
    return {name: t.detach().float().numpy() if hasattr(t, "detach") else t for name, t in state.items()}


def filled(build: Callable[[], nnx.Module], layout: Layout, state: Mapping[str, Any]) -> nnx.Module:
    """The network with the official tensors in it; each of its variables must have its own."""
    return _fill(build, layout, tensors_of(state))[0]


def converted(kind: Any, state: Mapping[str, Any], config: Mapping[str, Any], **changes: Any) -> Any:
    """As `anygpt convert tokenizer` does it; every official tensor must be used or ignored, and each of ours made."""
    state = tensors_of(state)
    settings = kind.settings(config, {name: t.shape for name, t in state.items()}) | changes
    module, used = _fill(lambda: kind.build(settings), kind.layout(settings), state)
    left = state.keys() - used
    assert all(any(re.fullmatch(p, name) for p in kind.ignored) for name in left), sorted(left)
    return module


def _fill(build: Callable, layout: Layout, state: Mapping[str, np.ndarray]) -> tuple[Any, set[str]]:
    chosen = {path: rule.choose(state) for path, rule in layout.items()}
    tensors = {path: a.make(*(state[n] for n in a.names)) for path, a in chosen.items()}
    module = weights.fill(build, tensors)
    assert sorted(tensors) == sorted(weights.flatten(module))
    return module, {name for a in chosen.values() for name in a.names}
