"""The networks that tests/benchmarks/tokenizers.py measures: ours and the published PyTorch class, on the same weights.

Random weights in the published sizes: time and memory do not depend on their values.
"""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from anygpt_jax.interop.tokenizers import kinds
from anygpt_jax.modalities.codecs import weights

Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """One network. `amount` is what one run works on, in `unit`s; programs are by direction."""

    unit: str  # "s" of sound, or "images"
    amount: float
    theirs: Callable[[], Any]  # the published module, weights randomized
    official: tuple[str, Mapping[str, Any]]  # kind, and the published configuration
    run_theirs: Callable[[Any], dict[str, Run]]
    # direction -> (function of the module and arrays, the arrays); the first axis of each array is the batch
    run_ours: Callable[[Any], dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]]]


def ported(case: Case, state: Mapping[str, torch.Tensor]) -> Any:
    """Our module with the published one's weights."""
    kind = kinds.get(case.official[0])
    settings = kind.settings(case.official[1], {name: tuple(t.shape) for name, t in state.items()})
    tensors = {}
    for path, rule in kind.layout(settings).items():
        chosen = rule.choose(state)
        assert chosen is not None, f"{path} has no source in the published state"
        tensors[path] = chosen.make(*(state[n].float().numpy() for n in chosen.names))
    return weights.fill(lambda: kind.build(settings), tensors)


def abstract(case: Case) -> Any:
    """Our module without its numbers, for compilation alone."""
    from flax import nnx

    kind = kinds.get(case.official[0])
    with torch.device("meta"):
        state = case.theirs().state_dict()
    settings = kind.settings(case.official[1], {name: tuple(t.shape) for name, t in state.items()})
    return nnx.eval_shape(lambda: kind.build(settings))


def _randomized(module: torch.nn.Module) -> torch.nn.Module:
    """Codebooks are zeros in several published classes, and so would every code be."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith((".embed", ".embed_sum", ".embed_avg")):
                tensor.normal_()
    return module.eval()


def _noise(seconds: float, rate: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal((1, int(seconds * rate)))).astype(np.float32)


def _codes(rows: int, frames: int, books: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, size, (rows, frames, books)).astype(np.int32)


def _sound(seconds: float, rate: int, hop: int, books: int, size: int) -> Callable[[Any], dict]:
    frames = -(-int(seconds * rate) // hop)

    def runs(_module: Any) -> dict:
        return {
            "encode": (
                lambda m, x, n: m.encode(x, n),
                (_noise(seconds, rate), np.array([int(seconds * rate)], np.int32)),
            ),
            "decode": (lambda m, c, n: m.decode(c, n), (_codes(1, frames, books, size), np.array([frames], np.int32))),
        }

    return runs


def _no_grad(function: Run) -> Run:
    def run() -> Any:
        with torch.no_grad():
            return function()

    return run


def encodec(seconds: float = 10.0) -> Case:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        target_bandwidths=[2.2], sampling_rate=32_000, audio_channels=1, normalize=False, num_filters=64,
        num_residual_layers=1, upsampling_ratios=[8, 5, 4, 4], norm_type="weight_norm", use_causal_conv=False,
        codebook_size=2048, codebook_dim=128, hidden_size=128, num_lstm_layers=2, use_conv_shortcut=False,
    )  # fmt: skip

    def run_theirs(model: Any) -> dict[str, Run]:
        x = torch.from_numpy(_noise(seconds, 32_000))[:, None]
        codes = torch.from_numpy(_codes(1, int(seconds * 50), 4, 2048)).permute(0, 2, 1)[None].long()
        return {
            "encode": _no_grad(lambda: model.encode(x)),
            "decode": _no_grad(lambda: model.decode(codes, [None])),
        }

    return Case(
        "s", seconds, lambda: _randomized(EncodecModel(config)), ("encodec", config.to_dict()), run_theirs,
        _sound(seconds, 32_000, 640, 4, 2048),
    )  # fmt: skip


SPEECHTOKENIZER = {
    "n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768, "bidirectional": True,
    "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1, "lstm_layers": 2, "activation": "Snake",
    "codebook_size": 1024, "n_q": 8, "sample_rate": 16_000,
}  # fmt: skip


def speechtokenizer(seconds: float = 10.0) -> Case:
    def theirs() -> Any:
        if "speechtokenizer" not in sys.modules:  # its __init__ imports a trainer, which wants torchaudio
            import importlib.util

            package = types.ModuleType("speechtokenizer")
            found = importlib.util.find_spec("speechtokenizer")
            assert found is not None and found.submodule_search_locations is not None
            package.__path__ = list(found.submodule_search_locations)
            sys.modules["speechtokenizer"] = package
        from speechtokenizer.model import SpeechTokenizer

        return _randomized(SpeechTokenizer(SPEECHTOKENIZER))

    def run_theirs(model: Any) -> dict[str, Run]:
        x = torch.from_numpy(_noise(seconds, 16_000))[:, None]
        codes = torch.from_numpy(_codes(1, int(seconds * 50), 8, 1024)).permute(2, 0, 1).long()
        return {"encode": _no_grad(lambda: model.encode(x)), "decode": _no_grad(lambda: model.decode(codes))}

    return Case(
        "s", seconds, theirs, ("speechtokenizer", SPEECHTOKENIZER), run_theirs, _sound(seconds, 16_000, 320, 8, 1024)
    )


def mimi(seconds: float = 10.0) -> Case:
    from transformers import MimiConfig, MimiModel

    config = MimiConfig()

    def run_theirs(model: Any) -> dict[str, Run]:
        x = torch.from_numpy(_noise(seconds, 24_000))[:, None]
        codes = torch.from_numpy(_codes(1, int(seconds * 12.5), 8, 2048)).permute(0, 2, 1).long()
        return {
            "encode": _no_grad(lambda: model.encode(x, num_quantizers=8)),
            "decode": _no_grad(lambda: model.decode(codes)),
        }

    return Case(
        "s", seconds, lambda: _randomized(MimiModel(config)), ("mimi", config.to_dict()), run_theirs,
        _sound(seconds, 24_000, 1920, 8, 2048),
    )  # fmt: skip


def dac(seconds: float = 2.0) -> Case:
    from transformers import DacConfig, DacModel

    config = DacConfig(sampling_rate=44_100, downsampling_ratios=[2, 4, 8, 8], n_codebooks=9, codebook_dim=8)
    length = int(seconds * 44_100) // 512 * 512

    def run_theirs(model: Any) -> dict[str, Run]:
        x = torch.from_numpy(_noise(seconds, 44_100)[:, :length])[:, None]
        codes = torch.from_numpy(_codes(1, length // 512, 9, 1024)).permute(0, 2, 1).long()
        return {
            "encode": _no_grad(lambda: model.encode(x)),
            "decode": _no_grad(lambda: model.decode(audio_codes=codes)),
        }

    return Case(
        "s", length / 44_100, lambda: _randomized(DacModel(config)), ("dac", config.to_dict()), run_theirs,
        _sound(length / 44_100, 44_100, 512, 9, 1024),
    )  # fmt: skip


def janus_vq(images: int = 1) -> Case:
    from transformers import JanusVQVAE
    from transformers.models.janus import JanusVQVAEConfig

    config = JanusVQVAEConfig(num_patches=24)
    pixels = np.random.default_rng(0).uniform(-1, 1, (images, 384, 384, 3)).astype(np.float32)
    codes = _codes(images, 576, 1, 16_384)[..., 0]

    def run_theirs(model: Any) -> dict[str, Run]:
        x, c = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(codes).long()
        return {"encode": _no_grad(lambda: model.encode(x)), "decode": _no_grad(lambda: model.decode(c))}

    def run_ours(_module: Any) -> dict:
        return {
            "encode": (lambda m, x: m.encode(x), (pixels,)),
            "decode": (lambda m, c: m.decode(c), (codes,)),
        }

    return Case(
        "images", images, lambda: JanusVQVAE(config).eval(), ("janus_vq", config.to_dict()), run_theirs, run_ours
    )


CASES: dict[str, Callable[[], Case]] = {
    "encodec_32khz": encodec,
    "speechtokenizer": speechtokenizer,
    "mimi": mimi,
    "dac_44khz": dac,
    "janus_vq": janus_vq,
}


def jitted(module: Any, function: Callable[..., Any], arrays: tuple[np.ndarray, ...]) -> Run:
    """A program of ours that waits for its result; weights are arguments, not constants."""
    from flax import nnx

    graph, state = nnx.split(module)
    program = jax.jit(lambda state, *a: function(nnx.merge(graph, state), *a))
    placed = tuple(jnp.asarray(a) for a in arrays)
    return lambda: jax.block_until_ready(program(state, *placed))
