"""Codes to media beside the event loop: what waits is decoded together, up to a batch of the decoders'."""

from __future__ import annotations

import collections
import dataclasses
import inspect
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
from jaxtyping import Int32

from anygpt_jax.modalities.base import Audio, ModalityTokenizer

TOGETHER = 8  # media of a batch at most: what the tokenizers' programs hold


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    modality: str
    voice: Audio | None
    codes: Int32[np.ndarray, " N"]
    future: Future[Any]

    def goes_with(self, other: _Job) -> bool:
        return self.modality == other.modality and self.voice is other.voice


class MediaDecoder:
    """A few threads over the tokenizers. `submit` may be called from any thread."""

    def __init__(self, tokenizers: Mapping[str, ModalityTokenizer], threads: int = 2):
        self.tokenizers = tokenizers
        self._voiced = {n for n, t in tokenizers.items() if "prompt" in inspect.signature(t.decode).parameters}
        self._jobs: collections.deque[_Job] = collections.deque()
        self._ready = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name="media", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, modality: str, codes: Int32[np.ndarray, " N"], voice: Audio | None = None) -> Future[Any]:
        """The medium of one code sequence, when its turn comes; a cancelled one is not decoded."""
        future: Future[Any] = Future()
        job = _Job(modality, voice if modality in self._voiced else None, np.asarray(codes, np.int32), future)
        with self._ready:
            if self._closed:
                future.cancel()
                return future
            self._jobs.append(job)
            self._ready.notify()
        return future

    def close(self) -> None:
        """Ends the threads; what waits is cancelled."""
        with self._ready:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._ready.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._jobs and not self._closed:
                    self._ready.wait()
                if self._closed:
                    return
                batch = [job for job in self._jobs if job.goes_with(self._jobs[0])][:TOGETHER]
                for job in batch:
                    self._jobs.remove(job)
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._decode(batch)

    def _decode(self, batch: list[_Job]) -> None:
        tokenizer, voice = self.tokenizers[batch[0].modality], batch[0].voice
        how = {} if voice is None else {"prompt": voice}
        try:
            media = tokenizer.decode([job.codes for job in batch], **how)
        except Exception as e:  # told to whoever waits
            for job in batch:
                job.future.set_exception(e)
            return
        for job, medium in zip(batch, media, strict=True):
            job.future.set_result(medium)
