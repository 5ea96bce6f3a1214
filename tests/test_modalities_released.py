"""Modality tokenizers of published networks, in small sizes on random weights: what the protocol promises."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import Audio
from anygpt_jax.modalities.codecs import encodec, janus_vq, released, seed2, soundstorm, unclip, weights
from anygpt_jax.modalities.codecs.autoencoder import AutoencoderSettings
from anygpt_jax.modalities.codecs.clip_text import ClipTextSettings
from anygpt_jax.modalities.codecs.conformer import ConformerSettings
from anygpt_jax.modalities.codecs.encodec import EncodecSettings
from anygpt_jax.modalities.codecs.janus_vq import JanusVQSettings
from anygpt_jax.modalities.codecs.qformer import QFormerSettings
from anygpt_jax.modalities.codecs.seanet import SeanetSettings
from anygpt_jax.modalities.codecs.seed2 import Seed2Settings
from anygpt_jax.modalities.codecs.soundstorm import SoundStormSettings
from anygpt_jax.modalities.codecs.unclip import UnclipSettings
from anygpt_jax.modalities.codecs.unet import UNetSettings
from anygpt_jax.modalities.codecs.vit import VitSettings

MUSIC = EncodecSettings(8000, SeanetSettings(latent=8, filters=4, ratios=(5, 4, 2)), codebooks=3, codebook_size=16)
SPEECH = EncodecSettings(
    8000,
    SeanetSettings(8, 4, (5, 4, 2), bidirectional=True, conv_shortcut=True, activation="snake"),
    codebooks=4,
    codebook_size=16,
)
STAGE = SoundStormSettings(ConformerSettings(16, 2, 2, 8, 32, 16, 5), semantic=16, levels=3, codebook_size=16)
SEED2 = Seed2Settings(
    VitSettings(28, 14, 16, 2, 2, 32), QFormerSettings(8, 12, 2, 2, 24, 2, 16), 32, 4, 1, 2, 24, (6, 2), 16
)
UNCLIP = UnclipSettings(
    UNetSettings((8, 16), (2, 2), (True, False), 1, 4, 8, 32, 4), AutoencoderSettings((8, 16), 1, 4, 4),
    ClipTextSettings(32, 5, 8, 1, 2, 16), size=(8, 8),
)  # fmt: skip
VQ = JanusVQSettings((32, 32), 1, 8, 32, 4)
NETWORKS = {
    "encodec": (encodec, MUSIC), "speechtokenizer": (encodec, SPEECH), "soundstorm": (soundstorm, STAGE),
    "seed2": (seed2, SEED2), "unclip": (unclip, UNCLIP), "janus_vq": (janus_vq, VQ),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A converted file of each kind: every weight random."""
    folder, rng = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    for kind, (module, settings) in NETWORKS.items():
        as_json = dataclasses.asdict(settings)
        abstract = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda m=module, s=as_json: m.build(s))))
        tensors = {weights.dotted(keys): _random(rng, keys[-1], v.shape) for keys, v in abstract}
        weights.save(folder / f"{kind}.safetensors", tensors, {"kind": kind, "codec": as_json})
    return {kind: str(folder / f"{kind}.safetensors") for kind in NETWORKS}


def _random(rng, name, shape):
    """Scales near 1; matrices that keep the size of what they are given; everything else of about 1/3."""
    if name in ("scale", "alpha", "std"):
        return rng.uniform(0.7, 1.3, shape).astype(np.float32)
    spread = np.prod(shape[:-1]) ** -0.5 if name == "kernel" else 0.3
    return (spread * rng.standard_normal(shape)).astype(np.float32)


def sounds(rate=8000):
    rng = np.random.default_rng(1)
    return [
        Audio((0.3 * rng.standard_normal(n)).astype(np.float32), rate) for n in (1641, 39, 1, 641, 640)
    ]  # two lengths of compiled programs


def pictures():
    rng = np.random.default_rng(1)
    return [rng.integers(256, size=(h, w, 3), dtype=np.uint8) for h, w in ((20, 30), (28, 28), (64, 16))]


@pytest.fixture(scope="module")
def tokenizers(files):
    return {
        "music": base.get("encodec", modality="music", weights=files["encodec"], seconds=1.0),
        "music of two levels": base.get("encodec", weights=files["encodec"], seconds=1.0, levels=2),
        "speech": base.get(
            "speechtokenizer", weights=files["speechtokenizer"], acoustic=files["soundstorm"], seconds=1.0
        ),
        "image": base.get("seed2", weights=files["seed2"], decoder=files["unclip"], steps=2, batch=2),
        "vq": base.get("janus_vq", weights=files["janus_vq"], size=24, batch=2),
    }


NAMES = ["music", "music of two levels", "speech", "image", "vq"]


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_protocol(name, tokenizers):
    tokenizer = tokenizers[name]
    assert isinstance(tokenizer, base.ModalityTokenizer)
    assert tokenizer.name in base.SYMBOLS and tokenizer.symbol == base.SYMBOLS[tokenizer.name]
    assert max(r[1] for r in tokenizer.grammar.cycle) == tokenizer.codebook_size
    assert len(tokenizer.fingerprint) == 64
    assert tokenizer.encode([]) == [] and tokenizer.decode([]) == []


@pytest.mark.parametrize("name", NAMES)
def test_codes_are_the_grammars_and_no_item_depends_on_its_mates(name, tokenizers):
    tokenizer = tokenizers[name]
    media = pictures() if tokenizer.name == "image" else sounds()
    codes = tokenizer.encode(media)
    decoded = tokenizer.decode(codes)
    assert len({c.tobytes() for c in codes}) > 1, "random media have codes of their own"
    for one, row, back in zip(media, codes, decoded, strict=True):
        assert tokenizer.grammar.problem(row) is None and row.dtype == np.int32
        np.testing.assert_array_equal(tokenizer.encode([one])[0], row)
        alone = tokenizer.decode([row])[0]
        if tokenizer.name == "image":
            np.testing.assert_array_equal(alone, back)
            assert back.dtype == np.uint8 and back.std() > 0
        else:
            np.testing.assert_array_equal(alone.samples, back.samples)
            assert len(back.samples) == -(-len(one.samples) // 40) * 40
        again = tokenizer.load(tokenizer.save(back))
        np.testing.assert_array_equal(tokenizer.encode([again])[0], tokenizer.encode([back])[0]) if (
            tokenizer.name == "image"
        ) else None


def test_codes_are_those_of_the_network(tokenizers, files):
    module = released.load(files["encodec"], "encodec").module
    sound = sounds()[0]
    theirs = np.asarray(module.encode(sound.samples[None], np.array([len(sound.samples)])))[0]
    codes = tokenizers["music"].encode([sound])[0].reshape(-1, 3)
    np.testing.assert_array_equal(codes - np.arange(3) * 16, theirs)
    np.testing.assert_array_equal(tokenizers["music of two levels"].encode([sound])[0].reshape(-1, 2), codes[:, :2])


@pytest.mark.slow
def test_speech_takes_the_voice_of_a_prompt_and_all_codes_decode_as_they_are(tokenizers, files):
    speech = tokenizers["speech"]
    media = sounds()[:2]
    codes, everything = speech.encode(media), speech.encode_all(media)
    for semantic, whole in zip(codes, everything, strict=True):
        np.testing.assert_array_equal(whole[:, 0], semantic)
        assert whole.shape[1] == 4
    plain = speech.decode(codes)
    prompted = speech.decode(codes, prompt=sounds()[3])
    other = speech.decode(codes, prompt=Audio(sounds()[3].samples[::-1].copy(), 8000))
    exact = speech.decode(everything)
    bare = base.get("speechtokenizer", weights=files["speechtokenizer"], seconds=1.0)
    semantic_alone = bare.decode(codes)
    np.testing.assert_array_equal(semantic_alone[0].samples, speech.decode(codes, acoustic=False)[0].samples)
    versions = [plain, prompted, other, exact, semantic_alone]
    assert len({v[0].samples.tobytes() for v in versions}) == len(versions)
    assert bare.fingerprint == speech.fingerprint, "the acoustic stage changes no code"
    mixed = speech.decode([codes[0], everything[1]])
    np.testing.assert_array_equal(mixed[0].samples, plain[0].samples)
    np.testing.assert_array_equal(mixed[1].samples, exact[1].samples)


def test_pictures_are_a_function_of_their_codes_and_the_seed(tokenizers, files):
    image = tokenizers["image"]
    codes = image.encode(pictures())
    decoded = image.decode([codes[0], codes[0], codes[1]])
    np.testing.assert_array_equal(decoded[0], decoded[1])
    other = base.get("seed2", weights=files["seed2"], decoder=files["unclip"], steps=2, batch=2, seed=1)
    assert (other.decode(codes[:1])[0] != decoded[0]).any()
    assert decoded[0].shape == (16, 16, 3)


def test_without_a_decoder_pictures_are_read_and_not_made(files, tokenizers):
    reader = base.get("seed2", weights=files["seed2"])
    codes = reader.encode(pictures())
    np.testing.assert_array_equal(codes[0], tokenizers["image"].encode(pictures())[0])
    with pytest.raises(UserError, match="names no decoder"):
        reader.decode(codes)


@pytest.mark.parametrize("name", NAMES)
def test_forbidden_codes_and_bad_media_are_refused(name, tokenizers):
    tokenizer = tokenizers[name]
    with pytest.raises(ValueError, match="cannot be decoded"):
        tokenizer.decode([np.array([tokenizer.codebook_size], np.int32)])
    if tokenizer.name == "image":
        with pytest.raises(UserError, match=r"uint8\[H, W, 3\]"):
            tokenizer.encode([np.zeros((4, 4), np.uint8)])
    else:
        with pytest.raises(UserError, match="cut it first"):
            tokenizer.encode([Audio(np.zeros(8001, np.float32), 8000)])
        with pytest.raises(UserError, match="at least"):
            tokenizer.encode([Audio(np.zeros(0, np.float32), 8000)])


def test_levels_and_sizes_that_the_network_has_not_are_refused(files):
    for levels in (0, 4, -1):
        with pytest.raises(UserError, match=f"3 codebooks; levels must be 1 … 3, not {levels}"):
            base.get("encodec", weights=files["encodec"], levels=levels)
    assert base.get("encodec", weights=files["encodec"], seconds=1.0, levels=None).levels == 3
    with pytest.raises(UserError, match="multiple of 2"):
        base.get("janus_vq", weights=files["janus_vq"], size=25)


def test_a_batch_is_sharded_over_devices_with_the_same_codes(files):
    from jax.sharding import NamedSharding, PartitionSpec

    module = released.load(files["encodec"], "encodec").module
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    sound = np.random.default_rng(0).standard_normal((8, 800)).astype(np.float32) * 0.3
    lengths = np.arange(100, 900, 100, dtype=np.int32)
    encode = jax.jit(module.encode)
    alone = encode(sound, lengths)
    sharded = encode(jax.device_put(sound, rows), jax.device_put(lengths, rows))
    assert sharded.sharding.is_equivalent_to(rows, sharded.ndim)
    frames = -(-lengths // 40)
    for a, b, n in zip(np.asarray(alone), np.asarray(sharded), frames, strict=True):
        np.testing.assert_array_equal(a[:n], b[:n])
