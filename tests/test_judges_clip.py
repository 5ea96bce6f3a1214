"""CLIP as a judge against Transformers' CLIPModel, image processor and tokenizer, on tiny random networks."""

import json
import math
import re

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from tokenizers import pre_tokenizers

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges import clip_network
from anygpt_jax.evaluation.judges.clip import Clip, Preprocessing
from anygpt_jax.evaluation.judges.clip_network import ClipConfig, ClipNetwork
from anygpt_jax.modalities.codecs import weights

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["a photo of a cat", "", "Two  dogs, 'n' 33 ÄPFEL!", "the cat sat on the mat " * 9]
SIZES = [(61, 40), (28, 28), (33, 97), (20, 21)]  # of pictures; 28 px are kept
END = "<|endoftext|>"


def vocabulary():
    """Bytes, bytes at a word's end, three merges and CLIP's two own tokens, the end with the highest number."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{x}</w>" for x in letters), "ca", "cat</w>", "at</w>", "<|startoftext|>", END]
    return {piece: i for i, piece in enumerate(pieces)}, [("c", "a"), ("a", "t</w>"), ("ca", "t</w>")]


def randomized(model, seed=0):
    """Every parameter random, norms' scales and biases too, so that none can be forgotten."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(noise / math.sqrt(math.prod(p.shape[1:])) if p.ndim > 1 else 0.3 * noise + 0.2)
    return model.eval()


def save(folder, activation="quick_gelu", end=None):
    """A tiny CLIPModel's folder as Transformers writes it; returns (the model, the tokenizer, the image processor)."""
    vocab, merges = vocabulary()
    common = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_act": activation, "intermediate_size": 40}
    config = transformers.CLIPConfig(
        text_config={
            **common, "hidden_size": 24, "vocab_size": len(vocab), "max_position_embeddings": 19,
            "eos_token_id": vocab[END] if end is None else end, "bos_token_id": vocab["<|startoftext|>"],
            "pad_token_id": vocab[END],
        },
        vision_config={**common, "hidden_size": 32, "image_size": 28, "patch_size": 7, "layer_norm_eps": 1e-4},
        projection_dim=12,
    )  # fmt: skip
    model = randomized(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=19)
    tokenizer.save_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 28, "width": 28})
    (folder / "preprocessor_config.json").write_text(processor.to_json_string())
    return model, tokenizer, processor


def pictures(seed=0):
    """Smooth coloured noise, so that resizing matters and its rounding does not hide it."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def normalised(x):
    return (x / x.norm(dim=-1, keepdim=True)).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    save(path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """The folder, to be changed."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.parametrize(("activation", "end"), [("quick_gelu", None), ("gelu", 2)])
def test_the_vectors_are_those_of_transformers(tmp_path, activation, end):
    model, tokenizer, processor = save(tmp_path, activation, end)
    judge = Clip.load(tmp_path)
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(processor(pictures())["pixel_values"]))
        images = normalised(model.get_image_features(pixels).pooler_output)
        ids = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        texts = normalised(model.get_text_features(**ids).pooler_output)
    assert ids["input_ids"].shape[1] == 19  # the longest text is cut off
    np.testing.assert_allclose(judge.images(pictures()), images, atol=1e-5)
    np.testing.assert_allclose(judge.texts(TEXTS), texts, atol=1e-5)
    assert np.abs(texts[0] - texts[2]).max() > 0.01 and np.abs(images[0] - images[1]).max() > 0.01


def test_any_number_of_items_in_any_company(folder):
    judge = Clip.load(folder)
    many = pictures() * 9  # more than two batches
    assert judge.images([]).shape == judge.texts([]).shape == (0, 12)
    found = judge.images(many)
    np.testing.assert_array_equal(found, np.tile(judge.images(pictures()), (9, 1)))
    np.testing.assert_array_equal(judge.texts(TEXTS * 5)[-1], judge.texts(TEXTS[-1:])[0])
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("size", [(61, 40), (224, 224), (480, 641), (1000, 97)])
def test_pictures_are_prepared_as_transformers_does(tmp_path, size):
    processor = transformers.CLIPImageProcessorPil()  # as published: 224 px, CLIP's mean and deviation
    (tmp_path / "p.json").write_text(processor.to_json_string())
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    theirs = np.asarray(processor(picture)["pixel_values"][0]).transpose(1, 2, 0)
    np.testing.assert_allclose(Preprocessing.from_json(tmp_path / "p.json")(picture), theirs, atol=1e-6)


def test_old_files_of_the_release_are_read(tmp_path):
    """openai/clip-vit-*: numbers where dictionaries stand now, and the parts' configurations twice."""
    (tmp_path / "p.json").write_text(
        json.dumps(
            {
                "size": 224,
                "crop_size": 224,
                "resample": 3,
                "do_resize": True,
                "image_mean": [0.5] * 3,
                "image_std": [1] * 3,
            }
        )
    )
    assert Preprocessing.from_json(tmp_path / "p.json") == Preprocessing(224, 224, (0.5,) * 3, (1,) * 3)
    large = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
    config = {
        "model_type": "clip", "projection_dim": 768, "text_config": {**large, "eos_token_id": 2, "hidden_act": "gelu"},
        "text_config_dict": large, "vision_config": {"patch_size": 14}, "vision_config_dict": None,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, theirs = ClipConfig.from_json(tmp_path / "config.json"), transformers.CLIPConfig(**config)
    assert ours.end == theirs.text_config.eos_token_id
    assert ours.text.activation == theirs.text_config.hidden_act == "quick_gelu"
    assert (ours.text.heads, ours.vision.patch) == (12, 14)


def test_every_tensor_of_vit_l_14_has_its_place(tmp_path):
    common = {"num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768, "intermediate_size": 3072}
    large = {"num_hidden_layers": 24, "num_attention_heads": 16, "hidden_size": 1024, "intermediate_size": 4096}
    config = transformers.CLIPConfig(text_config=common, vision_config={**large, "patch_size": 14}, projection_dim=768)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        official = {name: tuple(x.shape) for name, x in transformers.CLIPModel(config).state_dict().items()}
    assert len(official) == 590
    ours = ClipConfig.from_json(tmp_path / "config.json")
    network = nnx.eval_shape(lambda: ClipNetwork(ours, rngs=weights.rngs()))
    expected = {weights.dotted(k): v.shape for k, v in nnx.to_flat_state(nnx.state(network))}
    used = set()
    layout = clip_network.layout(ours)
    assert layout.keys() == expected.keys()
    for path, rule in layout.items():
        names = rule.choose(official).names
        used |= set(names)
        made = rule.choose(official).make(*(np.broadcast_to(np.int8(0), official[name]) for name in names))
        assert made.shape == expected[path]
    assert official.keys() - used == {"logit_scale"}


def test_half_precision_weights_are_read(copy, folder):
    path = copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["vision_model.embeddings.position_ids"] = np.arange(17)[None]  # as old files have it
    halves = {name: x.astype(np.float16) if x.dtype == np.float32 else x for name, x in tensors.items()}
    safetensors.numpy.save_file(halves, path)
    np.testing.assert_allclose(Clip.load(copy).texts(TEXTS), Clip.load(folder).texts(TEXTS), atol=5e-3)


def test_weights_of_another_network_are_refused_in_one_sentence(copy):
    path = copy / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    lost, extra = "vision_model.encoder.layers.1.self_attn.k_proj.bias", "text_model.adapter.weight"
    changed = {name: x for name, x in tensors.items() if name != lost} | {extra: np.zeros(3, np.float32)}
    safetensors.numpy.save_file(changed, path)
    message = rf"lacks 1 of [^(]*\({re.escape(lost)}\) and holds 1 unknown to it \({re.escape(extra)}\); [^.]*\.$"
    with pytest.raises(UserError, match=message):
        Clip.load(copy)
    for name, shape in (("visual_projection.weight", (12, 31)), ("text_model.final_layer_norm.bias", (23,))):
        safetensors.numpy.save_file(tensors | {name: np.zeros(shape, np.float32)}, path)
        with pytest.raises(UserError, match=rf"{re.escape(name)} .*one and the same network"):
            Clip.load(copy)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "siglip"}, "'siglip' model"),
        ("preprocessor_config.json", {"do_center_crop": False}, "do_center_crop"),
        ("preprocessor_config.json", {"resample": 2}, "bicubic"),
        ("preprocessor_config.json", {"size": {"height": 30, "width": 30}}, "shortest edge"),
        ("preprocessor_config.json", {"crop_size": {"height": 28}}, "square crop"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor"),
        ("preprocessor_config.json", {"crop_size": {"height": 24, "width": 24}}, "sees 28"),
        ("preprocessor_config.json", {"image_mean": None}, "image_mean"),
        ("tokenizer.json", {"post_processor": None}, "does not end"),
        ("tokenizer.json", {"model": 1}, "not a tokenizer"),
    ],
)
def test_files_that_do_not_fit_are_refused(copy, file, change, message):
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=message):
        Clip.load(copy)
    path.unlink()
    with pytest.raises(UserError, match=re.escape(file)):
        Clip.load(copy)


def test_what_is_no_picture_is_refused(folder):
    with pytest.raises(ValueError, match="uint8"):
        Clip.load(folder).images([np.zeros((8, 8, 3), np.float32)])
