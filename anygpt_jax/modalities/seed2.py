"""Pictures as AnyGPT has them: SEED-2's 32 codes, and Stable unCLIP's diffusion for the way back.

The codes hold what a picture shows, not its pixels: what comes back looks alike.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from anygpt_jax.errors import UserError
from anygpt_jax.modalities import pictures
from anygpt_jax.modalities.base import SYMBOLS, Grammar
from anygpt_jax.modalities.codecs import batching, released
from anygpt_jax.modalities.codecs.seed2 import preprocess


class Seed2Images:
    """uint8[H, W, 3] of any size ↔ int32[32].

    `weights` and `decoder` are converted files of SEED-2 and of Stable unCLIP; without the second, pictures are read
    and not written. `steps`, `guidance` and `sampler` ("ddim" or "pndm") are the diffusion's, whose noise comes from
    `seed`: a picture is a function of its codes. `batch` pictures are made at a time.
    """

    def __init__(
        self, weights: str, decoder: str | None = None, modality: str = "image", steps: int = 20,
        guidance: float = 10.0, sampler: str = "pndm", seed: int = 0, batch: int = 8,
    ):  # fmt: skip
        loaded = released.load(weights, "seed2")
        self._codec = codec = loaded.module
        self._unclip = released.load(decoder, "unclip").module if decoder else None
        self._sampling, self._seed, self._batch = (steps, guidance, sampler), seed, batch
        self.name, self.symbol = modality, SYMBOLS.get(modality, modality)
        self.fingerprint = released.fingerprint(loaded.fingerprint)  # the diffusion changes no code
        self.codebook_size = codec.settings.codebook_size
        length = codec.settings.qformer.queries
        self.rate = float(length)
        self.grammar = Grammar(((0, self.codebook_size),), length, length)
        self.load, self.save = pictures.load_picture, pictures.save_png

    def encode(self, media: Sequence[UInt8[np.ndarray, "H W 3"]]) -> list[np.ndarray]:
        """A batch of pictures → int32[32] each."""
        size = self._codec.settings.vit.image
        ready = list(preprocess([pictures.check(m) for m in media], size)) if media else []
        return batching.filled(self._encode, ready, self._batch)

    def decode(self, codes: Sequence[np.ndarray]) -> list[UInt8[np.ndarray, "S S 3"]]:
        """UserError if there is no decoder, ValueError for codes the grammar forbids."""
        if codes and self._unclip is None:
            raise UserError(
                f"config.tokenizers.{self.name} names no decoder, so pictures cannot be made: "
                "`anygpt convert tokenizer --kind unclip` makes one of Stable unCLIP 2.1."
            )
        rows = [np.asarray(row, np.int32) for row in codes]
        for i, row in enumerate(rows):
            if problem := self.grammar.problem(row):
                raise ValueError(f"{self.name} {i} cannot be decoded: {problem}")
        return batching.filled(self._decode, rows, self._batch)

    @functools.cached_property
    def _encode(self):
        return released.program(lambda codec, pixels: codec.encode(pixels), self._codec, exact=True)

    @functools.cached_property
    def _decode(self):
        assert self._unclip is not None
        steps, guidance, sampler = self._sampling

        def decode(codec, unclip, codes):
            embedding = codec.embedding(codes)
            for_embedding, for_latents = jax.random.split(jax.random.key(self._seed))
            shape = (*unclip.settings.size, unclip.settings.unet.channels)
            # The same noise for every picture, so that none depends on its place in a batch.
            noise = jax.random.normal(for_embedding, embedding.shape[1:])
            latents = jax.random.normal(for_latents, shape)
            pixels = unclip.generate(
                embedding, steps=steps, guidance=guidance, scheduler=sampler,
                embedding_noise=jnp.broadcast_to(noise, embedding.shape),
                latents=jnp.broadcast_to(latents, (len(codes), *shape)),
            )  # fmt: skip
            return jnp.round(pixels * 255).astype(jnp.uint8)

        return released.program(decode, self._codec, self._unclip)
