"""Stable unCLIP's networks and pipeline against diffusers and transformers, on tiny random networks."""

import dataclasses
import importlib
import json
import math
import re

import codec_world
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers import convert, rules
from anygpt_jax.interop.tokenizers import unclip as official
from anygpt_jax.modalities.codecs import resnet2d, unclip, weights
from anygpt_jax.modalities.codecs.autoencoder import AutoencoderSettings, Encoder
from anygpt_jax.modalities.codecs.clip_text import ClipText, ClipTextSettings, empty_prompt

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

WIDTH = 12  # of the image embedding
BATCH = 2


def randomized(module, seed):
    """Every parameter random, biases and norms' scales too; activations stay of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / math.sqrt(fan_in) if parameter.ndim > 1 else 0.3 * noise + 0.2)
    return module.eval()


def scheduler_config():
    """Stable Diffusion 2.1's."""
    return {
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction",
    }  # fmt: skip


@dataclasses.dataclass
class World:
    pipeline: diffusers.StableUnCLIPImg2ImgPipeline
    text: transformers.CLIPTextModel
    tensors: dict
    settings: dict
    model: unclip.Unclip


def official_tensors(parts):
    return {prefix + name: x for prefix, part in parts.items() for name, x in part.state_dict().items()}


@pytest.fixture(scope="module")
def world():
    unet = randomized(
        diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), attention_head_dim=[2, 4], cross_attention_dim=16,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), use_linear_projection=True, class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * WIDTH,
        ), 0,
    )  # fmt: skip
    vae = randomized(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=4, latent_channels=4,
        ), 1,
    )  # fmt: skip
    text = randomized(
        transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
                hidden_act="gelu",
            )
        ), 2,
    )  # fmt: skip
    vision = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, projection_dim=WIDTH,
            image_size=8, patch_size=8,
        )
    )  # fmt: skip
    normalizer_class = importlib.import_module(
        "diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer"
    ).StableUnCLIPImageNormalizer
    normalizer = normalizer_class(WIDTH)
    with torch.no_grad():
        normalizer.mean.copy_(torch.linspace(-1, 2, WIDTH)[None])
        normalizer.std.copy_(torch.linspace(0.5, 3, WIDTH)[None])
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=None, image_encoder=vision, image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"), tokenizer=None,
        text_encoder=text, unet=unet, vae=vae,
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, **scheduler_config()),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    parts = {"unet.": unet, "vae.": vae, "image_normalizer.": normalizer, "text_encoder.": text}
    tensors = official_tensors(parts)
    config = {
        "unet": dict(unet.config), "vae": dict(vae.config), "text_encoder": text.config.to_dict(),
        "image_normalizer": dict(normalizer.config), "scheduler": dict(pipeline.scheduler.config),
        "image_noising_scheduler": dict(pipeline.image_noising_scheduler.config),
    }  # fmt: skip
    settings = official.KIND.settings(config, {name: tuple(x.shape) for name, x in tensors.items()})
    with jax.default_matmul_precision("highest"):
        model = codec_world.filled(lambda: official.KIND.build(settings), official.KIND.layout(settings), tensors)
    return World(pipeline, text, tensors, settings, model)


@pytest.fixture(autouse=True)
def _precise():
    with jax.default_matmul_precision("highest"):
        yield


def channels_last(x):
    return x.numpy().transpose(0, 2, 3, 1)


def close(ours, theirs):
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < 1e-5, error


@torch.no_grad()
def test_unet(world):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(BATCH, 4, 8, 8, generator=generator)
    context = torch.randn(BATCH, 5, 16, generator=generator)
    condition = torch.randn(BATCH, 2 * WIDTH, generator=generator)
    times = torch.tensor([7, 901])
    theirs = world.pipeline.unet(x, times, context, class_labels=condition).sample
    arguments = (channels_last(x), times.numpy(), context.numpy(), condition.numpy())
    ours = jax.jit(lambda *a: world.model.unet(*a))(*arguments)
    close(ours, channels_last(theirs))


@torch.no_grad()
def test_autoencoder(world):
    generator = torch.Generator().manual_seed(6)
    latents = torch.randn(BATCH, 4, 6, 10, generator=generator)
    theirs = world.pipeline.vae.decode(latents).sample
    ours = jax.jit(lambda x: world.model.decoder(world.model.before_decoder(x)))(channels_last(latents))
    close(ours, channels_last(theirs))
    # The encoder is no part of unCLIP, but of the same making.
    settings = world.model.settings.vae

    def build():
        return Encoder(settings, 2 * settings.latent, rngs=nnx.Rngs(0))

    renames = {"levels.": "down_blocks.", "resample": "downsamplers.0.conv", "norm_out": "conv_norm_out"}

    def names(path):
        for ours, theirs in {**renames, "mid.": "decoder.mid."}.items():
            path = path.replace(ours, theirs)
        if "mid." in path:
            return tuple(n.replace("vae.decoder.", "vae.encoder.") for n in official._names(path))
        return (f"vae.encoder.{path.replace('shortcut', 'conv_shortcut')}",)

    encoder = codec_world.filled(build, rules.mirrored(nnx.eval_shape(build), names), world.tensors)
    pixels = torch.randn(BATCH, 3, 12, 20, generator=generator)
    close(jax.jit(lambda x: encoder(x))(channels_last(pixels)), channels_last(world.pipeline.vae.encoder(pixels)))


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_text_encoder(activation):
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=9, hidden_act=activation,
    )  # fmt: skip
    theirs = randomized(transformers.CLIPTextModel(config), 3)
    settings = ClipTextSettings(50, 9, 16, 3, 4, 24, activation)
    ours = codec_world.filled(
        lambda: ClipText(settings, rngs=nnx.Rngs(0)), official.text_layout(settings, ""), theirs.state_dict()
    )
    for length in (9, 4):
        ids = torch.randint(50, (3, length), generator=torch.Generator().manual_seed(length))
        close(jax.jit(lambda ids: ours(ids))(ids.numpy()), theirs(ids).last_hidden_state.numpy())


@torch.no_grad()
def test_the_stored_prompt_is_the_empty_one(world):
    ids = [[49406, 49407] + [0] * 75]
    np.testing.assert_array_equal(empty_prompt(77), ids)
    close(world.model.prompt[...], world.text(torch.tensor(ids)).last_hidden_state[0].numpy())


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 300])
def test_the_noised_embedding(world, level):
    generator = torch.Generator().manual_seed(7)
    embedding, noise = torch.randn(2, BATCH, WIDTH, generator=generator)
    theirs = world.pipeline.noise_image_embeddings(embedding, level, noise)
    close(world.model.condition(embedding.numpy(), noise.numpy(), level), theirs.numpy())


@torch.no_grad()
@pytest.mark.parametrize(("scheduler", "steps", "guidance"), [("ddim", 5, 10.0), ("pndm", 5, 10.0), ("ddim", 5, 2.0)])
def test_images_are_those_of_the_pipeline(world, scheduler, steps, guidance):
    classes = {"ddim": diffusers.DDIMScheduler, "pndm": diffusers.PNDMScheduler}
    extra = {"ddim": {"clip_sample": False}, "pndm": {"skip_prk_steps": True}}[scheduler]
    world.pipeline.scheduler = classes[scheduler](**scheduler_config(), **extra)
    embedding = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(8))
    latents = torch.randn(BATCH, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    noise = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(10))
    prompt = world.text(torch.tensor([[49406, 49407] + [0] * 75])).last_hidden_state.repeat(BATCH, 1, 1)
    theirs = world.pipeline(
        prompt_embeds=prompt, negative_prompt_embeds=prompt, image_embeds=embedding, latents=latents,
        generator=torch.Generator().manual_seed(10), num_inference_steps=steps, guidance_scale=guidance,
        output_type="np",
    ).images  # fmt: skip
    ours = world.model.generate(
        embedding.numpy(), steps=steps, guidance=guidance, scheduler=scheduler, embedding_noise=noise.numpy(),
        latents=channels_last(latents),
    )  # fmt: skip
    assert ours.shape == (BATCH, 16, 16, 3)
    assert np.std(theirs) > 0.1  # not all clipped to one value
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_rows_do_not_depend_on_each_other_and_noise_comes_from_the_key(world):
    embedding = np.random.default_rng(0).normal(size=(BATCH, WIDTH)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(BATCH, WIDTH)).astype(np.float32)
    latents = np.random.default_rng(2).normal(size=(BATCH, 8, 8, 4)).astype(np.float32)
    options = {"steps": 5, "guidance": 3.0}
    whole = world.model.generate(embedding, **options, embedding_noise=noise, latents=latents)
    alone = world.model.generate(embedding[1:2], **options, embedding_noise=noise[1:2], latents=latents[1:2])
    np.testing.assert_allclose(whole[1:2], alone, atol=1e-4)
    first, again, other = (world.model.generate(embedding, jax.random.key(k), **options) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).mean() > 0.01
    with pytest.raises(ValueError, match="needs a key"):
        world.model.generate(embedding, **options)


@pytest.mark.slow
def test_half_precision_weights_give_nearly_the_same_image(world):
    graph, state = nnx.split(world.model)
    half = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
    embedding = np.random.default_rng(0).normal(size=(1, WIDTH)).astype(np.float32)
    images = [m.generate(embedding, jax.random.key(3), steps=5, guidance=1.0) for m in (world.model, half)]
    assert images[1].dtype == jnp.float32
    assert np.abs(np.asarray(images[0]) - np.asarray(images[1])).mean() < 0.02


def test_attention_in_blocks_is_attention(monkeypatch):
    key = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key[i], (2, n, 2, 4)) for i, n in enumerate((37, 25, 25)))
    whole = resnet2d.attend(q, k, v)
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / 2
    expected = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(whole, np.einsum("bhnm,bmhd->bnhd", expected, v), atol=1e-5)
    monkeypatch.setattr(resnet2d, "QUERY_BLOCK", 10)
    text = str(jax.make_jaxpr(resnet2d.attend)(q, k, v))
    assert "scan" in text and "37,25" not in text
    np.testing.assert_allclose(jax.jit(resnet2d.attend)(q, k, v), whole, atol=1e-6)


def test_every_official_tensor_is_used_or_ignored(world):
    layout = official.KIND.layout(world.settings)
    used = {n for rule in layout.values() for n in rule.choose(world.tensors).names}
    left = [n for n in world.tensors.keys() - used if not any(re.fullmatch(p, n) for p in official.KIND.ignored)]
    assert left == []
    assert layout.keys() == weights.flatten(world.model).keys()
    for lost in used:
        without = {n: x for n, x in world.tensors.items() if n != lost}
        assert any(rule.choose(without) is None for rule in layout.values())


def test_older_names_of_the_same_tensors(world):
    old = {}
    for name, x in world.tensors.items():
        if name.startswith("vae."):
            for new, before in official.OLD_ATTENTION.items():
                name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
            if "proj_attn.weight" in name or "query.weight" in name:
                x = x[:, :, None, None]  # as 1 × 1 convolutions
        old[name.replace("text_encoder.", "text_encoder.text_model.")] = x
    assert old.keys() != world.tensors.keys()
    layout = official.KIND.layout(world.settings)
    model = codec_world.filled(lambda: official.KIND.build(world.settings), layout, old)
    found, expected = weights.flatten(model), weights.flatten(world.model)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)


def test_conversion_of_a_published_folder(world, tmp_path):
    world.pipeline.save_pretrained(tmp_path / "unclip")
    convert.convert([tmp_path / "unclip"], "unclip", tmp_path / "unclip.safetensors")
    expected = weights.flatten(world.model)
    found, settings = weights.read(tmp_path / "unclip.safetensors")
    # Other tests exchange the pipeline's scheduler.
    wanted = json.loads(json.dumps(world.settings)) | {"sampler": settings["codec"]["sampler"]}
    assert found.keys() == expected.keys() and settings["codec"] == wanted
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, atol=1e-6, err_msg=name)


def config_of(world):
    pipeline = world.pipeline
    return {
        "unet": dict(pipeline.unet.config), "vae": dict(pipeline.vae.config),
        "text_encoder": world.text.config.to_dict(), "image_normalizer": {"embedding_dim": WIDTH},
        "scheduler": scheduler_config() | {"skip_prk_steps": True},
        "image_noising_scheduler": dict(pipeline.image_noising_scheduler.config),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"class_embed_type": None}, "not the U-Net of an unCLIP"),
        ("unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ("unet", {"up_block_types": ("UpBlock2D",) * 2}, "arrangement"),
        ("unet", {"sample_size": 9}, "multiples of 2"),
        ("vae", {"shift_factor": 0.1}, "shift_factor"),
        ("scheduler", {"prediction_type": "sample"}, "prediction"),
        ("scheduler", {"clip_sample": True}, "clip_sample"),
        ("text_encoder", None, "No configuration in text_encoder/"),
    ],
)
def test_other_networks_are_refused(world, part, change, message):
    config = config_of(world)
    config[part] = {**config[part], **change} if change else {}
    with pytest.raises(UserError, match=message):
        official.KIND.settings(config, {})


def test_settings_survive_json(world):
    again = nnx.eval_shape(lambda: unclip.build(json.loads(json.dumps(world.settings))))
    assert again.settings == world.model.settings
    assert world.model.settings.sampler.skip_prk and world.model.settings.sampler.offset == 1
    assert world.model.settings.embedding_noise.betas == "squaredcos_cap_v2"


@pytest.mark.slow
def test_parameters_of_the_published_size():
    def count(module):
        return sum(math.prod(x.shape) for _, x in nnx.to_flat_state(nnx.state(module)))

    ours = nnx.eval_shape(lambda: unclip.build(dataclasses.asdict(unclip.UnclipSettings())))
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            sample_size=96, attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True,
            class_embed_type="projection", projection_class_embeddings_input_dim=2048,
        )  # fmt: skip
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
        )  # fmt: skip
    assert count(ours.unet) == sum(p.numel() for p in unet.parameters()) == 870_173_124
    assert count(ours.decoder) == sum(p.numel() for p in vae.decoder.parameters())
    settings = AutoencoderSettings((128, 256, 512, 512), 2, 4)
    encoder = nnx.eval_shape(lambda: Encoder(settings, 8, rngs=nnx.Rngs(0)))
    assert count(encoder) == sum(p.numel() for p in vae.encoder.parameters())
    text = nnx.eval_shape(lambda: ClipText(ClipTextSettings(), rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        theirs = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408, hidden_size=1024, intermediate_size=4096, num_hidden_layers=23,
                num_attention_heads=16, hidden_act="gelu",
            )
        )  # fmt: skip
    assert count(text) == sum(p.numel() for p in theirs.parameters())
