"""SpeechTokenizer, ELU and Snake, against the published package on random weights."""

import dataclasses
import functools
import importlib.util
import math
import re
import sys
import types

import codec_world
import jax
import numpy as np
import pytest
import torch
from flax import nnx
from test_codec_encodec import (
    clear,
    decode,
    encode,
    in_a_row,
    latents_of,
    noise,
    numpy_state,
    random_codes,
    randomize,
    relative,
    same_codes,
    shapes,
)

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers.speechtokenizer import KIND
from anygpt_jax.modalities.codecs import speechtokenizer

PUBLISHED = {
    "n_filters": 64, "strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768, "bidirectional": True,
    "dilation_base": 2, "residual_kernel_size": 3, "n_residual_layers": 1, "lstm_layers": 2, "codebook_size": 1024,
    "n_q": 8, "sample_rate": 16000,
}  # fmt: skip
TINY = {
    **PUBLISHED, "n_filters": 4, "strides": [5, 4], "dimension": 16, "semantic_dimension": 8, "codebook_size": 32,
    "n_q": 3, "n_residual_layers": 2,
}  # fmt: skip


def reference(config):
    """The package's own module imports its trainer, which needs torchaudio; the model does not."""
    if "speechtokenizer" not in sys.modules:
        spec = importlib.util.find_spec("speechtokenizer")
        bare = types.ModuleType("speechtokenizer")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["speechtokenizer"] = bare
    from speechtokenizer.model import SpeechTokenizer

    return SpeechTokenizer(config).eval()


@pytest.fixture(autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def pair(activation):
    config = {**TINY, "activation": activation}
    model = reference(config)
    randomize(model, lambda: model.encoder(torch.from_numpy(noise(0, 1, 1, 400))))
    return model, codec_world.converted(KIND, numpy_state(model), config)


@pytest.mark.parametrize("activation", ["ELU", "Snake"])
@torch.no_grad()
def test_encodes_as_the_reference(activation):
    """Rows of a batch, with noise beyond their ends, as the reference each row alone."""
    model, ours = pair(activation)
    lengths = np.array([1, 7, 240, 1001, 40, 333])
    sound = noise(1, len(lengths), 1010)
    frames = np.asarray(ours.frames(lengths))
    found, codes = np.asarray(latents_of(ours, sound, lengths)), np.asarray(encode(ours, sound, lengths))
    compared, expected = [], []
    for row, (n, f) in enumerate(zip(lengths, frames, strict=True)):
        alone = torch.from_numpy(sound[row, :n])[None, None]
        theirs = model.encoder(alone)[0].T.numpy()
        assert f == len(theirs)
        assert relative(found[row, :f], theirs) < 1e-5
        compared.append(clear(theirs, ours.vectors[...]))
        expected.append(model.encode(alone)[:, 0].T.numpy())
    same_codes(in_a_row(codes, frames), np.concatenate(expected), np.concatenate(compared))


@pytest.mark.parametrize("activation", ["ELU", "Snake"])
@torch.no_grad()
def test_decodes_as_the_reference(activation):
    """Rows of a batch, with random codes beyond their ends, as the reference each row alone."""
    model, ours = pair(activation)
    frames = np.array([1, 2, 5, 37, 20])
    codes = random_codes(ours, 2, len(frames), 40)
    heard = np.asarray(decode(ours, codes, frames))
    assert heard.shape == (len(frames), 40 * ours.hop)
    for row, f in enumerate(frames):
        theirs = model.decode(torch.from_numpy(codes[row, :f]).T[:, None])[0, 0]
        assert relative(heard[row, : f * ours.hop], theirs) < 1e-5
        assert not heard[row, f * ours.hop :].any()


@torch.no_grad()
def test_the_first_levels_decode_alone():
    model, ours = pair("Snake")
    codes = random_codes(ours, 3, 1, 12)[..., :1]
    theirs = model.decode(torch.from_numpy(codes[0]).T[:, None])[:, 0]
    assert relative(decode(ours, codes, np.array([12])), theirs) < 1e-5


def test_a_missing_tensor_is_noticed():
    model, _ = pair("Snake")
    state = numpy_state(model)
    layout = KIND.layout(KIND.settings({**TINY, "activation": "Snake"}, shapes(state)))
    for name in (n for n in state if not any(re.fullmatch(p, n) for p in KIND.ignored)):
        available = {n: t for n, t in state.items() if n != name}
        assert any(rule.choose(available) is None for rule in layout.values()), name


def test_a_configuration_of_the_other_release_is_refused():
    model, _ = pair("Snake")
    with pytest.raises(UserError, match="activation"):
        KIND.settings({**TINY, "activation": "ELU"}, shapes(numpy_state(model)))


@pytest.mark.parametrize(("activation", "keys"), [("ELU", 166), ("Snake", 192)])
def test_published_sizes(activation, keys):
    """As many parameters as the reference, gains, second biases and the training's projection aside."""
    config = {**PUBLISHED, "activation": activation}
    with torch.device("meta"):
        model = reference(config)
    state = shapes(model.state_dict())
    assert len(state) == keys
    settings = dataclasses.asdict(speechtokenizer.published(activation.lower()))
    for found in (KIND.settings(config, state), KIND.settings({}, state)):
        assert found == settings
    ours = nnx.eval_shape(lambda: speechtokenizer.build(settings))
    aside = ("weight_g", "transform.weight", "transform.bias")
    total = sum(p.numel() for n, p in model.named_parameters() if not n.endswith(aside) and "bias_hh" not in n)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(ours, nnx.Param))) == total
    assert (ours.sample_rate, ours.hop, ours.codebooks, ours.codebook_size) == (16000, 320, 8, 1024)
    assert None not in [rule.choose(state) for rule in KIND.layout(settings).values()]
