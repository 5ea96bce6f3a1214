"""espeak-ng through ctypes: the library that the package espeakng-loader brings."""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float32

from anygpt_jax.embedded import assets

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: AUDIO_OUTPUT_SYNCHRONOUS
_UTF8, _CHARACTER_POSITION, _RATE = 1, 1, 1  # espeakCHARS_UTF8, POS_CHARACTER, espeakRATE of speak_lib.h
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@contextlib.contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """The library and its sample rate, freshly loaded (some 5 ms).

    It keeps the phase of its voices in static variables that nothing resets, so that otherwise an utterance
    would depend on what was said before it.
    """
    assets.require("espeakng_loader")
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate <= 0:
            raise RuntimeError(f"espeak_Initialize failed with {rate}")
        library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # for its breath noise; else it takes the clock
        yield library, rate
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


def speak(text: str, voice: str, words_per_minute: int) -> tuple[Float32[np.ndarray, " samples"], int]:
    """(samples in -1..1, samples a second) of a text spoken by an espeak voice such as "en-us+f2".

    Raises ValueError for an unknown voice. Not for two threads at once: the library's state is global.
    """
    pieces: list[np.ndarray] = []

    @_Callback
    def collect(samples, count: int, _events: int) -> int:
        if samples and count > 0:
            pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0  # go on

    with _library() as (library, rate):
        library.espeak_SetSynthCallback(collect)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        library.espeak_SetParameter(_RATE, words_per_minute, 0)
        data = text.encode()
        library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, _CHARACTER_POSITION, 0, _UTF8, None, None)
        library.espeak_Synchronize()
    return np.concatenate([*pieces, np.zeros(0, np.int16)]).astype(np.float32) / 32768, rate
