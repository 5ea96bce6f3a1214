"""Networks that judge what a model made, with published weights: CLIP for pictures, a speaker encoder for voices.

They run on the chips that the model runs on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.source import Tensor
from anygpt_jax.interop.tokenizers.rules import Layout
from anygpt_jax.modalities.codecs import weights

M = TypeVar("M", bound=nnx.Module)


def filled(
    build: Callable[[], M], layout: Layout, tensors: Mapping[str, Tensor], ignored: Sequence[str], where: str
) -> M:
    """`build()` with published tensors in it, as float32.

    UserError if a tensor is missing, has another shape than the network's, or is left over and matches none of the
    regular expressions `ignored`.
    """
    chosen = {path: rule.choose(tensors) for path, rule in layout.items()}
    absent = [layout[path].alternatives for path, alternative in chosen.items() if alternative is None]
    missing = {n for alternatives in absent for n in alternatives[0].names if n not in tensors}
    used = {n for alternative in chosen.values() if alternative is not None for n in alternative.names}
    used |= {n for alternatives in absent for alternative in alternatives for n in alternative.names}
    left = {n for n in tensors if n not in used and not any(re.fullmatch(p, n) for p in ignored)}
    faults = _listed("lacks {} of the network's tensors", missing) + _listed("holds {} unknown to it", left)
    if faults:
        raise UserError(
            f"{where} {' and '.join(faults)}; take the weights and the configuration of one and the same network."
        )
    shapes = {weights.dotted(k): v.shape for k, v in nnx.to_flat_state(nnx.state(nnx.eval_shape(build)))}
    made = {}
    for path, alternative in chosen.items():
        assert alternative is not None  # none is missing
        try:
            made[path] = np.asarray(alternative.make(*(_whole(tensors[name]) for name in alternative.names)))
        except ValueError as e:  # parts that do not go together, or of another rank
            raise UserError(f"{where} holds {alternative.names[0]} of an unfit shape ({e}); take another copy.") from e
        if made[path].shape != shapes[path]:
            raise UserError(
                f"{where} gives {alternative.names[0]} a shape for {list(made[path].shape)}, where the network has "
                f"{list(shapes[path])}; take the weights and the configuration of one and the same network."
            )
    return weights.fill(build, made)


def _listed(fault: str, names: set[str]) -> list[str]:
    return [f"{fault.format(len(names))} ({', '.join(sorted(names))})"] if names else []


def _whole(tensor: Tensor) -> np.ndarray:
    return tensor.rows(0, tensor.shape[0]).astype(np.float32)
