"""The loss against numpy, and the compiled step on every shape of mesh against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import synthetic
from flax import nnx

from anygpt_jax.data.loader import pack_row
from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import step as train_step
from anygpt_jax.training.loss import loss_sums, token_losses, training_loss
from anygpt_jax.training.optimizer import decayed, make_optimizer, make_schedule

VOCABULARY = synthetic.vocabulary()
MODALITIES = 1 + len(VOCABULARY.blocks)


def records(n, seed=0):
    return [synthetic.record(VOCABULARY, synthetic.TASKS[i % 3], i, np.random.default_rng((seed, i))) for i in range(n)]


def batch_of(rows, seq_len):
    packed = [pack_row(row, seq_len, VOCABULARY.pad, VOCABULARY.modality_ids()) for row in rows]
    return {name: np.stack([row[name] for row in packed]) for name in packed[0]}


def settings(**model):
    config = synthetic.config("unused")
    config.model.update(n_kv_heads=4, **model)
    return config


def model_of(config):
    return ModelConfig.from_config(config.model, VOCABULARY)


def test_token_losses_and_their_gradient():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(2, 5, 11)).astype(np.float32) * 3, rng.integers(0, 11, (2, 5))
    nll, log_z = token_losses(logits, targets)
    p = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(log_z, np.log(p.sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(nll, optax.softmax_cross_entropy_with_integer_labels(logits, targets), rtol=1e-5)
    weights = rng.normal(size=(2, 5))

    def ours(x):
        nll, log_z = token_losses(x, targets)
        return jnp.sum(weights * (nll + 0.3 * log_z**2))

    def reference(x):
        log_z = jax.nn.logsumexp(x, -1)
        chosen = jnp.take_along_axis(x, targets[..., None], -1)[..., 0]
        return jnp.sum(weights * (log_z - chosen + 0.3 * log_z**2))

    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(reference)(logits), atol=1e-5)


def test_packed_loss_and_gradients_equal_the_padded_ones():
    made = records(9)
    packed = batch_of([made[:4], made[4:9]], 160)
    padded = batch_of([[record] for record in made], 48)
    graph, state = nnx.split(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(lambda w: w * 1.5, nnx.to_pure_dict(state))

    def loss(params, batch):
        return training_loss(loss_sums(nnx.merge(graph, params), batch, MODALITIES), 1e-3)

    (a, da), (b, db) = (jax.value_and_grad(loss)(params, batch) for batch in (packed, padded))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), da, db)


def test_the_loss_is_the_mean_over_trained_tokens_and_splits_by_modality():
    batch = batch_of([records(3)], 96)
    decoder = Decoder(model_of(settings()), rngs=nnx.Rngs(0))
    sums = loss_sums(decoder, batch, MODALITIES)
    logits = np.asarray(decoder(batch["tokens"], batch["positions"], batch["segment_ids"]), np.float64)[0]
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


def test_a_batch_without_trained_tokens_has_loss_and_gradient_zero():
    batch = batch_of([records(2)], 96)
    batch["loss_weights"][:] = 0
    graph, state = nnx.split(Decoder(model_of(settings()), rngs=nnx.Rngs(0)), nnx.Param)
    loss, gradients = jax.value_and_grad(
        lambda p: training_loss(loss_sums(nnx.merge(graph, p), batch, MODALITIES), 1e-3)
    )(nnx.to_pure_dict(state))
    assert float(loss) == 0 and float(optax.global_norm(gradients)) == 0


MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2), (1, 1, 4)]


def run_steps(mesh, optimizer="adamw", steps=2):
    config = settings()
    config.train.update(optimizer=optimizer, batch_size=8)
    program = train_step.build(model_of(config), config.train, make_mesh(dict(zip(("data", "fsdp", "tensor"), mesh, strict=True))), MODALITIES)  # fmt: skip
    state, out = program.init(0), []
    made = records(32)
    for s in range(steps):
        batch = batch_of([made[i : i + 2] for i in range(16 * s, 16 * s + 16, 2)], 64)
        state, metrics = program.step(state, program.place(batch, range(8), 8))
        out.append((float(metrics.loss), float(metrics.grad_norm), np.asarray(metrics.sums.nll)))
    return jax.device_get(state), out, program


@pytest.fixture(scope="module")
def one_device():
    return {name: run_steps((1, 1, 1), name) for name in ("adamw", "muon")}


@pytest.mark.parametrize("mesh", MESHES)
def test_every_mesh_trains_as_one_device_does(mesh, one_device):
    state, out, program = run_steps(mesh, "adamw")
    expected, out_1, _ = one_device["adamw"]
    for (loss, norm, nll), (loss_1, norm_1, nll_1) in zip(out, out_1, strict=True):
        np.testing.assert_allclose([loss, norm], [loss_1, norm_1], rtol=1e-5)
        np.testing.assert_allclose(nll, nll_1, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state["params"], expected["params"])
    q = program.abstract_state["params"]["blocks"]["q"]
    assert q.sharding.shard_shape(q.shape) == (2, 32 // mesh[1], 4 // mesh[2], 8)
    # Both of Adam's moments lie where their parameter lies.
    moments = [x for x in jax.tree.leaves(program.abstract_state["optimizer"]) if x.shape == q.shape]
    assert len(moments) >= 2
    assert all(m.sharding.spec == q.sharding.spec for m in moments if m.shape[1:] == (32, 4, 8))


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_of_every_mesh_equal_one_devices(mesh):
    """Through Adam a tiny gradient's sign would matter, so gradients themselves are compared, to 1e-5."""
    config = settings()
    config.train.batch_size = 8
    batch = batch_of([records(2, seed=s) for s in range(8)], 64)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Decoder(model_of(config), rngs=nnx.Rngs(0))), nnx.Param)

    def gradients(shape):
        program = train_step.build(model_of(config), config.train, make_mesh(dict(zip(("data", "fsdp", "tensor"), shape, strict=True))), MODALITIES)  # fmt: skip
        placed = program.place(batch, range(8), 8)
        with jax.set_mesh(program.mesh):
            function = jax.jit(
                jax.value_and_grad(lambda p, b: training_loss(loss_sums(nnx.merge(graph, p), b, MODALITIES), 1e-4))
            )
            return jax.device_get(function(program.init(0)["params"], placed))

    (loss, ours), (loss_1, expected) = gradients(mesh), gradients((1, 1, 1))
    np.testing.assert_allclose(loss, loss_1, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


def test_muon_on_a_mesh_trains_as_on_one_device(one_device):
    """Newton-Schulz amplifies rounding, hence the wider tolerance; the losses still agree."""
    _, out, _ = run_steps((2, 2, 2), "muon")
    np.testing.assert_allclose([o[0] for o in out], [o[0] for o in one_device["muon"][1]], rtol=1e-3)
    assert abs(one_device["muon"][1][1][0] - one_device["adamw"][1][1][0]) > 1e-6


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
    assert mask["embedding"] and mask["blocks"]["q"] and mask["blocks"]["down"]
    assert (
        not any(mask["blocks"][name] for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm"))
        and not mask["norm"]
    )


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
    with pytest.raises(UserError, match=r"blocks.q.*tensor=4"):
        train_step.build(model_of(config), config.train, make_mesh({"tensor": 4}), MODALITIES)
    with pytest.raises(UserError, match="batch_size"):
        train_step.build(model_of(settings()), config.train, make_mesh({"data": 8}), MODALITIES)
