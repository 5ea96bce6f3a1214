"""espeak-ng through ctypes: the library that the package espeakng-loader brings."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from jaxtyping import Float32

from anygpt_jax.embedded import assets

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: AUDIO_OUTPUT_SYNCHRONOUS
_UTF8, _CHARACTER_POSITION, _RATE = 1, 1, 1  # espeakCHARS_UTF8, POS_CHARACTER, espeakRATE of speak_lib.h
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_pieces: list[np.ndarray] = []


@_Callback
def _collect(samples: ctypes.POINTER(ctypes.c_short), count: int, _events: int) -> int:
    if samples and count > 0:
        _pieces.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
    return 0  # go on


@functools.cache
def _library() -> tuple[ctypes.CDLL, int]:
    assets.require("espeakng_loader")
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate <= 0:
        raise RuntimeError(f"espeak_Initialize failed with {rate}")
    library.espeak_SetSynthCallback(_collect)
    return library, rate


def speak(text: str, voice: str, words_per_minute: int) -> tuple[Float32[np.ndarray, " samples"], int]:
    """(samples in -1..1, samples a second) of a text spoken by an espeak voice such as "en-us+f2".

    The library keeps its state in globals: call it from one thread of a process only.
    """
    library, rate = _library()
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    _pieces.clear()
    data = text.encode()
    library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, _CHARACTER_POSITION, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return np.concatenate([*_pieces, np.zeros(0, np.int16)]).astype(np.float32) / 32768, rate
