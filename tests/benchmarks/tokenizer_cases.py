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
from flax import nnx

from anygpt_jax.interop.tokenizers import kinds
from anygpt_jax.interop.tokenizers.rules import Layout
from anygpt_jax.modalities.codecs import released, weights

Run = Callable[[], Any]


State = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of ours, and where its weights come from: a rule over official names for every variable."""

    build: Callable[[], nnx.Module]
    layout: Layout

    def abstract(self) -> Any:
        """Without its numbers, for compilation alone."""
        return nnx.eval_shape(self.build)

    def filled(self, state: Mapping[str, torch.Tensor]) -> Any:
        tensors = {}
        for path, rule in self.layout.items():
            chosen = rule.choose(state)
            assert chosen is not None, f"{path} has no source in the published state"
            tensors[path] = chosen.make(*(state[n].float().numpy() for n in chosen.names))
        return weights.fill(self.build, tensors)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of ours and the published one. `amount` is what one run works on, in `unit`s."""

    unit: str  # "s" of sound, or "images"
    amount: float
    theirs: Callable[[], Any]  # the published module, weights randomized
    ours: Callable[[State], Network]  # of the published state
    run_theirs: Callable[[Any], dict[str, Run]]  # by direction
    # direction -> (function of the module and arrays, the arrays); the first axis of each array is the batch
    run_ours: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]]

    def abstract(self) -> Any:
        with torch.device("meta"):
            return self.ours(self.theirs().state_dict()).abstract()


def _kind(name: str, config: Mapping[str, Any]) -> Callable[[State], Network]:
    """A whole tokenizer, as `anygpt convert tokenizer` makes it."""

    def network(state: State) -> Network:
        kind = kinds.get(name)
        settings = kind.settings(config, {n: tuple(t.shape) for n, t in state.items()})
        return Network(lambda: kind.build(settings), kind.layout(settings))

    return network


def _part(layout: Layout, prefix: str) -> Layout:
    """The rules of one of a tokenizer's networks."""
    return {path.removeprefix(prefix): rule for path, rule in layout.items() if path.startswith(prefix)}


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


def _sound(seconds: float, rate: int, hop: int, books: int, size: int) -> dict:
    samples, frames = int(seconds * rate), -(-int(seconds * rate) // hop)
    return {
        "encode": (lambda m, x, n: m.encode(x, n), (_noise(seconds, rate), np.array([samples], np.int32))),
        "decode": (lambda m, c, n: m.decode(c, n), (_codes(1, frames, books, size), np.array([frames], np.int32))),
    }


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
        "s", seconds, lambda: _randomized(EncodecModel(config)), _kind("encodec", config.to_dict()), run_theirs,
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
        "s",
        seconds,
        theirs,
        _kind("speechtokenizer", SPEECHTOKENIZER),
        run_theirs,
        _sound(seconds, 16_000, 320, 8, 1024),
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
        "s", seconds, lambda: _randomized(MimiModel(config)), _kind("mimi", config.to_dict()), run_theirs,
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
        "s", length / 44_100, lambda: _randomized(DacModel(config)), _kind("dac", config.to_dict()), run_theirs,
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

    ours = {"encode": (lambda m, x: m.encode(x), (pixels,)), "decode": (lambda m, c: m.decode(c), (codes,))}
    network = _kind("janus_vq", config.to_dict())
    return Case("images", images, lambda: JanusVQVAE(config).eval(), network, run_theirs, ours)


def seed2_vit(images: int = 1) -> Case:
    """The vision transformer, nearly all of SEED-2's encoding."""
    from transformers.models import blip_2

    from anygpt_jax.interop.tokenizers import seed2 as official
    from anygpt_jax.modalities.codecs.seed2 import Seed2Settings
    from anygpt_jax.modalities.codecs.vit import VisionTransformer

    names = {
        "embeddings.class_embedding": "cls_token", "embeddings.position_embedding": "pos_embed",
        "embeddings.patch_embedding": "patch_embed.proj", "encoder.layers": "blocks", "layer_norm": "norm",
        "self_attn.projection": "attn.proj", "self_attn.qkv": "attn.qkv",
    }  # fmt: skip

    class Renamed(blip_2.Blip2VisionModel):
        """With EVA's names for its tensors."""

        def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
            found = {}
            for name, tensor in super().state_dict(*args, **kwargs).items():
                for theirs, eva in names.items():
                    name = name.replace(theirs, eva)
                found[f"visual_encoder.{name}"] = tensor
                if name.endswith("qkv.bias"):
                    layer = f"visual_encoder.{name}".removesuffix("qkv.bias")
                    found |= {f"{layer}q_bias": tensor.chunk(3)[0], f"{layer}v_bias": tensor.chunk(3)[2]}
            return found

    settings = Seed2Settings()

    def network(_state: State) -> Network:
        layout = _part(official.layout(dataclasses.asdict(settings)), "vit.")
        return Network(lambda: VisionTransformer(settings.vit, rngs=weights.rngs()), layout)

    pixels = np.random.default_rng(0).standard_normal((images, 224, 224, 3)).astype(np.float32)

    def run_theirs(model: Any) -> dict[str, Run]:
        x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return {"encode": _no_grad(lambda: model(x))}

    config = blip_2.Blip2VisionConfig()
    return Case(
        "images",
        images,
        lambda: Renamed(config).eval(),
        network,
        run_theirs,
        {"encode": (lambda m, x: m(x), (pixels,))},
    )


def unclip_unet(images: int = 1, side: int = 96) -> Case:
    """One evaluation of unCLIP's U-Net; a picture takes 40, 20 steps with and without the embedding."""
    import diffusers

    from anygpt_jax.interop.tokenizers import unclip as official
    from anygpt_jax.modalities.codecs.unclip import UnclipSettings
    from anygpt_jax.modalities.codecs.unet import UNet

    settings = UnclipSettings()

    def theirs() -> Any:
        unet = diffusers.UNet2DConditionModel(
            sample_size=side, block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=1024,
            attention_head_dim=[5, 10, 20, 20], use_linear_projection=True, class_embed_type="projection",
            projection_class_embeddings_input_dim=2048,
        )  # fmt: skip
        return torch.nn.ModuleDict({"unet": unet}).eval()

    def network(_state: State) -> Network:
        layout = _part(official.layout(dataclasses.asdict(settings)), "unet.")
        return Network(lambda: UNet(settings.unet, rngs=weights.rngs()), layout)

    rng = np.random.default_rng(0)
    latents = rng.standard_normal((images, side, side, 4)).astype(np.float32)
    prompt = rng.standard_normal((images, 77, 1024)).astype(np.float32)
    condition = rng.standard_normal((images, 2048)).astype(np.float32)
    times = np.full(images, 500, np.int32)

    def run_theirs(model: Any) -> dict[str, Run]:
        x = torch.from_numpy(latents).permute(0, 3, 1, 2).contiguous()
        p, c, t = torch.from_numpy(prompt), torch.from_numpy(condition), torch.from_numpy(times)
        return {"evaluation": _no_grad(lambda: model["unet"](x, t, p, class_labels=c))}

    arrays = (latents, times, prompt, condition)
    return Case(
        "images", images, theirs, network, run_theirs, {"evaluation": (lambda m, x, t, p, c: m(x, t, p, c), arrays)}
    )


CASES: dict[str, Callable[[], Case]] = {
    "encodec_32khz": encodec,
    "speechtokenizer": speechtokenizer,
    "mimi": mimi,
    "dac_44khz": dac,
    "janus_vq": janus_vq,
    "seed2_vit": seed2_vit,
    "unclip_unet": unclip_unet,
}


def program(module: Any, function: Callable[..., Any], arrays: tuple[np.ndarray, ...]) -> Run:
    """A compiled program of ours that waits for its result."""
    run, placed = released.program(function, module), tuple(jnp.asarray(a) for a in arrays)
    return lambda: jax.block_until_ready(run(*placed))
