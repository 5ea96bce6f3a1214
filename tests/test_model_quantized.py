"""Products in 8 bits beside the exact ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import synthetic

from anygpt_jax.errors import UserError
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.quantized import product
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import step as train_step


def by_hand(x, w):
    """int8 as it is written in textbooks: a scale a row of x and a column of w, rounded to the nearest."""
    sx, sw = np.abs(x).max(1, keepdims=True) / 127.5, np.abs(w).max(0, keepdims=True) / 127.5
    whole = np.clip(np.round(x / sx), -128, 127).astype(np.int64) @ np.clip(np.round(w / sw), -128, 127).astype(
        np.int64
    )
    return whole * sx * sw


def matrices(dtype=np.float32):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for shape in ((48, 96), (96, 64), (48, 64))]


def relative(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


def test_int8_is_a_scale_a_row_and_a_column():
    x, w, _ = matrices()
    # The largest of a row is at a tie, half a step up or down: that far apart, and a fraction of the rounding's error.
    assert relative(product(x, w, "int8"), by_hand(x, w)) < 0.003 < relative(by_hand(x, w), x @ w)


@pytest.mark.parametrize(("name", "error"), [("int8", 0.015), ("fp8", 0.06)])
def test_products_and_both_gradients_are_near_the_exact_ones(name, error):
    x, w, g = matrices()
    found, pull = jax.vjp(lambda x, w: product(x, w, name), x, w)
    dx, dw = pull(g)
    for ours, exact in ((found, x @ w), (dx, g @ w.T), (dw, x.T @ g)):
        assert 1e-4 < relative(ours, exact) < error  # quantized, and not too coarsely


def test_none_is_the_plain_product():
    x, w, _ = matrices()
    np.testing.assert_array_equal(product(x, w, "none"), jnp.matmul(x, w))


def test_an_unknown_format_is_refused():
    config = synthetic.config("unused")
    config.model.quantization = "int3"
    with pytest.raises(UserError, match=r"int3.*none, int8, fp8"):
        ModelConfig.from_config(config.model, synthetic.vocabulary())


@pytest.mark.parametrize("name", ["int8", "fp8"])
@pytest.mark.slow
def test_a_quantized_model_is_near_the_exact_one_on_a_mesh_and_learns(name):
    vocabulary, config = synthetic.vocabulary(), synthetic.config("unused", batch_size=8, learning_rate=2e-2)
    ids = np.random.default_rng(0).integers(3, vocabulary.size, (8, 64)).astype(np.int32)
    batch = {
        "tokens": ids, "targets": np.roll(ids, -1, 1), "positions": np.tile(np.arange(64, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones_like(ids), "loss_weights": np.ones(ids.shape, np.float32), "modality": np.zeros_like(ids),
    }  # fmt: skip
    gradients, losses = {}, []
    for quantization, mesh in (("none", {}), (name, {}), (name, {"data": 2, "fsdp": 2, "tensor": 2})):
        config.model.update(quantization=quantization, n_kv_heads=4, remat="qkv_attention")
        model = ModelConfig.from_config(config.model, vocabulary)
        program = train_step.build(model, config.train, make_mesh(mesh), 3)
        state = program.init(0)
        placed = program.place(batch, range(8), 8)
        gradients[quantization, bool(mesh)] = jax.device_get(program.gradients(state["params"], placed)[2])
        if quantization != "none" and mesh:
            for _ in range(12):
                state, metrics = program.step(state, placed)
                losses.append(float(metrics.loss))
    exact, one, many = (
        optax.tree.norm(x) for x in (gradients["none", False], *[gradients[name, m] for m in (False, True)])
    )
    assert one == pytest.approx(float(exact), rel=0.05) and many == pytest.approx(float(one), rel=0.02)
    assert losses[-1] < losses[0] - 0.2
