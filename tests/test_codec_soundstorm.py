"""SoundStorm against its NumPy derivation: logits of every pass, codes with and without a prompt, the layout."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundstorm_reference as reference
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from anygpt_jax.errors import UserError
from anygpt_jax.interop.tokenizers import convert
from anygpt_jax.interop.tokenizers.soundstorm import KIND
from anygpt_jax.modalities.codecs import soundstorm, weights

LEVELS, SIZE, SEMANTIC = 3, 10, 12
LENGTHS, PROMPTS = (9, 5, 1, 12), (4, 0, 3, 6)


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def network(seed: int = 0):
    """(official weights, the module they make)."""
    official = reference.random_weights(seed)
    settings = KIND.settings({}, {name: value.shape for name, value in official.items()})
    chosen = convert.choose(KIND.layout(settings), official, KIND.ignored, "a test")
    tensors = {path: how.make(*(official[n] for n in how.names)) for path, how in chosen.items()}
    return official, weights.fill(lambda: KIND.build(settings), tensors)


def inputs(seed: int = 0, lengths=LENGTHS, prompts=PROMPTS, spare: int = 0):
    """Rows of unequal length; what lies beyond their ends is random too, so that reading it would show."""
    rng = np.random.default_rng(seed)
    semantic = rng.integers(SEMANTIC, size=(len(lengths), max(lengths) + spare))
    prompt = rng.integers(SIZE, size=(len(lengths), max(prompts) + spare, LEVELS + 1))
    return semantic.astype(np.int32), prompt.astype(np.int32)


@functools.cache
def compiled():
    return nnx.jit(soundstorm.SoundStorm.generate, static_argnames=("steps", "kept"))


def generated(model, semantic, prompt, keys, lengths=LENGTHS, prompts=PROMPTS, **how):
    arrays = [jnp.asarray(x) for x in (semantic, lengths)]
    if prompt is None:
        return np.asarray(compiled()(model, *arrays, keys, **how))
    return np.asarray(compiled()(model, *arrays, keys, jnp.asarray(prompt), jnp.asarray(prompts), **how))


@functools.cache
def forward():
    return nnx.jit(soundstorm.SoundStorm.__call__)


def predicted(model, semantic, codes):
    """The logits of one row, in a batch of a static shape."""
    n, room = len(semantic), max(LENGTHS) + max(PROMPTS)
    semantic, codes = np.pad(semantic, (0, room - n)), np.pad(codes, ((0, room - n), (0, 0)))
    return np.asarray(forward()(model, semantic[None], codes[None], np.array([n])))[0, :n]


@functools.cache
def noise_of_a_row():
    room = max(LENGTHS) + max(PROMPTS)
    return jax.jit(lambda key, i: soundstorm.uniform_noise(key[None], i, (room, LEVELS, SIZE))[0])


def noise(keys, row, length):
    """The numbers that row draws from, pass by pass."""
    return lambda i: np.asarray(noise_of_a_row()(keys[row], i), np.float64)[:length]


def test_logits_of_rows_of_unequal_length():
    official, model = network()
    rng = np.random.default_rng(1)
    lengths = np.array([11, 4, 1, 7])
    semantic = rng.integers(SEMANTIC, size=(4, 11))
    codes = rng.integers(SIZE + 1, size=(4, 11, LEVELS))
    ours = np.asarray(forward()(model, semantic, codes, lengths))
    for row, n in enumerate(lengths):
        theirs = reference.logits(official, semantic[row, :n], codes[row, :n])
        print(f"row {row}: max difference {np.abs(ours[row, :n] - theirs).max():.2e} of {np.abs(theirs).max():.2f}")
        np.testing.assert_allclose(ours[row, :n], theirs, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize(("steps", "prompted"), [(1, False), (3, False), (3, True)])
def test_codes_without_chance(steps, prompted):
    official, model = network()
    semantic, prompt = inputs(steps)
    prompts = PROMPTS if prompted else (0,) * len(LENGTHS)
    keys = jax.random.split(jax.random.key(0), len(LENGTHS))
    ours = generated(model, semantic, prompt if prompted else None, keys, prompts=prompts, steps=steps, temperature=0.0)
    for row, (n, p) in enumerate(zip(LENGTHS, prompts, strict=True)):
        theirs, margin, passes = reference.generate(
            official, semantic[row, :n], prompt[row, :p], steps, noise(keys, row, p + n), temperature=0.0
        )
        assert len(passes) == steps + LEVELS
        assert margin > 1e-5, "choose another seed: a decision of the reference is within rounding"
        np.testing.assert_array_equal(ours[row, :n], theirs)
        for codes, expected in passes:
            known = np.concatenate([prompt[row, :p, 0], semantic[row, :n]])
            np.testing.assert_allclose(predicted(model, known, codes), expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("greedy", [True, False])
def test_codes_drawn_with_the_same_noise(greedy):
    official, model = network(1)
    semantic, prompt = inputs(7)
    keys = jax.random.split(jax.random.key(3), len(LENGTHS))
    ours = generated(model, semantic, prompt, keys, steps=3, greedy=greedy)
    for row, (n, p) in enumerate(zip(LENGTHS, PROMPTS, strict=True)):
        theirs, margin, _ = reference.generate(
            official, semantic[row, :n], prompt[row, :p], 3, noise(keys, row, p + n), greedy
        )
        assert margin > 1e-5, "choose another seed: a decision of the reference is within rounding"
        np.testing.assert_array_equal(ours[row, :n], theirs)


def test_each_setting_of_the_sampler_matters():
    _, model = network(1)
    semantic, prompt = inputs(7)
    keys = jax.random.split(jax.random.key(3), len(LENGTHS))
    one = functools.partial(generated, model, semantic, prompt, keys)
    base = one(steps=3)
    assert (base != one(steps=3, temperature=0.0)).any()
    assert (base != one(steps=3, greedy=False)).any()
    other_keys = jax.random.split(jax.random.key(4), len(LENGTHS))
    assert (base != generated(model, semantic, prompt, other_keys, steps=3)).any()
    assert (base != generated(model, semantic, prompt[:, ::-1], keys, steps=3)).any()


def test_rows_do_not_depend_on_padding_or_batch_mates():
    _, model = network()
    semantic, prompt = inputs(2)
    keys = jax.random.split(jax.random.key(5), len(LENGTHS))
    together = generated(model, semantic, prompt, keys, steps=3)
    rng = np.random.default_rng(9)
    for row, (n, p) in enumerate(zip(LENGTHS, PROMPTS, strict=True)):
        mate = rng.integers(SEMANTIC, size=(1, max(LENGTHS) + 5)).astype(np.int32)
        padded = np.concatenate([mate, mate])
        padded[1, :n] = semantic[row, :n]
        voices = rng.integers(SIZE, size=(2, max(PROMPTS) + 3, LEVELS + 1)).astype(np.int32)
        voices[1, :p] = prompt[row, :p]
        both = jax.random.wrap_key_data(jax.random.key_data(keys)[jnp.array([0, row])])
        alone = generated(model, padded, voices, both, (max(LENGTHS), n), (2, p), steps=3)
        np.testing.assert_array_equal(alone[1, :n], together[row, :n])


def test_draws_follow_the_distribution():
    logits = jnp.asarray([2.0, 0.5, 1.5, -1.0, 1.0, 0.0])
    uniform = jax.random.uniform(jax.random.key(0), (1, 20_000, 1, 6))
    codes, probability = soundstorm.draw(jnp.broadcast_to(logits, uniform.shape), 4, 0.5, uniform)
    kept = np.array([0, 2, 4, 1])
    odds = np.exp(np.asarray(logits)[kept] / 0.5)
    share = np.bincount(np.ravel(codes), minlength=6) / 20_000
    np.testing.assert_allclose(share[kept], odds / odds.sum(), atol=0.015)  # four deviations
    assert share[[3, 5]].sum() == 0
    plain = np.exp(np.asarray(logits)[kept])
    expected = dict(zip(kept, plain / plain.sum(), strict=True))
    np.testing.assert_allclose(np.ravel(probability)[:50], [expected[c] for c in np.ravel(codes)[:50]], rtol=1e-5)


def test_least_certain_codes_are_counted_over_all_levels():
    probability = jnp.asarray([[[0.9, 0.1], [0.2, 0.8], [0.3, 0.05], [0.0, 0.0]]])
    valid = jnp.asarray([[True, True, True, False]])
    found = soundstorm.least_certain(probability, valid, jnp.array([3]))[0]
    assert found.tolist() == [[False, True], [True, False], [False, True], [False, False]]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 8, 12, 16])
def test_how_many_codes_are_masked_is_what_torch_says(steps):
    torch = pytest.importorskip("torch")
    lengths = np.arange(1, 3000)
    ours = np.asarray(soundstorm.schedule(steps, 7).masked)[: steps + 1, None] * lengths.astype(np.float32)
    times = torch.linspace(0.0, 1.0, steps + 1)
    theirs = (torch.cos(times * np.pi / 2)[:, None] * torch.from_numpy(lengths)).long().numpy()
    np.testing.assert_array_equal(ours.astype(np.int32), theirs)
    some = lengths[::97]
    np.testing.assert_array_equal(np.transpose([reference.counts(steps, n) for n in some]), theirs[:, ::97])


def test_sharded_over_devices():
    _, model = network()
    semantic, prompt = inputs(3)
    keys = jax.random.split(jax.random.key(6), len(LENGTHS))
    single = generated(model, semantic, prompt, keys, steps=3)
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("batch",), ()))
    graph, state = nnx.split(model)
    model = nnx.merge(graph, jax.device_put(state, everywhere))
    arrays = jax.device_put((semantic, jnp.asarray(LENGTHS), keys, prompt, jnp.asarray(PROMPTS)), rows)
    sharded = compiled()(model, *arrays, steps=3)
    assert len(sharded.sharding.device_set) == 2
    for row, n in enumerate(LENGTHS):
        np.testing.assert_array_equal(np.asarray(sharded)[row, :n], single[row, :n])


def test_layout_is_whole_and_refuses_what_is_not():
    official, model = network()
    shapes = {name: value.shape for name, value in official.items()}
    settings = KIND.settings({}, shapes)
    layout = KIND.layout(settings)
    assert set(layout) == set(weights.flatten(model))
    assert {n for rule in layout.values() for n in rule.choose(official).names} == set(official)
    for name in official:
        missing = {n for n in official if n != name}
        assert sum(rule.choose(dict.fromkeys(missing)) is None for rule in layout.values()) == 1
        with pytest.raises(UserError, match=r"of the right rank|does not fit"):
            convert.choose(
                KIND.layout(KIND.settings({}, {n: shapes[n] for n in missing})), dict.fromkeys(missing), (), ""
            )
    buffers = {"net.quantizer_offsets", "net.mask_tokens", "net.conformer.rotary_emb.inv_freq"}
    convert.choose(layout, dict.fromkeys({*official, *buffers}), KIND.ignored, "")
    with pytest.raises(UserError, match="Unexpected"):
        convert.choose(
            layout, dict.fromkeys({*official, "net.conformer.layers.0.conv.net1.3.weight"}), KIND.ignored, ""
        )


def test_full_size():
    """351.4 M parameters: the sum over the shapes of the published state dict, which the reference lists by itself."""
    sizes = dict(semantic=1024, size=1024, levels=7, width=1024, depth=12, head_dim=128, mlp=4096, conv=2048, kernel=31)
    shapes = reference.names(**sizes)
    settings = KIND.settings({}, shapes)
    module = nnx.eval_shape(lambda: KIND.build(settings))
    assert module.settings == soundstorm.SoundStormSettings()
    assert weights.count(module) == sum(int(np.prod(shape)) for shape in shapes.values()) == 351_378_432


def test_wrong_arguments():
    _, model = network()
    semantic, prompt = inputs()
    keys = jax.random.split(jax.random.key(0), len(LENGTHS))
    with pytest.raises(ValueError, match="1 step or more"):
        model.generate(semantic, jnp.asarray(LENGTHS), keys, steps=0)
    with pytest.raises(ValueError, match="its lengths"):
        model.generate(semantic, jnp.asarray(LENGTHS), keys, prompt)
