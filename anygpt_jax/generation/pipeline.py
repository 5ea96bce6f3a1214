"""A checkpoint and its tokenizers put together: media in, media out."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from anygpt_jax.cache import Manifest
from anygpt_jax.errors import UserError
from anygpt_jax.formats.base import Format
from anygpt_jax.formats.registry import OWN, by_name
from anygpt_jax.formats.released import is_legacy
from anygpt_jax.generation import beam, round_trip
from anygpt_jax.generation.answer import Answer
from anygpt_jax.generation.automaton import ANY, Free, Marks, Plan
from anygpt_jax.generation.engine import Engine
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.modalities import base
from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.templates import TEXT, Segment
from anygpt_jax.training.checkpoints import LoadedModel, restore_model
from anygpt_jax.training.compiler import keep_compiled
from anygpt_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Everything between a person's media and the model's."""

    decoder: Decoder
    engine: Engine
    formatter: Format
    tokenizers: Mapping[str, ModalityTokenizer]
    step: int  # of the checkpoint

    @classmethod
    def build(
        cls,
        model: LoadedModel,
        tokenizers: Mapping[str, ModalityTokenizer],
        settings: Settings,
        mesh: Mesh | None = None,
        *,
        format: str = OWN,
        text_from: pathlib.Path | None = None,
    ) -> Pipeline:
        """Raises UserError if a tokenizer is not the one that the model's vocabulary was made for.

        `text_from` is the folder of a converted model's tokenizer files; None: the text tokenizer is our own.
        """
        text = TextTokenizer.load(text_from / "tokenizer.model") if text_from else TextTokenizer.load()
        check_tokenizers(model.vocabulary, tokenizers, text)
        grammars = {name: tokenizer.grammar for name, tokenizer in tokenizers.items()}
        spoken = by_name(format, model.vocabulary, text, legacy=text_from is None or is_legacy(text_from))
        marks = Marks(spoken.closers, spoken.dividers)
        engine = Engine(model.decoder, model.vocabulary, grammars, settings, spoken, mesh, marks)
        return cls(model.decoder, engine, spoken, tokenizers, model.step)

    @classmethod
    def load(cls, config: ml_collections.ConfigDict, settings: Settings | None = None) -> Pipeline:
        """The newest of the config's checkpoints, with the tokenizers that the config names.

        With `config.generate.tensor_parallel` above 1 the model lies on so many devices.
        """
        workdir = pathlib.Path(config.workdir)
        keep_compiled(workdir / "compiled" if workdir.is_dir() else _own_cache(), config.train)
        devices = int(config.generate.get("tensor_parallel", 1))
        mesh = make_mesh({"tensor": devices}) if devices > 1 else None
        model = restore_model(checkpoints_of(config), mesh=mesh)
        tokenizers = base.of_config(config)
        if (workdir / "cache" / "manifest.json").is_file():
            check_fingerprints(Manifest.load(workdir / "cache"), tokenizers)
        files = checkpoints_of(config) / "tokenizer"
        return cls.build(
            model,
            tokenizers,
            settings or Settings.from_config(config.generate),
            mesh,
            format=config.get("format", OWN),
            text_from=files if (files / "tokenizer.model").is_file() else None,
        )

    def prompt(self, segments: Sequence[Segment], plan: Plan = ANY) -> np.ndarray:
        """int32[N]: the turns (media already as codes) and the opening of an answer by this plan."""
        first = None if plan == ANY or isinstance(plan, Free) else plan if isinstance(plan, str) else plan[0]
        return self.formatter.prompt(segments, first)

    def answers(
        self, requests: Sequence[Request], *, description: str | None = None, beams: int | None = None
    ) -> list[Answer]:
        """One answer a request, in their order: by beams where all are for text alone and it is greedy, or drawn.

        `beams` is a plain search of so many, as published evaluations ask for, whatever the settings say.
        """
        settings = self.engine.settings
        if beams is not None:
            settings = dataclasses.replace(settings, beams=beams, length_penalty=1.0, round_trip=0.0)
        if not all(self.may_search(request, settings.beams) for request in requests):
            return self.engine.answer(requests, description=description)
        found: list[list[tuple[Answer, float]]] = [[] for _ in requests]
        for cap in {request.max_new_tokens for request in requests}:
            which = [i for i, request in enumerate(requests) if request.max_new_tokens == cap]
            searched = beam.search(
                self.engine,
                [requests[i].prompt for i in which],
                (TEXT,),
                beams=settings.beams,
                length_penalty=settings.length_penalty,
                max_new_tokens=cap,
            )
            for i, answers in zip(which, searched, strict=True):
                found[i] = answers
        best = (
            self._reranked(requests, found, settings.round_trip)
            if settings.round_trip
            else [answers[0][0] for answers in found]
        )
        return [dataclasses.replace(one, seed=request.seed) for one, request in zip(best, requests, strict=True)]

    def may_search(self, request: Request, beams: int | None = None) -> bool:
        """Whether `answers` searches for the answer by beams, those of the settings if none are named: of greedy text."""
        if (self.engine.settings.beams if beams is None else beams) < 2:
            return False
        return request.plan in (TEXT, (TEXT,)) and self.engine.sampling_of(request)[0].temperature == 0

    def _reranked(
        self, requests: Sequence[Request], found: Sequence[list[tuple[Answer, float]]], weight: float
    ) -> list[Answer]:
        """Of every request's beams the one that finds its medium again best, where there is one medium."""
        media = [round_trip.medium_of(np.asarray(r.prompt), self.engine.vocabulary) for r in requests]
        flat = [(i, k, medium) for i, medium in enumerate(media) if medium for k in range(len(found[i]))]
        if not flat:
            return [answers[0][0] for answers in found]
        told = round_trip.scores(
            self.decoder, self.formatter, [medium for _, _, medium in flat], [found[i][k][0] for i, k, _ in flat]
        )
        total = [[score for _, score in answers] for answers in found]
        for (i, k, _), score in zip(flat, told.tolist(), strict=True):
            total[i][k] += weight * score
        return [answers[int(np.argmax(scores))][0] for answers, scores in zip(found, total, strict=True)]

    def media(self, modality: str, answers: Sequence[Answer]) -> list[Any]:
        """The first medium of one modality in every answer: str, or what its tokenizer decodes; None if absent."""
        found = [answer.first(modality) for answer in answers]
        if modality == TEXT:
            return found
        present = [i for i, codes in enumerate(found) if codes is not None]
        decoded = self.tokenizers[modality].decode([np.asarray(found[i]) for i in present]) if present else []
        media: list[Any] = [None] * len(found)
        for i, medium in zip(present, decoded, strict=True):
            media[i] = medium
        return media


def _own_cache() -> pathlib.Path:
    """Where programs are kept for a model that has no run's folder here, as the shipped one."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anygpt-jax" / "compiled"


def checkpoints_of(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Where a config's model is read from: the checkpoints that it names, as the shipped one does, or its workdir's."""
    return pathlib.Path(config.get("checkpoints") or pathlib.Path(config.workdir) / "checkpoints")


def check_tokenizers(vocabulary: Vocabulary, tokenizers: Mapping[str, ModalityTokenizer], text: TextTokenizer) -> None:
    """UserError unless text and codes mean the ids that the vocabulary gave them."""
    if text.fingerprint != vocabulary.text_fingerprint:
        raise UserError(
            f"The checkpoint was trained with text tokenizer {vocabulary.text_fingerprint[:12]} and the one in use "
            f"is {text.fingerprint[:12]}; train again or install the version it was trained with."
        )
    for name, tokenizer in tokenizers.items():
        size = vocabulary.block(name).size
        if tokenizer.codebook_size != size:
            raise UserError(
                f"The checkpoint knows {size} {name} codes and the {name} tokenizer has {tokenizer.codebook_size}; "
                "use the tokenizer it was trained with, or tokenize and train again."
            )


def check_fingerprints(manifest: Manifest, tokenizers: Mapping[str, ModalityTokenizer]) -> None:
    """UserError if the cache that the checkpoint learned from was written by other tokenizers."""
    for name, tokenizer in tokenizers.items():
        known = manifest.tokenizers.get(name)
        if known is not None and known != tokenizer.fingerprint:
            raise UserError(
                f"The token cache was made with {name} tokenizer {known[:12]} and the one in use is "
                f"{tokenizer.fingerprint[:12]}: its codes mean something else; tokenize and train again."
            )
