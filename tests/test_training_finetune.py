"""What is trained and what is not: by patterns, by rows, by adapters; and where a run starts from."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import synthetic
from compiling import AS_RUNS
from flax import nnx
from test_configs_models import CONFIGS
from test_model_decoder import numpy_llama
from test_training_step import MODALITIES, VOCABULARY, batch_of, model_of, plain_loss, records, settings

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.model import lora
from anygpt_jax.model.config import LORA_TARGETS, ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.model.kv_cache import init_cache
from anygpt_jax.model.sharding import make_mesh
from anygpt_jax.training import step as train_step
from anygpt_jax.training.checkpoints import Checkpoints, restore_model
from anygpt_jax.training.checks import config_problems
from anygpt_jax.training.optimizer import make_schedule
from anygpt_jax.training.start import start_params
from anygpt_jax.training.trainable import merge, split, trained_paths
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

RANK, ALPHA = 3, 6.0
LORA = {"lora_rank": RANK, "lora_alpha": ALPHA}


def config_of(train=None, **model):
    config = settings(tied_embeddings=False, **model)
    config.train.update(train or {})
    return config


@functools.cache
def program_of(config_json, mesh=()):
    config = type(settings())(json.loads(config_json))
    return train_step.build(model_of(config), config.train, make_mesh(dict(mesh)), MODALITIES, VOCABULARY)


def program(train=None, mesh=(), **model):
    return program_of(config_of(train, **model).to_json(), mesh)


def batch_at(s, rows=4):
    return batch_of([records(2, seed=(s, row)) for row in range(rows)], 64)


def placed(made, s=0, rows=4):
    return made.place(batch_at(s, rows), range(rows), rows)


def two_steps(made):
    """(params before, state after two steps, metrics of the first)."""
    state = made.init(0)
    before = jax.device_get(state["params"])
    state, metrics = made.step(state, placed(made, 0))
    state, _ = made.step(state, placed(made, 1))
    return before, jax.device_get(state), jax.device_get(metrics)


def flat(tree):
    return {"/".join(str(k.key) for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def changed(before, after):
    before, after = flat(before), flat(after)
    return {name for name in before if (before[name] != after[name]).any()}


def nbytes(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


# ---- by patterns


def test_paths_are_chosen_from_end_to_end_and_put_together_again():
    params = program().abstract_state["params"]
    chosen = functools.partial(trained_paths, params)
    train = settings().train
    everything = chosen(train)
    assert {"embedding", "head", "norm", "blocks/q", "blocks/attention_norm"} <= everything
    train.trainable = ("embedding", "blocks/[qk]")
    assert chosen(train) == {"embedding", "blocks/q", "blocks/k"}
    train.frozen = (".*/k",)
    assert chosen(train) == {"embedding", "blocks/q"}
    ours, others = split(params, chosen(train))
    assert set(flat(ours)) == {"embedding", "blocks/q"} and not set(flat(ours)) & set(flat(others))
    assert merge(ours, others) == params
    train.trainable = ()
    assert chosen(train) == everything - {"blocks/k"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trainable": ("embed",)}, "trainable: 'embed' describes no parameter; there are .*embedding"),
        ({"frozen": "blocks"}, "frozen: 'blocks' describes no parameter"),
        ({"trainable": ("(",)}, "no regular expression"),
        ({"frozen": ".*"}, "leave no parameter"),
        ({"trainable": ("blocks/.*",), "new_rows_only": True}, "neither the embedding nor the head"),
    ],
)
def test_patterns_that_describe_nothing_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        program(change)


EMBEDDINGS = {"trainable": ("embedding", "head"), "weight_decay": 0.05}


@pytest.mark.slow
def test_what_is_frozen_keeps_its_bits_and_has_no_moments_and_no_gradient():
    made = program(EMBEDDINGS)
    before, state, metrics = two_steps(made)
    assert changed(before, state["params"]) == {"embedding", "head"}
    size = nbytes(before["embedding"]) + nbytes(before["head"])
    assert 2 * size <= nbytes(state["optimizer"]) <= 2 * size + 16  # and its counters
    assert made.trained_parameters == size // 4 < made.parameters / 3
    everything = jax.device_get(program().gradients(before, placed(made)))
    some = jax.device_get(made.gradients(before, placed(made)))
    assert set(flat(some[2])) == {"embedding", "head"}
    for name, gradient in flat(some[2]).items():
        np.testing.assert_allclose(gradient, flat(everything[2])[name], atol=1e-7)
    norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in flat(some[2]).values()))
    np.testing.assert_allclose(metrics.grad_norm, norm, rtol=1e-5)


@pytest.mark.slow
def test_gradients_of_what_is_frozen_are_not_computed():
    """A product less a matrix: seven of the layer that is compiled, and the head's."""

    def products(train):
        return program(train).lower_step(4, 64).compile().as_text().count(" dot(")

    everything = products(None)
    assert products({"trainable": ("embedding", "head"), "weight_decay": 0.05}) == everything - 7
    assert products({"trainable": ("embedding",)}) == everything - 8


@pytest.mark.slow
def test_clipping_is_by_the_norm_of_what_is_trained():
    """With a limit just above the embeddings' norm and below everything's, embeddings alone are not clipped."""
    metrics = two_steps(program(EMBEDDINGS))[2]
    limit = float(metrics.grad_norm) * 1.01
    all_norm = float(two_steps(program({"weight_decay": 0.05}))[2].grad_norm)
    assert all_norm > limit
    clipped = program(EMBEDDINGS | {"clip_norm": limit})
    free = program(EMBEDDINGS | {"clip_norm": 0.0})
    after = [made.step(made.init(0), placed(made))[0]["params"] for made in (clipped, free)]
    np.testing.assert_array_equal(after[0]["embedding"], after[1]["embedding"])


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_new_rows_only_leaves_the_text_as_it_is(optimizer):
    made = program(EMBEDDINGS | {"new_rows_only": True, "optimizer": optimizer})
    before, state, metrics = two_steps(made)
    after, text, ids = state["params"], VOCABULARY.text_size, VOCABULARY.size
    assert changed(before, after) == {"embedding", "head"}
    np.testing.assert_array_equal(after["embedding"][:text], before["embedding"][:text])
    np.testing.assert_array_equal(after["head"][:, :text], before["head"][:, :text])
    for rows in (after["embedding"] != before["embedding"], (after["head"] != before["head"]).T):
        assert rows[text:ids].any(-1).all()  # markers and codes; those that do not occur decay
    _, _, gradients = jax.device_get(made.gradients(before, placed(made)))
    assert not gradients["embedding"][:text].any() and not gradients["head"][:, :text].any()
    np.testing.assert_allclose(
        metrics.grad_norm, math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values())), rtol=1e-5
    )


# ---- adapters


def lively(config, seed=0):
    """Parameters with adapters that do something."""
    params = nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(seed)), nnx.Param))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: np.asarray(w + 0.1 * rng.normal(size=w.shape), np.float32), params)


def merged_by_hand(params, targets=LORA_TARGETS):
    """peft's formula, layer by layer on matrices [out, in]: W + alpha / r · B · A, in float64."""
    blocks = {name: np.asarray(w, np.float64) for name, w in params["blocks"].items() if "lora" not in name}
    for name in targets:
        for layer in range(len(blocks[name])):
            w, inputs = blocks[name][layer], 2 if name == "o" else 1
            lora_a = np.asarray(params["blocks"][f"{name}_lora_a"][layer], np.float64).reshape(-1, RANK).T  # [r, in]
            lora_b = np.asarray(params["blocks"][f"{name}_lora_b"][layer], np.float64).reshape(RANK, -1).T  # [out, r]
            weight = w.reshape(math.prod(w.shape[:inputs]), -1).T + (ALPHA / RANK) * lora_b @ lora_a
            blocks[name][layer] = weight.T.reshape(w.shape)
    return {**{k: np.asarray(v, np.float64) for k, v in params.items() if k != "blocks"}, "blocks": blocks}


def forward(config, params, tokens):
    graph = nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    n = tokens.shape[1]
    positions = np.broadcast_to(np.arange(n), tokens.shape)
    with jax.default_matmul_precision("highest"):
        run = jax.jit(lambda p: nnx.merge(graph, p)(tokens, positions, np.ones_like(tokens)), compiler_options=AS_RUNS)
        return np.asarray(run(params))


TOKENS = np.random.default_rng(3).integers(0, VOCABULARY.size, (1, 11)).astype(np.int32)


@pytest.mark.parametrize("targets", ["q,k,v,o,gate,up,down", "q, v"])
def test_adapters_add_what_merging_would(targets):
    config = model_of(config_of(lora_targets=targets, **LORA))
    params = lively(config)
    names = {name.split("_lora")[0] for name in params["blocks"] if "lora" in name}
    assert names == {name.strip() for name in targets.split(",")}
    expected = numpy_llama(merged_by_hand(params, tuple(names)), config, TOKENS[0])
    plain = numpy_llama(merged_by_hand(params, ()), config, TOKENS[0])
    assert np.abs(expected - plain).max() > 0.1
    found = forward(config, params, TOKENS)[0][:, : VOCABULARY.size]
    np.testing.assert_allclose(found, expected[:, : VOCABULARY.size], atol=2e-4)
    merged = lora.merged(params, config)
    assert not [name for name in merged["blocks"] if "lora" in name]
    np.testing.assert_allclose(
        forward(lora.without(config), merged, TOKENS)[0][:, : VOCABULARY.size],
        expected[:, : VOCABULARY.size],
        atol=2e-4,
    )


@pytest.mark.parametrize("changes", [pytest.param({}, marks=pytest.mark.slow), {"remat": "qkv_attention", "unroll": 2}])
def test_gradients_of_adapters_are_the_merged_weights_by_the_chain_rule(changes):
    """dA = alpha / r · dW · Bᵀ and dB = alpha / r · Aᵀ · dW, with dW by autodiff of the merged model."""
    made = program({"trainable": (".*_lora_.",)}, **LORA, **changes)
    config = model_of(config_of(**LORA))
    params = jax.tree.map(lambda w: w, lively(config))
    batch = batch_at(0)
    weights = batch["loss_weights"] / batch["loss_weights"].sum()
    graph = nnx.graphdef(nnx.eval_shape(lambda: Decoder(lora.without(config), rngs=nnx.Rngs(0))))

    def plain(merged):
        logits = nnx.merge(graph, merged)(batch["tokens"], batch["positions"], batch["segment_ids"])
        return plain_loss(logits, batch["targets"], weights, 0.0)

    merged = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), merged_by_hand(params))
    with jax.default_matmul_precision("highest"):
        d_merged = jax.device_get(jax.jit(jax.grad(plain))(merged))
        _, _, found = jax.device_get(made.gradients(params, placed(made)))
    assert set(flat(found)) == {f"blocks/{n}_lora_{part}" for n in LORA_TARGETS for part in "ab"}
    for name in LORA_TARGETS:
        for layer in range(config.n_layers):
            w = d_merged["blocks"][name][layer]
            d_w = w.reshape(math.prod(w.shape[: 2 if name == "o" else 1]), -1)
            a, b = (params["blocks"][f"{name}_lora_{part}"][layer] for part in "ab")
            d_a = ALPHA / RANK * d_w @ b.reshape(RANK, -1).T
            d_b = ALPHA / RANK * a.reshape(-1, RANK).T @ d_w
            assert np.abs(d_a).max() > 1e-4 and np.abs(d_b).max() > 1e-4
            np.testing.assert_allclose(found["blocks"][f"{name}_lora_a"][layer].reshape(d_a.shape), d_a, atol=2e-6)
            np.testing.assert_allclose(found["blocks"][f"{name}_lora_b"][layer].reshape(d_b.shape), d_b, atol=2e-6)


@pytest.mark.slow
def test_a_mesh_has_the_same_gradients_and_cuts_adapters_as_their_matrices():
    train = {"trainable": (".*_lora_.",), "batch_size": 8}
    one, many = program(train, **LORA), program(train, (("data", 2), ("fsdp", 2), ("tensor", 2)), **LORA)
    params = lively(model_of(config_of(**LORA)))
    out = []
    for made in (one, many):
        on = jax.tree.map(lambda leaf: leaf.sharding, made.abstract_state["params"])
        out.append(jax.device_get(made.gradients(jax.device_put(params, on), placed(made, rows=8))))
    np.testing.assert_allclose(out[1][0], out[0][0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), out[1][2], out[0][2])
    blocks = many.abstract_state["params"]["blocks"]
    shard = {name: blocks[name].sharding.shard_shape(blocks[name].shape) for name in blocks if "lora" in name}
    assert shard["q_lora_a"] == (2, 32 // 4, RANK)  # fsdp, and data between steps
    assert shard["q_lora_b"] == (2, RANK, 4 // 4, 8)
    assert shard["o_lora_a"] == (2, 4 // 4, 8, RANK)
    assert shard["down_lora_b"] == (2, RANK, 32 // 4)


@pytest.mark.slow
def test_only_adapters_are_trained_and_fresh_ones_change_nothing():
    made = program({"trainable": (".*_lora_.",), "weight_decay": 0.05}, **LORA)
    before, state, _ = two_steps(made)
    assert all("lora" in name for name in changed(before, state["params"]))
    assert len(changed(before, state["params"])) == 2 * len(LORA_TARGETS)
    adapters = nbytes(split(before, trained_paths(before, config_of({"trainable": (".*_lora_.",)}).train))[0])
    assert 2 * adapters <= nbytes(state["optimizer"]) <= 2 * adapters + 16
    config = model_of(config_of(**LORA))
    without = {**before, "blocks": {k: v for k, v in before["blocks"].items() if "lora" not in k}}
    np.testing.assert_array_equal(forward(config, before, TOKENS), forward(lora.without(config), without, TOKENS))
    fresh = nnx.to_pure_dict(nnx.state(Decoder(lora.without(config), rngs=nnx.Rngs(0)), nnx.Param))
    ours = nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param))
    np.testing.assert_array_equal(ours["blocks"]["down"], fresh["blocks"]["down"])  # the same start with and without


def test_decoding_step_by_step_uses_the_adapters():
    config = model_of(config_of(**LORA))
    params = lively(config)
    graph = nnx.graphdef(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))
    step = jax.jit(lambda params, t, p, c: nnx.merge(graph, params).decode(t, p, c))
    cache, out = init_cache(config, 1, TOKENS.shape[1]), []
    for i in range(TOKENS.shape[1]):
        logits, cache = step(params, TOKENS[:, i : i + 1], np.array([[i]]), cache)
        out.append(logits[:, 0])
    np.testing.assert_allclose(np.stack(out, 1), forward(config, params, TOKENS), atol=1e-4)


@pytest.mark.parametrize(("change", "words"), [({"lora_rank": -1}, "negative"), ({"lora_targets": "q,w"}, "'w'")])
def test_adapters_that_cannot_be_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        model_of(config_of(**(LORA | change)))


def test_adapters_of_bfloat16_weights_are_float32():
    config = model_of(config_of(param_dtype="bfloat16", compute_dtype="bfloat16", **LORA))
    params = nnx.to_pure_dict(nnx.eval_shape(lambda: nnx.state(Decoder(config, rngs=nnx.Rngs(0)), nnx.Param)))
    dtypes = {name: leaf.dtype for name, leaf in params["blocks"].items()}
    assert dtypes["q"] == jnp.bfloat16
    assert {dtypes[name] for name in dtypes if "lora" in name} == {jnp.dtype("float32")}


# ---- out of and into checkpoints


def saved(folder, config, params, vocabulary=VOCABULARY):
    """A checkpoint of parameters."""
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(3, {"params": jax.tree.map(jnp.asarray, params)}, config, vocabulary)
    checkpoints.close()
    return folder


def test_converting_merges_adapters(tmp_path):
    config = config_of(**LORA)
    params = lively(model_of(config))
    saved(tmp_path / "run", config, params)
    to, multiple = str(tmp_path / "merged"), str(config.model.vocab_multiple)
    arguments = ["convert", str(tmp_path / "run"), "--to", to, "--format", "orbax", "--vocab-multiple", multiple]
    assert cli.main(arguments) == 0
    loaded = restore_model(to)
    found = nnx.to_pure_dict(nnx.state(loaded.decoder, nnx.Param))
    assert loaded.config.lora_rank == 0 and not [name for name in found["blocks"] if "lora" in name]
    ids = VOCABULARY.size
    expected = forward(model_of(config), params, TOKENS)[..., :ids]
    np.testing.assert_allclose(forward(loaded.config, found, TOKENS)[..., :ids], expected, atol=1e-5)
    assert np.abs(forward(lora.without(model_of(config)), merge(found, {}), TOKENS)[..., :ids]).max() > 0.5


@pytest.mark.slow
def test_adapters_begin_beside_weights_that_have_none(tmp_path):
    base = config_of()
    params = lively(model_of(base))
    saved(tmp_path / "base", base, params)
    config = config_of({"trainable": (".*_lora_.",)}, **LORA)
    made = program({"trainable": (".*_lora_.",)}, **LORA)
    started = start_params(tmp_path / "base", model_of(config), VOCABULARY, made, seed=5)
    found = jax.device_get(started)
    assert all(not found["blocks"][name].any() for name in found["blocks"] if name.endswith("_lora_b"))
    assert all(found["blocks"][name].all() for name in found["blocks"] if name.endswith("_lora_a"))
    jax.tree.map(np.testing.assert_array_equal, flat(params), {k: v for k, v in flat(found).items() if "lora" not in k})
    state = made.begin(started)
    state, metrics = made.step(state, placed(made))
    assert bool(metrics.ok) and int(state["guard"]["good"]) == 1
    # And on from those adapters, with others: the first are in the weights.
    saved(tmp_path / "adapted", config, lively(model_of(config)))
    on = start_params(tmp_path / "adapted" / "checkpoints", model_of(config), VOCABULARY, made, seed=6)
    expected = merged_by_hand(lively(model_of(config)))
    np.testing.assert_allclose(on["blocks"]["q"], expected["blocks"]["q"], atol=1e-6)
    assert not np.asarray(on["blocks"]["q_lora_b"]).any()


MESH = (("fsdp", 2), ("tensor", 4))


@pytest.mark.parametrize("mesh", [pytest.param((), marks=pytest.mark.slow), MESH])
def test_a_run_with_more_ids_starts_from_one_with_fewer(mesh, tmp_path):
    old = config_of()
    params = lively(model_of(old))
    saved(tmp_path / "old", old, params)
    vocabulary = VOCABULARY.append(BlockSpec("depth", 9))
    config = config_of({"batch_size": 8, "ema_decay": 0.9})
    model = ModelConfig.from_config(config.model, vocabulary)
    made = train_step.build(model, config.train, make_mesh(dict(mesh)), MODALITIES + 1, vocabulary)
    started = start_params(tmp_path / "old", model, vocabulary, made, seed=0)
    assert jax.tree.map(lambda x: x.sharding, started) == jax.tree.map(
        lambda x: x.sharding, made.abstract_state["params"]
    )
    found, kept, used = jax.device_get(started), VOCABULARY.size, vocabulary.size
    for name, rows in (("embedding", lambda w: w), ("head", lambda w: w.T)):
        ours, theirs = rows(found[name]), rows(params[name])
        np.testing.assert_array_equal(ours[:kept], theirs[:kept])
        mean = np.broadcast_to(theirs[:kept].mean(0, dtype=np.float64), ours[kept:used].shape)
        np.testing.assert_allclose(ours[kept:used], mean, atol=1e-6)
        assert used == kept + 11 and not ours[used:].any()
    np.testing.assert_array_equal(found["blocks"]["q"], params["blocks"]["q"])
    state = made.begin(started)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state["ema"]), found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "nowhere"}, "holds no checkpoints"),
        ({"model": {"rope_theta": 3e4}}, "rope_theta differ"),
        ({"vocabulary": synthetic.vocabulary(image=15)}, "does not have the image block"),
        ({"vocabulary": synthetic.vocabulary(text_size=41)}, "41 text pieces"),
    ],
)
def test_a_start_from_something_else_is_refused(change, words, tmp_path):
    old = config_of()
    saved(tmp_path / "old", old, lively(model_of(old)))
    config, vocabulary = config_of(), change.get("vocabulary", VOCABULARY)
    config.model.update(change.get("model", {}))
    model = ModelConfig.from_config(config.model, vocabulary)
    with pytest.raises(UserError, match=words):
        start_params(tmp_path / change.get("path", "old"), model, vocabulary, program(), seed=0)


# ---- the paper's stages


@pytest.mark.parametrize(
    ("stage", "rows", "steps", "peak", "start"),
    [
        ("", 480, 81_000, 6e-5, None),
        (":continue", 480, 4000, 3e-5, "runs/anygpt_7b"),
        (":sft", 64, 5000, 2e-5, "runs/anygpt_7b_continue"),
    ],
)
def test_the_stages_are_the_papers(stage, rows, steps, peak, start):
    """Table 8: the batch, the steps, cosine after 3 % of warm-up, clipping at 1; a row's 4500 rounded up to 128s."""
    c = cli.load_config(f"{CONFIGS / 'anygpt_7b.py'}{stage}")
    train = c.train
    assert (train.batch_size, train.steps, train.seq_len, train.clip_norm) == (rows, steps, 4608, 1.0)
    assert (train.get("start_from") or None) == start
    schedule = make_schedule(train)
    warmup = round(0.03 * steps)
    rates = [float(schedule(s)) for s in (warmup - 1, warmup, (steps + warmup) // 2, steps)]
    np.testing.assert_allclose(rates, [peak, peak, peak / 2, 0], rtol=1e-3, atol=1e-9)
    vocabulary = Vocabulary.build(text_size=49_418, text_fingerprint="", blocks=(), markers=())
    assert config_problems(c, vocabulary, 32) == []


def test_a_stage_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"anygpt_7b\.py:rlhf"):
        cli.load_config(f"{CONFIGS / 'anygpt_7b.py'}:rlhf")
