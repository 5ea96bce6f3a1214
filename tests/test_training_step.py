"""The loss against numpy, and the compiled step on every shape of mesh against one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import synthetic
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from anygpt_jax.data.loader import pack_row
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import MESH_AXES, between_steps, make_mesh
from anygpt_jax.training import step as train_step
from anygpt_jax.training.loss import head_loss, losses
from anygpt_jax.training.optimizer import decayed, make_optimizer, make_schedule

VOCABULARY = synthetic.vocabulary()
MODALITIES = 1 + len(VOCABULARY.blocks)


def records(n, seed=0):
    return [
        synthetic.record(VOCABULARY, synthetic.TASKS[i % 3], i, np.random.default_rng(np.r_[seed, i])) for i in range(n)
    ]


def batch_of(rows, seq_len):
    packed = [pack_row(row, seq_len, VOCABULARY.pad, VOCABULARY.modality_ids()) for row in rows]
    return {name: np.stack([row[name] for row in packed]) for name in packed[0]}


def settings(**model):
    config = synthetic.config("unused")
    config.model.update(n_kv_heads=4, **model)
    return config


def model_of(config):
    return ModelConfig.from_config(config.model, VOCABULARY)


def plain_loss(logits, targets, weights, z_loss):
    """By optax, differentiated by JAX."""
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(weights * (nll + z_loss * jax.nn.logsumexp(logits, -1) ** 2))


@pytest.mark.parametrize("chunks", [1, 2, 6])
def test_the_heads_loss_and_its_gradients_are_optaxs(chunks):
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 6, 8)).astype(np.float32), rng.normal(size=(8, 11)).astype(np.float32)
    targets, weights = rng.integers(0, 11, (2, 6)), rng.random((2, 6)).astype(np.float32)

    def reference(hidden, head):
        return 3 * plain_loss(hidden @ head, targets, weights, 0.3)

    def ours(hidden, head):
        loss, (nll, log_z) = head_loss(hidden, head, targets, weights, 0.3, chunks)
        return 3 * loss + nll.sum() + log_z.sum()  # which have no derivative

    expected, d_expected = jax.value_and_grad(reference, (0, 1))(hidden, head)
    found, d_found = jax.jit(jax.value_and_grad(ours, (0, 1)))(hidden, head)
    loss, (nll, log_z) = jax.jit(head_loss, static_argnums=(4, 5))(hidden, head, targets, weights, 0.3, chunks)
    np.testing.assert_allclose(3 * loss, expected, rtol=1e-5)
    np.testing.assert_allclose(found, expected + nll.sum() + log_z.sum(), rtol=1e-5)
    np.testing.assert_allclose(log_z, jax.nn.logsumexp(hidden @ head, -1), rtol=1e-5)
    np.testing.assert_allclose(nll, optax.softmax_cross_entropy_with_integer_labels(hidden @ head, targets), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), d_found, d_expected)


def test_padding_of_the_vocabulary_is_no_part_of_the_softmax_and_gets_no_gradient():
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(2, 6, 8)).astype(np.float32), rng.normal(size=(8, 16)).astype(np.float32)
    targets, weights = rng.integers(0, 11, (2, 6)), rng.random((2, 6)).astype(np.float32)

    def ours(head):
        return head_loss(hidden, head, targets, weights, 0.3, 2, 11)[0]

    expected, d_expected = jax.value_and_grad(lambda w: plain_loss(hidden @ w, targets, weights, 0.3))(head[:, :11])
    found, d_found = jax.value_and_grad(ours)(head)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(d_found[:, :11], d_expected, atol=2e-5)
    np.testing.assert_array_equal(d_found[:, 11:], 0)


@pytest.mark.slow
def test_packed_loss_and_gradients_equal_the_padded_ones():
    made = records(9)
    packed = batch_of([made[:4], made[4:9]], 160)
    padded = batch_of([[record] for record in made], 48)
    graph, state = nnx.split(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda w: w * 1.5, nnx.to_pure_dict(state))

    def loss(params, batch):
        return losses(nnx.merge(graph, params), batch, MODALITIES, 1e-3)

    ((a, _), da), ((b, _), db) = (
        jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch) for batch in (packed, padded)
    )
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), da, db)


def test_the_loss_is_the_mean_over_trained_tokens_and_splits_by_modality():
    batch = batch_of([records(3)], 96)
    decoder = Decoder(model_of(settings()), rngs=nnx.Rngs(0))
    loss, sums = nnx.jit(losses, static_argnums=2)(decoder, batch, MODALITIES)
    forward = nnx.jit(lambda d, b: d(b["tokens"], b["positions"], b["segment_ids"]))
    logits = np.asarray(forward(decoder, batch), np.float64)[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.zeros((2, MODALITIES))
    start = 0
    for record in records(3):  # straight from the records, without the packer
        for i in np.flatnonzero(record.loss_mask()):
            modality = VOCABULARY.modality_ids()[record.tokens[i]]
            expected[:, modality] += (-log_p[start + i - 1, record.tokens[i]], 1)
        start += len(record.tokens)
    np.testing.assert_allclose(sums.nll, expected[0], rtol=1e-5)
    np.testing.assert_array_equal(sums.weight, expected[1])
    np.testing.assert_allclose(sums.mean(), expected[0].sum() / expected[1].sum(), rtol=1e-5)
    np.testing.assert_allclose(loss, sums.mean(), rtol=1e-6)


def test_a_batch_without_trained_tokens_has_loss_and_gradient_zero():
    batch = batch_of([records(2)], 96)
    batch["loss_weights"][:] = 0
    graph, state = nnx.split(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param)
    function = jax.value_and_grad(lambda p: losses(nnx.merge(graph, p), batch, MODALITIES, 1e-3)[0])
    loss, gradients = jax.jit(function)(nnx.to_pure_dict(state))
    assert float(loss) == 0
    assert float(optax.global_norm(gradients)) == 0


ONE = (1, 1, 1, 1, 1)
MESHES = [(1, 8, 1, 1, 1), (1, 1, 8, 1, 1), (1, 2, 2, 1, 2), (1, 1, 2, 1, 4), (2, 1, 2, 2, 1)]  # as MESH_AXES


def program_on(mesh, **train):
    config = settings()
    config.train.update({"batch_size": 8} | train)
    axes = dict(zip(MESH_AXES, mesh, strict=True))
    return train_step.build(model_of(config), config.train, make_mesh(axes), MODALITIES)


@functools.cache
def two_steps(mesh, optimizer):
    """The parameters after two steps, and (loss, gradient norm, losses by modality) of each."""
    program = program_on(mesh, optimizer=optimizer)
    state, out = program.init(0), []
    for s in range(2):
        batch = batch_of([records(2, seed=(s, row)) for row in range(8)], 64)
        state, metrics = program.step(state, program.place(batch, range(8), 8))
        out.append(np.array([metrics.loss, metrics.grad_norm, *metrics.sums.nll]))
    return jax.device_get(state["params"]), out


@functools.cache
def gradients_on(mesh, batch_size=8, **train):
    """(loss, sums, gradients) of the step itself."""
    program = program_on(mesh, batch_size=batch_size, z_loss=1e-4, **train)
    batch = batch_of([records(2, seed=s) for s in range(batch_size)], 64)
    params = nnx.to_pure_dict(nnx.state(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state["params"])
    placed = program.place(batch, range(batch_size), batch_size)
    return jax.device_get(program.gradients(jax.device_put(params, shardings), placed))


def test_the_steps_gradients_are_those_of_the_plain_loss():
    """Without a mesh, replicas, microbatches or a head of its own: optax's loss of the whole batch, by autodiff."""
    graph, state = nnx.split(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param)
    batch = batch_of([records(2, seed=s) for s in range(8)], 64)
    weights = batch["loss_weights"] / batch["loss_weights"].sum()

    def plain(params):
        logits = nnx.merge(graph, params)(batch["tokens"], batch["positions"], batch["segment_ids"])
        return plain_loss(logits, batch["targets"], weights, 1e-4)

    loss, expected = jax.jit(jax.value_and_grad(plain))(nnx.to_pure_dict(state))
    value, sums, found = gradients_on(ONE)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    np.testing.assert_array_equal(sums.weight.sum(), batch["loss_weights"].sum())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@pytest.mark.parametrize("mesh", MESHES)
def test_loss_and_gradients_of_every_mesh_equal_one_devices(mesh):
    """Gradients themselves, to 1e-5: through Adam the sign of a tiny one would decide."""
    (loss, sums, ours), (loss_1, sums_1, expected) = gradients_on(mesh), gradients_on(ONE)
    np.testing.assert_allclose(loss, loss_1, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, sums_1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


@pytest.mark.parametrize(
    ("mesh", "parts"),
    [
        (ONE, {"microbatches": 4}),
        ((1, 2, 2, 1, 2), {"microbatches": 2}),
        ((2, 2, 1, 2, 1), {"microbatches": 4, "loss_chunks": 4}),
        (ONE, {"loss_chunks": 8}),
        ((1, 2, 2, 1, 2), {"loss_chunks": 4}),
        ((1, 1, 2, 4, 1), {"loss_chunks": 2}),
    ],
)
def test_parts_of_a_step_change_nothing(mesh, parts):
    (loss, sums, ours), (loss_1, sums_1, expected) = gradients_on(mesh, 16, **parts), gradients_on(ONE, 16)
    np.testing.assert_allclose(loss, loss_1, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), sums, sums_1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


@pytest.mark.slow
def test_a_mesh_trains_as_one_device_does():
    (params, out), (expected, out_1) = two_steps((1, 2, 2, 1, 2), "adamw"), two_steps(ONE, "adamw")
    np.testing.assert_allclose(out, out_1, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), params, expected)


def test_parameters_and_moments_are_divided_over_the_mesh():
    state = program_on((1, 1, 2, 1, 4)).abstract_state
    q = state["params"]["blocks"]["q"]
    assert q.sharding.shard_shape(q.shape) == (2, 32 // 2, 4 // 4, 8)
    moments = [m for m in jax.tree.leaves(state["optimizer"]) if m.shape == q.shape]
    assert moments
    assert all(m.sharding.shard_shape(m.shape) in {(2, 16, 1, 8), (2, 1, 4, 8)} for m in moments)


def test_between_steps_replicas_share_the_state_where_it_divides():
    params = program_on((2, 2, 2, 1, 1)).abstract_state["params"]
    q, norm = params["blocks"]["q"], params["norm"]
    assert q.sharding.shard_shape(q.shape) == (2, 32 // 4, 4, 8)  # over fsdp and data, not over slices
    assert norm.sharding.shard_shape(norm.shape) == norm.shape
    mesh = make_mesh({"data": 8})
    shape, sharding = jax.ShapeDtypeStruct((12, 16), jnp.float32), NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    assert between_steps([shape], [sharding])[0].shard_shape(shape.shape) == (12, 2)


@pytest.mark.slow
def test_muon_on_a_mesh_trains_as_on_one_device():
    """Newton-Schulz amplifies rounding, hence the wider tolerance."""
    out, out_1 = two_steps((1, 2, 2, 1, 2), "muon")[1], two_steps(ONE, "muon")[1]
    np.testing.assert_allclose(out, out_1, rtol=1e-3)
    assert np.abs(out_1[1] - two_steps(ONE, "adamw")[1][1]).max() > 1e-6


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_tiny_batch_is_learnt_by_heart(optimizer):
    config = settings()
    config.train.update(steps=150, warmup_steps=5, optimizer=optimizer, learning_rate=2e-2)
    program = train_step.build(model_of(config), config.train, make_mesh({}), MODALITIES)
    state, batch = program.init(0), batch_of([records(2), records(2, seed=1)], 64)
    placed = program.place(batch, range(2), 2)
    for _ in range(150):
        state, metrics = program.step(state, placed)
    assert float(metrics.loss) < 0.05


def test_schedule_and_decay_mask():
    train = synthetic.config("unused").train
    train.update(steps=100, warmup_steps=10, learning_rate=1.0)
    linear = make_schedule(train)
    np.testing.assert_allclose(
        [linear(0), linear(9), linear(10), linear(55), linear(100)], [0.1, 1, 1, 0.5, 0], atol=1e-6
    )
    train.schedule = "cosine"
    np.testing.assert_allclose([make_schedule(train)(s) for s in (10, 55, 100)], [1, 0.5, 0], atol=1e-6)
    params = nnx.to_pure_dict(nnx.state(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param))
    mask = decayed(params)
    assert mask["embedding"]
    assert mask["blocks"]["q"]
    assert mask["blocks"]["down"]
    assert not any(mask["blocks"][name] for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm"))
    assert not mask["norm"]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"schedule": "steps"}, "schedule"), ({"optimizer": "sgd"}, "optimizer")],
)
def test_unknown_choices_are_refused(change, word):
    train = synthetic.config("unused").train
    train.update(**change)
    with pytest.raises(UserError, match=word):
        make_optimizer(train)


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="needs 16 devices"):
        make_mesh({"data": 16})
    with pytest.raises(UserError, match="pipeline"):
        make_mesh({"pipeline": 2})
    config = settings(n_heads=6, head_dim=4, d_ff=50)
    config.model.n_kv_heads = 6
    with pytest.raises(UserError, match=r"model.n_heads=6 .* tensor = 4.\nmodel.n_kv_heads=6 .*\nmodel.d_ff=50"):
        train_step.build(model_of(config), config.train, make_mesh({"tensor": 4}), MODALITIES)
    with pytest.raises(UserError, match="batch_size"):
        train_step.build(model_of(settings()), config.train, make_mesh({"data": 8}), MODALITIES)
