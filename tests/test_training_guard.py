"""Bad steps change nothing but counters, good ones what they would have changed; the average; weights by modality."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import AS_RUNS
from flax import nnx
from test_training_step import MODALITIES, VOCABULARY, batch_of, model_of, plain_loss, records, settings

from anygpt_jax.errors import UserError
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import compiler
from anygpt_jax.training import step as train_step
from anygpt_jax.training.ema import ema_decay
from anygpt_jax.training.guard import WINDOW, GuardSettings, fresh_guard, guard_settings, judged
from anygpt_jax.training.optimizer import make_optimizer

DECAY, FACTOR, WARMUP = 0.9, 2.0, 2


@functools.cache
def program_of(optimizer="adamw", **train):
    config = settings()
    config.train.update({"optimizer": optimizer} | train)
    return train_step.build(model_of(config), config.train, make_mesh({}), MODALITIES, VOCABULARY), config.train


def guarded():
    return program_of(guard_factor=FACTOR, guard_warmup=WARMUP, ema_decay=DECAY)[0]


def batch_at(s):
    return batch_of([records(2, seed=(s, row)) for row in range(4)], 64)


def spiking(s):
    """Targets that count 1 and -1 in turn and 1 in all: a gradient of many times its usual norm."""
    batch = batch_at(s)
    trained = np.flatnonzero(batch["loss_weights"].reshape(-1))
    signs = np.where(np.arange(len(trained)) % 2 == 0, 1, -1)
    signs[-1] += 1 - signs.sum()
    batch["loss_weights"].reshape(-1)[trained] = signs
    return batch


def not_finite(s):
    batch = batch_at(s)
    batch["loss_weights"][1, 3] = np.nan
    return batch


def run(program, batches):
    """(state before any step and after each, metrics of each), on the host."""
    state = program.init(0)
    states, out = [jax.device_get(state)], []
    for batch in batches:
        state, metrics = program.step(state, program.place(batch, range(4), 4))
        states.append(jax.device_get(state))
        out.append(jax.device_get(metrics))
    return states, out


def floats(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if not jnp.issubdtype(leaf.dtype, jnp.integer)]


def integers(tree):
    return [int(leaf) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.integer)]


def same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@functools.cache
def a_bad_run():
    """Two good steps, one that is not finite, a spike, two good ones."""
    batches = [batch_at(0), batch_at(1), not_finite(2), spiking(3), batch_at(4), batch_at(5)]
    return run(guarded(), batches)


def test_bad_steps_change_nothing_but_counters():
    states, out = a_bad_run()
    assert [bool(m.ok) for m in out] == [True, True, False, False, True, True]
    assert [int(m.skipped) for m in out] == [0, 0, 1, 2, 2, 2]
    assert [int(m.in_a_row) for m in out] == [0, 0, 1, 2, 0, 0]
    assert not np.isfinite(out[2].loss)
    usual = np.mean([m.grad_norm for m in out[:2]])
    assert np.isfinite(out[3].grad_norm) and out[3].grad_norm > 2 * FACTOR * usual
    for bad in (2, 3):
        before, after = states[bad], states[bad + 1]
        for part in ("params", "optimizer", "ema"):
            same_bits(floats(after[part]), floats(before[part]))
        counters = integers(before["optimizer"])
        assert counters and integers(after["optimizer"]) == [n + 1 for n in counters]
        np.testing.assert_array_equal(after["guard"]["norm"], before["guard"]["norm"])
    for good in (0, 1, 4, 5):
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), states[good]["params"], states[good + 1]["params"])
        assert all(jax.tree.leaves(changed))
    assert integers(states[-1]["guard"]) == [4, 0, 2]  # good, in a row, skipped
    np.testing.assert_allclose(
        states[-1]["guard"]["norm"], np.mean([out[i].grad_norm for i in (0, 1, 4, 5)]), rtol=1e-6
    )


def test_a_step_after_a_bad_one_is_optaxs_with_the_counters_where_they_would_be():
    """The learning rate of step 4 is that of step 4, whatever became of 2 and 3."""
    states, _ = a_bad_run()
    program, train = program_of(guard_factor=FACTOR, guard_warmup=WARMUP, ema_decay=DECAY)
    optimizer = make_optimizer(train)
    before = states[4]
    _, _, gradients = jax.device_get(program.gradients(before["params"], program.place(batch_at(4), range(4), 4)))
    updates, _ = jax.jit(optimizer.update)(gradients, before["optimizer"], before["params"])
    expected = optax.apply_updates(before["params"], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), states[5]["params"], expected)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_good_steps_are_those_of_optax_without_a_guard(optimizer, monkeypatch):
    """Bit by bit. XLA fuses Muon's loops in another way beside a choice, and its last bit may be another.

    Compiled as runs are, and not as other tests (`compiling.QUICK`), where Adam's last bit may be another, too.
    """
    for option, value in AS_RUNS.items():
        monkeypatch.setitem(compiler.CPU, option, value)
    program, train = program_of.__wrapped__(optimizer)
    last_bits = {"adamw": 0, "muon": 1e-6}[optimizer]
    rule = make_optimizer(train)

    @functools.partial(jax.jit, compiler_options=program.compiler_options)
    def plain(params, state, batch):
        _, _, gradients = program.gradients.__wrapped__(params, batch)
        updates, state = rule.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, optax.global_norm(gradients)

    states, out = run(program, [batch_at(0), batch_at(1)])
    params = states[0]["params"]
    state = rule.init(params)
    for s in range(2):
        with jax.set_mesh(program.mesh):
            params, state, norm = plain(params, state, program.place(batch_at(s), range(4), 4))
        ours, theirs = (states[s + 1]["params"], states[s + 1]["optimizer"]), jax.device_get((params, state))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=last_bits), ours, theirs)
        np.testing.assert_allclose(out[s].grad_norm, norm, rtol=last_bits)
    assert "ema" not in states[0]


def test_the_state_is_still_updated_in_place():
    """Choosing by `ok` needs no second copy of the state: what comes out takes the place of what went in."""
    memory = guarded().lower_step(4, 64).compile().memory_analysis()
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(guarded().abstract_state))
    assert memory.alias_size_in_bytes >= state


def test_the_average_is_the_recurrence_of_its_definition():
    states, out = a_bad_run()
    expected = jax.tree.map(lambda p: np.asarray(p, np.float64), states[0]["params"])
    same_bits(states[0]["ema"], states[0]["params"])
    for state, metrics in zip(states[1:], out, strict=True):
        if metrics.ok:
            expected = jax.tree.map(lambda e, p: DECAY * e + (1 - DECAY) * p, expected, state["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), states[-1]["ema"], expected)
    abstract = guarded().abstract_state
    assert jax.tree.map(lambda x: x.sharding, abstract["ema"]) == jax.tree.map(lambda x: x.sharding, abstract["params"])


def test_the_verdict_by_hand():
    rule = GuardSettings(factor=3.0, warmup=2, patience=0)
    state, verdicts = fresh_guard(), []
    norms = [4.0, 100.0, 2.0, 107.0, np.inf, np.nan, 105.9, 300.0]
    for norm in norms:
        ok, state = judged(state, jnp.float32(1.0), jnp.float32(norm), rule)
        verdicts.append(bool(ok))
    # Means of the good ones: 4, 52, 35.33, then 52.98; three times that is the limit.
    assert verdicts == [True, True, True, False, False, False, True, False]
    np.testing.assert_allclose(state["norm"], np.mean([4, 100, 2, 105.9]), rtol=1e-6)
    assert [int(state[name]) for name in ("good", "skipped", "in_a_row")] == [4, 4, 1]
    assert not bool(judged(state, jnp.float32(np.nan), jnp.float32(1.0), rule)[0])
    # Far on, the mean forgets.
    state |= {"good": jnp.int32(10_000), "norm": jnp.float32(1.0)}
    np.testing.assert_allclose(judged(state, jnp.float32(1), jnp.float32(2), rule)[1]["norm"], 1 + 1 / WINDOW)


def test_without_a_factor_spikes_are_let_through_and_what_is_not_finite_is_not():
    program, _ = program_of()
    state = program.init(0)
    oks = []
    for batch in (batch_at(0), spiking(1), not_finite(2)):
        state, metrics = program.step(state, program.place(batch, range(4), 4))
        oks.append(bool(metrics.ok))
    assert oks == [True, True, False]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state["params"])))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guard_factor": 0.5}, "guard_factor=0.5 must be above 1"),
        ({"guard_factor": -3.0}, "guard_factor=-3 must be above 1"),
        ({"guard_warmup": -1}, "guard_warmup=-1"),
        ({"guard_patience": -1}, "guard_patience=-1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, words):
    train = settings().train
    train.update(**change)
    with pytest.raises(UserError, match=words):
        guard_settings(train)


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_an_average_that_is_none_is_refused(decay):
    train = settings().train
    train.ema_decay = decay
    with pytest.raises(UserError, match="ema_decay"):
        ema_decay(train)


@pytest.mark.slow
def test_modalities_are_weighted_in_the_loss_and_not_in_what_is_reported():
    plain, weighted = program_of()[0], program_of(loss_weights=ImageHalf())[0]
    params = nnx.to_pure_dict(nnx.state(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param))
    batch = batch_at(0)
    placed = plain.place(batch, range(4), 4)
    loss, sums, gradients = jax.device_get(weighted.gradients(params, placed))
    _, expected_sums, _ = jax.device_get(plain.gradients(params, placed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sums, expected_sums)
    by = np.array([1.0, 0.25, 1.0])
    assert (sums.weight[:2] > 0).all()
    np.testing.assert_allclose(loss, (by * sums.nll).sum() / (by * sums.weight).sum(), rtol=1e-6)
    weights = batch["loss_weights"] * by[batch["modality"]].astype(np.float32)

    def by_autodiff(params):
        graph = nnx.graphdef(Decoder(model_of(settings()), rngs=nnx.Rngs(0)))
        logits = nnx.merge(graph, params)(batch["tokens"], batch["positions"], batch["segment_ids"])
        return plain_loss(logits, batch["targets"], weights / weights.sum(), 0.0)

    expected = jax.jit(jax.grad(by_autodiff))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradients, expected)


class ImageHalf(dict):
    """Hashable, so that programs can be kept by it."""

    def __init__(self):
        super().__init__(image=0.25)

    def __hash__(self):
        return hash("image")


@pytest.mark.parametrize(
    ("weights", "words"),
    [({"video": 0.5, "music": 1.0}, "'video'.*text, image, speech"), ({"text": -1.0}, "must not be negative")],
)
def test_unknown_or_negative_weights_are_refused(weights, words):
    train = settings().train
    train.loss_weights = weights
    with pytest.raises(UserError, match=words):
        train_step.modality_weights(train, MODALITIES, VOCABULARY)
