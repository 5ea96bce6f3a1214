"""What of a layer is kept for its backward pass, by name, and what is computed again.

A layer's values are named where they are made (`decoder.Block`): `q`, `k`, `v` after rotation, `attention`,
`mid` (the stream after attention), `gate` and `up`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Policy:
    """Names that stay on the device and names that wait in the host's memory; the rest is computed again."""

    saved: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()


# From the least memory to the most. "none" recomputes nothing.
POLICIES: dict[str, Policy | None] = {
    "full": Policy(),
    "attention": Policy(("attention",)),
    "qkv": Policy(("q", "k", "v")),
    "qkv_attention": Policy(("q", "k", "v", "attention")),
    "all_but_mlp": Policy(("q", "k", "v", "attention", "mid")),
    "mlp": Policy(("attention", "gate", "up")),
    "most": Policy(("q", "k", "v", "attention", "gate", "up")),
    "minimal": Policy(("q", "k", "v", "attention", "mid", "gate", "up")),
    "offload_qkv": Policy(("attention",), ("q", "k", "v")),
    "offload_mlp": Policy(("q", "k", "v", "attention"), ("gate", "up")),
    "none": None,
}


def checkpointed(body: Callable[..., Any], policy: Policy | None) -> Callable[..., Any]:
    """`body` under a policy."""
    if policy is None:
        return body
    keep = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=policy.saved,
        names_which_can_be_offloaded=policy.offloaded,
        offload_src="device",
        offload_dst="pinned_host",
    )
    # A scan's body is not merged with its neighbours, so that the barriers against that are not needed.
    return jax.checkpoint(body, policy=keep, prevent_cse=False)
