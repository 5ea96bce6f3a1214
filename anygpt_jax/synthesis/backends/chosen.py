"""The backend that a config names for a modality, behind its response cache."""

from __future__ import annotations

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.backends import Backend
from anygpt_jax.synthesis.backends.cached import Cached
from anygpt_jax.synthesis.job import Job
from anygpt_jax.templates import TEXT

KINDS = ("embedded", "http", "local")


FOLDER = "answers"


def backend_of(job: Job, modality: str) -> Cached:
    """UserError for a kind that there is not."""
    section = job.settings[modality]
    backend: Backend
    if section.backend == "embedded" and modality == TEXT:
        from anygpt_jax.synthesis.backends.embedded_text import EmbeddedText

        backend = EmbeddedText()
    elif section.backend == "embedded":
        from anygpt_jax.synthesis.backends.embedded_media import EmbeddedMedia

        backend = EmbeddedMedia(modality)
    elif section.backend == "http":
        from anygpt_jax.synthesis.backends.http import Http

        backend = Http.from_config(section, modality, job.folder / "spent")
    elif section.backend == "local" and modality == TEXT:
        from anygpt_jax.synthesis.backends.local_text import LocalText

        backend = LocalText.from_config(section)
    else:
        known = ", ".join(KINDS if modality == TEXT else KINDS[:2])
        raise UserError(f"config.synthesize.{modality}.backend is '{section.backend}'; there are {known}.")
    return Cached(backend, job.folder / FOLDER / modality, retry_failures=bool(job.settings.retry_failures))
