"""Stable unCLIP 2.1 (a diffusers folder) → `codecs.unclip`.

Of the pipeline's networks, the CLIP image encoder and the autoencoder's encoder are not needed. The text encoder is
not kept either: only its states for the empty prompt are, computed when the checkpoint is converted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.kinds import Kind
from anygpt_jax.interop.tokenizers.rules import Alternative, Layout, Rule, mirrored, same
from anygpt_jax.modalities.codecs import clip_text, weights
from anygpt_jax.modalities.codecs.autoencoder import AutoencoderSettings
from anygpt_jax.modalities.codecs.clip_text import ClipText, ClipTextSettings
from anygpt_jax.modalities.codecs.schedulers import NoiseSchedule, SamplerSettings
from anygpt_jax.modalities.codecs.unclip import UnclipSettings, build
from anygpt_jax.modalities.codecs.unet import UNetSettings

SUBFOLDERS = {
    "unet.": "unet",
    "vae.": "vae",
    "image_normalizer.": "image_normalizer",
    "image_noising_scheduler.": "image_noising_scheduler",
    "scheduler.": "scheduler",
    "text_encoder.": "text_encoder",
}
# What this implementation computes; a configuration that names anything else is another network.
UNET = {
    "act_fn": "silu", "addition_embed_type": None, "attention_type": "default", "center_input_sample": False,
    "class_embed_type": "projection", "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3,
    "cross_attention_norm": None, "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "only_cross_attention": False,
    "resnet_out_scale_factor": 1, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None, "transformer_layers_per_block": 1,
}  # fmt: skip
VAE = {
    "act_fn": "silu", "mid_block_add_attention": True, "shift_factor": None, "use_post_quant_conv": True,
    "latents_mean": None, "latents_std": None,
}  # fmt: skip
SCHEDULER = {
    "clip_sample": False, "rescale_betas_zero_snr": False, "thresholding": False, "trained_betas": None,
}  # fmt: skip


def _require(part: str, config: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if config.get(name, value) != value:
            raise UserError(
                f"{part}/ has {name} = {config[name]!r}; only {value!r} is supported. "
                "Name a folder of stabilityai/stable-diffusion-2-1-unclip or one with the same networks."
            )


def _each(value: Any, levels: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,) * levels


def _one(part: str, config: Mapping[str, Any], name: str) -> Any:
    """A value that configurations may give once or once a level."""
    values = _each(config[name], 1)
    if len(set(values)) > 1:
        raise UserError(f"{part}/ has {name} = {config[name]!r}; only one value for all levels is supported.")
    return values[0]


def _unet(config: Mapping[str, Any]) -> UNetSettings:
    if config.get("class_embed_type") is None:
        raise UserError("unet/ has no class_embed_type 'projection'; it is not the U-Net of an unCLIP pipeline.")
    _require("unet", config, UNET)
    down, up = config["down_block_types"], config["up_block_types"]
    attention = tuple(block == "CrossAttnDownBlock2D" for block in down)
    mirrored_up = ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attention)]
    if list(up) != mirrored_up or not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"}:
        raise UserError(f"unet/ has blocks {', '.join([*down, *up])}; this arrangement is not supported.")
    if config["in_channels"] != config["out_channels"]:
        raise UserError(f"unet/ gives {config['out_channels']} channels for {config['in_channels']}.")
    widths = tuple(config["block_out_channels"])
    return UNetSettings(
        widths=widths,
        # diffusers' attention_head_dim is the number of heads, for reasons of compatibility.
        heads=_each(config["attention_head_dim"], len(widths)),
        attention=attention,
        blocks=_one("unet", config, "layers_per_block"),
        channels=config["in_channels"],
        context=_one("unet", config, "cross_attention_dim"),
        condition=config["projection_class_embeddings_input_dim"],
        groups=config.get("norm_num_groups", 32),
        epsilon=config.get("norm_eps", 1e-5),
    )


def _vae(config: Mapping[str, Any]) -> AutoencoderSettings:
    _require("vae", config, VAE)
    return AutoencoderSettings(
        widths=tuple(config["block_out_channels"]),
        blocks=config["layers_per_block"],
        latent=config["latent_channels"],
        groups=config.get("norm_num_groups", 32),
        channels=config["out_channels"],
    )


def _noise(config: Mapping[str, Any]) -> NoiseSchedule:
    return NoiseSchedule(
        betas=config.get("beta_schedule", "linear"),
        beta_start=config.get("beta_start", 0.0001),
        beta_end=config.get("beta_end", 0.02),
        train_steps=config.get("num_train_timesteps", 1000),
    )


def settings(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """UserError if a configuration is missing or of another network."""
    if absent := [name for name in SUBFOLDERS.values() if not config.get(name)]:
        raise UserError(f"No configuration in {', '.join(f'{n}/' for n in absent)}; copy the whole diffusers folder.")
    unet, vae, text = config["unet"], config["vae"], config["text_encoder"]
    _require("scheduler", config["scheduler"], SCHEDULER)
    try:
        made = UnclipSettings(
            unet=_unet(unet),
            vae=_vae(vae),
            text=ClipTextSettings(
                vocabulary=text["vocab_size"],
                positions=text["max_position_embeddings"],
                width=text["hidden_size"],
                layers=text["num_hidden_layers"],
                heads=text["num_attention_heads"],
                inner=text["intermediate_size"],
                activation=text["hidden_act"],
                epsilon=text.get("layer_norm_eps", 1e-5),
            ),
            sampler=SamplerSettings(
                noise=_noise(config["scheduler"]),
                prediction=config["scheduler"].get("prediction_type", "epsilon"),
                spacing=config["scheduler"].get("timestep_spacing", "leading"),
                offset=config["scheduler"].get("steps_offset", 0),
                final_one=config["scheduler"].get(
                    "set_alpha_to_one", config["scheduler"].get("_class_name") == "DDIMScheduler"
                ),
                skip_prk=config["scheduler"].get("skip_prk_steps", False),
            ),
            embedding_noise=_noise(config["image_noising_scheduler"]),
            size=(_each(unet["sample_size"], 2)[0], _each(unet["sample_size"], 2)[1]),
            scaling=vae.get("scaling_factor", 0.18215),
        )
    except KeyError as e:
        raise UserError(f"A configuration of the diffusers folder lacks {e}; copy it again.") from e
    except ValueError as e:
        raise UserError(f"The diffusers folder's configurations do not fit: {e}.") from e
    return dataclasses.asdict(made)


# Ours → diffusers', applied in this order.
RENAMES = (
    (r"^unet\.(down|up)\.", r"unet.\1_blocks."),
    (r"^(unet\.down_blocks\.\d+)\.resample$", r"\1.downsamplers.0.conv"),
    (r"^(unet\.up_blocks\.\d+)\.resample\.conv$", r"\1.upsamplers.0.conv"),
    (r"^unet\.norm_out", "unet.conv_norm_out"),
    (r"^before_decoder", "vae.post_quant_conv"),
    (r"^decoder\.levels\.(\d+)\.resample\.conv$", r"decoder.up_blocks.\1.upsamplers.0.conv"),
    (r"^decoder\.levels\.", "decoder.up_blocks."),
    (r"^decoder\.norm_out", "decoder.conv_norm_out"),
    (r"^decoder\.", "vae.decoder."),
    (r"\.mid\.before", ".mid_block.resnets.0"),
    (r"\.mid\.attention", ".mid_block.attentions.0"),
    (r"\.mid\.after", ".mid_block.resnets.1"),
    (r"\.time$", ".time_emb_proj"),
    (r"\.shortcut$", ".conv_shortcut"),
    (r"\.block\.", ".transformer_blocks.0."),
    (r"\.ff_in$", ".ff.net.0.proj"),
    (r"\.ff_out$", ".ff.net.2"),
    (r"^(vae\..*attentions\.0)\.norm$", r"\1.group_norm"),
    (r"\.([qkv])$", r".to_\1"),
    (r"(attentions\.0|attn[12])\.out$", r"\1.to_out.0"),
)
# The attention of autoencoders that were saved with diffusers' first attention blocks.
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _names(path: str) -> tuple[str, ...]:
    for pattern, replacement in RENAMES:
        path = re.sub(pattern, replacement, path)
    for new, old in OLD_ATTENTION.items():
        if path.startswith("vae.") and path.endswith(f".{new}"):
            return path, path.removesuffix(new) + old
    return (path,)


TEXT_RENAMES = (
    (r"^tokens", "embeddings.token_embedding"),
    (r"^positions", "embeddings.position_embedding"),
    (r"^norm", "final_layer_norm"),
    (r"^layers", "encoder.layers"),
    (r"\.norm([12])$", r".layer_norm\1"),
    (r"\.([qkv]|out)$", r".self_attn.\1_proj"),
    (r"\.(fc[12])$", r".mlp.\1"),
)


def text_layout(text: ClipTextSettings, prefix: str) -> Layout:
    """transformers' CLIPTextModel → `ClipText`."""

    def names(path: str) -> tuple[str, ...]:
        for pattern, replacement in TEXT_RENAMES:
            path = re.sub(pattern, replacement, path)
        return (prefix + path,)

    return mirrored(nnx.eval_shape(lambda: ClipText(text, rngs=nnx.Rngs(0))), names)


def _empty_prompt(text: ClipTextSettings) -> Rule:
    """The whole text encoder → its states for the empty prompt, [positions, width]."""

    def alternative(prefix: str) -> Alternative:
        chosen = {path: rule.alternatives[0] for path, rule in text_layout(text, prefix).items()}

        def make(*tensors: np.ndarray) -> np.ndarray:
            rest = iter(tensors)
            ours = {path: how.make(*(next(rest) for _ in how.names)) for path, how in chosen.items()}
            network = weights.fill(lambda: ClipText(text, rngs=nnx.Rngs(0)), ours)
            with jax.default_matmul_precision("highest"):
                return np.asarray(network(clip_text.empty_prompt(text.positions))[0])

        return Alternative(tuple(n for how in chosen.values() for n in how.names), make)

    # transformers writes the first name up to version 4.
    return Rule((alternative("text_encoder.text_model."), alternative("text_encoder.")))


def layout(settings: Mapping[str, Any]) -> Layout:
    """diffusers' names behind the prefixes of `SUBFOLDERS`; "prompt" is computed by the whole text encoder."""
    text = ClipTextSettings(**settings["text"])
    fixed = {
        "mean": same("image_normalizer.mean").then(lambda x: x.reshape(-1)),
        "std": same("image_normalizer.std").then(lambda x: x.reshape(-1)),
        "prompt": _empty_prompt(text),
    }
    return mirrored(nnx.eval_shape(lambda: build(settings)), _names) | fixed


KIND = Kind(
    settings=settings,
    build=build,
    layout=layout,
    ignored=(r"vae\.encoder\..*", r"vae\.quant_conv\..*", r"text_encoder\.(text_model\.)?embeddings\.position_ids"),
    subfolders=SUBFOLDERS,
)
