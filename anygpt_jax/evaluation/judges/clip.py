"""CLIP (Radford et al. 2021, arXiv 2103.00020): pictures and texts in one space, where the cosine is their likeness.

CLIP-I is the cosine of two pictures, CLIP-T that of a picture and a text (CLIPScore without its factor of 2.5). Each
network has its own scale. AnyGPT and its peers print figures of ViT-L: their "CLIP scores" of 0.6 to 0.7 are between
two pictures, for a picture and its caption have about 0.25.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation import judges
from anygpt_jax.evaluation.judges import folders
from anygpt_jax.evaluation.judges.clip_network import IGNORED, LEGACY_END, ClipConfig, ClipNetwork, layout
from anygpt_jax.evaluation.judges.folders import read_json
from anygpt_jax.interop.tokenizers import files
from anygpt_jax.modalities.codecs import batching, released, weights

BATCH = 16
BICUBIC = 3  # Pillow's number of it, as in preprocessor_config.json


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A picture's shortest side becomes `size` pixels (bicubic), its middle `crop`² of them is kept; then 0..1 and
    (x - mean) / std of red, green and blue: the arithmetic of Transformers' CLIPImageProcessor on PIL images."""

    size: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_json(cls, path: pathlib.Path) -> Preprocessing:
        """Of a preprocessor_config.json. UserError if it wants other steps than these."""
        config = read_json(path, "CLIPModel")
        steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
        if off := [step for step in steps if not config.get(step, True)]:
            raise UserError(f"{path} leaves out {', '.join(off)}, which CLIP needs; take the one of a CLIPModel.")
        edge, crop = config.get("size", 224), config.get("crop_size", 224)
        size: int = edge.get("shortest_edge", 0) if isinstance(edge, dict) else edge
        height, width = (crop.get("height", 0), crop.get("width", 0)) if isinstance(crop, dict) else (crop, crop)
        scale = config.get("rescale_factor", 1 / 255)
        if not 0 < height == width <= size or config.get("resample", BICUBIC) != BICUBIC:
            raise UserError(
                f"{path} does not ask for a shortest edge, a square crop of it and bicubic resizing (resample 3), "
                "as CLIP does; take the one of a CLIPModel."
            )
        if abs(scale * 255 - 1) > 1e-6:
            raise UserError(f"{path} has the rescale_factor {scale}, not 1/255; take the one of a CLIPModel.")
        if not config.get("image_mean") or not config.get("image_std"):
            raise UserError(f"{path} has no image_mean and image_std; take the one of a CLIPModel.")
        return cls(size, height, tuple(config["image_mean"]), tuple(config["image_std"]))

    def __call__(self, picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "S S 3"]:
        """float32. ValueError for what is no uint8[h, w, 3]."""
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
            raise ValueError(f"pictures are uint8[h, w, 3], not {picture.dtype}{list(picture.shape)}")
        height, width = picture.shape[:2]
        short = min(height, width)
        width, height = int(self.size * width / short), int(self.size * height / short)
        resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        kept = resized[top : top + self.crop, left : left + self.crop].astype(np.float32) / np.float32(255)
        return (kept - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


class Clip:
    """A CLIPModel on this process's first chip, in full float32. Make it by `load`."""

    def __init__(
        self,
        network: ClipNetwork,
        preprocess: Callable[[np.ndarray], np.ndarray],
        tokenize: Callable[[Sequence[str]], Int[np.ndarray, "B N"]],
        width: int,
    ):
        self._preprocess, self._tokenize, self.width = preprocess, tokenize, width
        self._images = released.program(ClipNetwork.images, network, exact=True)
        self._texts = released.program(ClipNetwork.texts, network, exact=True)

    @classmethod
    def load(cls, folder: str | pathlib.Path) -> Clip:
        """Of a Hugging Face CLIPModel's folder: config.json, model.safetensors, preprocessor_config.json,
        tokenizer.json. UserError if one is missing or does not fit the others."""
        folder = pathlib.Path(folder)
        config = ClipConfig.from_json(folder / "config.json")
        preprocessing = Preprocessing.from_json(folder / "preprocessor_config.json")
        if preprocessing.crop != config.vision.image:
            raise UserError(
                f"{folder} crops pictures to {preprocessing.crop} px and its network sees {config.vision.image}; "
                "take config.json and preprocessor_config.json of one and the same network."
            )
        tokenize = tokenizer(folder / "tokenizer.json", config)
        tensors = files.read([folder]).tensors

        def build() -> ClipNetwork:
            return ClipNetwork(config, rngs=weights.rngs())

        network = judges.filled(build, layout(config), tensors, IGNORED, str(folder))
        return cls(network, preprocessing, tokenize, config.projection)

    def images(self, pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "N D"]:
        """float32, of unit length. The pictures may be of any sizes."""
        rows: list[np.ndarray] = []
        for start in range(0, len(pictures), BATCH):  # prepared pictures are large: a batch at a time
            prepared = [self._preprocess(picture) for picture in pictures[start : start + BATCH]]
            rows += batching.filled(self._images, prepared, BATCH)
        return np.array(rows, np.float32).reshape(-1, self.width)

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """float32, of unit length. What of a text is beyond the network's positions (77) is cut off."""
        rows = batching.filled(self._texts, list(self._tokenize(texts)), BATCH) if texts else []
        return np.array(rows, np.float32).reshape(-1, self.width)


def tokenizer(path: pathlib.Path, config: ClipConfig) -> Callable[[Sequence[str]], Int[np.ndarray, "B N"]]:
    """Texts → ids, zeros after their end. UserError if the file is not there or not of the network."""
    loaded = folders.read_tokenizer(path, "CLIPModel", config.text.positions)
    ends = config.end == LEGACY_END or config.end in loaded.encode("").ids
    if not ends or loaded.get_vocab_size() > config.text.vocabulary:
        raise UserError(
            f"{path} has {loaded.get_vocab_size()} tokens and does{'' if ends else ' not'} end a text with "
            f"{config.end}; the network has {config.text.vocabulary}: take the tokenizer.json that came with it."
        )

    return folders.padded(loaded, config.text.positions, 0)
