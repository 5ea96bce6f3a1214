"""The judges of one evaluation, each loaded when a measure first asks for it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio

if TYPE_CHECKING:
    from anygpt_jax.evaluation.judges.clap import Clap
    from anygpt_jax.evaluation.judges.clip import Clip
    from anygpt_jax.evaluation.judges.speaker import SpeakerEncoder


@dataclasses.dataclass(frozen=True)
class Judges:
    """`folder` holds published weights, CLIP's in clip/ and CLAP's in clap/; what ships in packages needs none."""

    folder: pathlib.Path | None = None

    @functools.cached_property
    def clip(self) -> Clip:
        from anygpt_jax.evaluation.judges.clip import Clip

        if self.folder is None or not (self.folder / "clip").is_dir():
            raise UserError(
                "Pictures are judged by CLIP: name the folder that holds openai/clip-vit-large-patch14 as clip/ with --judges."
            )
        return Clip.load(self.folder / "clip")

    @functools.cached_property
    def clap(self) -> Clap:
        from anygpt_jax.evaluation.judges.clap import Clap

        if self.folder is None or not (self.folder / "clap").is_dir():
            raise UserError(
                "Music is judged by CLAP: name the folder that holds laion/larger_clap_music as clap/ with --judges."
            )
        return Clap.load(self.folder / "clap")

    @functools.cached_property
    def speaker(self) -> SpeakerEncoder:
        from anygpt_jax.evaluation.judges.speaker import SpeakerEncoder

        return SpeakerEncoder.load()

    def heard(self, sounds: Sequence[Audio]) -> list[str]:
        """What pocketsphinx hears with the American English model and dictionary of its package."""
        from anygpt_jax.evaluation.judges.recognizer import heard

        return heard(sounds)
