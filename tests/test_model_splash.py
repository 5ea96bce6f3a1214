"""The TPU's attention kernel, in its interpreter, against XLA's; remat policies and barriers change no number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from anygpt_jax.errors import UserError
from anygpt_jax.model import decoder as decoder_module
from anygpt_jax.model.attention import packed_attention
from anygpt_jax.model.config import BARRIERS, ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.remat import POLICIES
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.model.splash import block_of, splash_attention

CONFIG = ModelConfig(vocab_size=48, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=40)


def interpreted(*args):
    return splash_attention(*args, interpret=True)


def inputs(B=2, L=256, H=4, G=2, K=16, seed=0):
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=(B, L, n, K)), jnp.float32) for n in (H, G, G))
    # Boundaries inside and at the edge of blocks, and padding at the end.
    starts = np.sort(rng.choice(L - 20, size=(B, 5)), axis=1)
    ids = (np.arange(L)[None, :, None] >= starts[:, None]).sum(-1) + 1
    ids[:, L - 20 :] = 0
    return (q, k, v), jnp.asarray(ids, jnp.int32)


def value_and_gradients(attend, qkv, ids):
    weights = jnp.asarray(np.random.default_rng(9).normal(size=qkv[0].shape), jnp.float32)

    def loss(qkv):
        out = attend(*qkv, ids)
        return jnp.sum(weights * out), out

    (_, out), gradients = jax.value_and_grad(loss, has_aux=True)(qkv)
    return out, *gradients


@pytest.mark.parametrize(("kv_heads", "head_dim"), [(4, 16), (2, 64), (1, 128)])
def test_the_kernel_equals_packed_attention(kv_heads, head_dim):
    qkv, ids = inputs(G=kv_heads, K=head_dim)
    ours = jax.jit(lambda qkv: value_and_gradients(interpreted, qkv, ids))(qkv)
    reference = jax.jit(lambda qkv: value_and_gradients(packed_attention, qkv, ids))(qkv)
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "axes", [{"data": 2, "tensor": 2}, {"context": 2}, {"fsdp": 2, "context": 2, "tensor": 2}], ids=str
)
@pytest.mark.parametrize("attend", [interpreted, packed_attention], ids=["splash", "xla"])
def test_sharded_attention_equals_that_of_one_device(attend, axes):
    qkv, ids = inputs(B=2)
    reference = value_and_gradients(packed_attention, qkv, ids)
    with jax.set_mesh(make_mesh(axes)):
        ours = jax.jit(lambda qkv: value_and_gradients(attend, qkv, ids))(qkv)
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


def test_blocks_and_lengths():
    assert [block_of(n) for n in (4096, 512, 384, 640, 100)] == [1024, 512, 128, 128, None]
    with pytest.raises(UserError, match="multiple of 128"):
        splash_attention(*inputs(L=100)[0], inputs(L=100)[1])


def loss_and_gradients(config):
    graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    tokens, ids = rng.integers(48, size=(2, 128)), np.repeat([[1, 2], [1, 0]], 64, axis=1)
    weights = jnp.asarray(rng.normal(size=(2, 128, 48)) / 40, jnp.float32)  # gradients up to about 1

    def loss(params):
        return jnp.sum(weights * nnx.merge(graph, params)(tokens, np.arange(128)[None].repeat(2, 0), ids))

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize(
    ("remat", "attention"),
    [*((name, "xla") for name in POLICIES if "offload" not in name), ("attention", "splash"), ("none", "splash")],
)
def test_remat_policies_and_barriers_change_no_number(remat, attention, monkeypatch):
    monkeypatch.setattr(decoder_module, "splash_attention", interpreted)
    reference = loss_and_gradients(CONFIG)
    other = dataclasses.replace(CONFIG, remat=remat, attention=attention, matmul_barriers=BARRIERS[1 + len(remat) % 2])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-5), loss_and_gradients(other), reference
    )


def test_a_policy_keeps_what_it_names(capsys):
    """What the backward pass of one layer reads, from JAX's own list of residuals."""

    def kept(remat):
        config = dataclasses.replace(CONFIG, n_layers=1, remat=remat)
        graph, params = nnx.split(Decoder(config, rngs=nnx.Rngs(0)))
        ones = jnp.ones((1, 128), jnp.int32)
        jax.ad_checkpoint.print_saved_residuals(lambda p: nnx.merge(graph, p)(ones, ones, ones).sum(), params)
        return capsys.readouterr().out

    # [scan's 1, B, L, F]: gate and up, and nothing of that shape without them.
    assert kept("minimal").count("f32[1,1,128,40]") == 2
    assert kept("qkv").count("f32[1,1,128,40]") == 0
    assert kept("full").count("f32[1,1,128,4,8]") == 0
    assert kept("qkv").count("f32[1,1,128,4,8]") == 1
