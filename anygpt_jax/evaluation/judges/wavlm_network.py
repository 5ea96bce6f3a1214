"""WavLM (Chen et al. 2022, arXiv 2110.13900) with the head that makes x-vectors, as Hugging Face's WavLMForXVector."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from anygpt_jax.errors import UserError
from anygpt_jax.evaluation.judges.clip_network import unit
from anygpt_jax.evaluation.judges.folders import read_json
from anygpt_jax.interop.tokenizers.rules import Layout, Rule, conv1d, conv_layer, linear, made, norm, same, stacked
from anygpt_jax.modalities.codecs import vit
from anygpt_jax.modalities.codecs.conv1d import zero_beyond

# Of training: the classes of its speakers and what masked frames are replaced by.
IGNORED = (r"classifier\.(weight|bias)", r"objective\.weight", r"wavlm\.masked_spec_embed")
# What Transformers takes where a configuration is silent: it writes only what differs.
DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "layer_norm_eps": 1e-5, "conv_dim": (512,) * 7, "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2), "num_conv_pos_embeddings": 128, "num_conv_pos_embedding_groups": 16,
    "num_buckets": 320, "max_bucket_distance": 800, "use_weighted_layer_sum": False,
    "tdnn_dim": (512, 512, 512, 512, 1500), "tdnn_kernel": (5, 3, 3, 1, 1), "tdnn_dilation": (1, 2, 3, 1, 1),
    "xvector_output_dim": 512,
}  # fmt: skip
# What the released networks have; of WavLM-Large, group norm and the norms' order are others.
FIXED = {
    "feat_extract_norm": "group", "feat_extract_activation": "gelu", "hidden_act": "gelu", "conv_bias": False,
    "do_stable_layer_norm": False, "add_adapter": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WavlmConfig:
    """`convs`: (width, kernel, stride) of what reads samples; `tdnn`: (width, kernel, dilation) of the head's layers;
    `inner`: the width within the feed-forward layers; `weighted`: the head sees a weighted sum of all layers instead of
    the last."""

    convs: tuple[tuple[int, int, int], ...]
    width: int
    layers: int
    heads: int
    inner: int
    epsilon: float
    position_kernel: int
    position_groups: int
    buckets: int
    distance: int
    weighted: bool
    tdnn: tuple[tuple[int, int, int], ...]
    vector: int

    @classmethod
    def from_json(cls, path: pathlib.Path) -> WavlmConfig:
        """Of a Hugging Face WavLMForXVector's config.json. UserError if it is of another network."""
        config = read_json(path, "WavLMForXVector")
        if config.get("model_type") != "wavlm":
            raise UserError(f"{path} describes a '{config.get('model_type')}' model; take that of a WavLMForXVector.")
        if other := {key: config[key] for key, value in FIXED.items() if config.get(key, value) != value}:
            named = ", ".join(f"{key} = {value!r}" for key, value in other.items())
            raise UserError(f"{path} has {named}, unlike microsoft/wavlm-base-plus-sv; take the folder of that.")
        c = {**DEFAULTS, **config}
        try:
            convs = tuple(zip(c["conv_dim"], c["conv_kernel"], c["conv_stride"], strict=True))
            tdnn = tuple(zip(c["tdnn_dim"], c["tdnn_kernel"], c["tdnn_dilation"], strict=True))
        except ValueError as e:
            raise UserError(
                f"{path} has lists of unequal length for its convolutions ({e}); copy or download it again."
            ) from e
        if c["hidden_size"] % c["num_attention_heads"] or c["hidden_size"] % c["num_conv_pos_embedding_groups"]:
            raise UserError(
                f"{path} divides a width of {c['hidden_size']} among {c['num_attention_heads']} heads or "
                f"{c['num_conv_pos_embedding_groups']} groups, which does not go; copy or download it again."
            )
        return cls(
            convs=convs, width=c["hidden_size"], layers=c["num_hidden_layers"], heads=c["num_attention_heads"],
            inner=c["intermediate_size"], epsilon=c["layer_norm_eps"], position_kernel=c["num_conv_pos_embeddings"],
            position_groups=c["num_conv_pos_embedding_groups"], buckets=c["num_buckets"],
            distance=c["max_bucket_distance"], weighted=c["use_weighted_layer_sum"], tdnn=tdnn,
            vector=c["xvector_output_dim"],
        )  # fmt: skip

    @property
    def context(self) -> int:
        """Frames that one step of the head's last layer sees, less one."""
        return sum((kernel - 1) * dilation for _, kernel, dilation in self.tdnn)

    @property
    def shortest(self) -> int:
        """Samples of the shortest sound with a vector: a deviation is of two steps at least."""
        steps = self.context + 2
        for _, kernel, stride in reversed(self.convs):
            steps = (steps - 1) * stride + kernel
        return steps


def position_buckets(offsets: Int[np.ndarray, " N"], buckets: int, distance: int) -> Int[np.ndarray, " N"]:
    """Which row of the table an offset in frames (key less query) has.

    Half of the rows are for keys after the query. Of a half, the first half is for one offset each and the rest for
    ranges that grow as the logarithm up to `distance`, beyond which all have the last.
    """
    half = buckets // 2
    exact = half // 2
    far = np.abs(offsets)
    # In float32, as where they were learned: an offset on a border would fall on the other side of it.
    log = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(math.log(distance / exact))
    ranged = np.minimum((np.float32(exact) + log * np.float32(half - exact)).astype(np.int32), half - 1)
    return np.where(offsets > 0, half, 0) + np.where(far < exact, far, ranged)


class Block(nnx.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)). Each query scales the bias that offsets have by its own gate.

    `share`: the weight of what this layer gives in the sum that the head sees.
    """

    def __init__(self, config: WavlmConfig, *, rngs: nnx.Rngs):
        self.heads, c = config.heads, config
        self.qkv = nnx.Linear(c.width, 3 * c.width, rngs=rngs)
        self.gate = nnx.Linear(c.width // c.heads, 2, rngs=rngs)
        self.gate_scale = nnx.Param(jnp.ones(c.heads))
        self.out = nnx.Linear(c.width, c.width, rngs=rngs)
        self.norm1 = vit.layer_norm(c.width, c.epsilon, rngs=rngs)
        self.fc1 = nnx.Linear(c.width, c.inner, rngs=rngs)
        self.fc2 = nnx.Linear(c.inner, c.width, rngs=rngs)
        self.norm2 = vit.layer_norm(c.width, c.epsilon, rngs=rngs)
        self.share = nnx.Param(jnp.zeros(()))

    def __call__(
        self, x: Float[Array, "B T D"], bias: Float[Array, "H T T"], valid: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """`bias` goes by head, query and key, before the gates; `valid` is true of the frames that are a row's own."""
        reset, update = jnp.moveaxis(nnx.sigmoid(self.gate(x.reshape(*x.shape[:2], self.heads, -1))), -1, 0)
        gates = reset * (update * self.gate_scale[...] - 1) + 2
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)
        attended = jax.nn.dot_product_attention(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2],
            bias=gates.transpose(0, 2, 1)[..., None] * bias, mask=valid[:, None, None],
        )  # fmt: skip
        x = self.norm1(x + self.out(attended.reshape(x.shape)))
        return self.norm2(x + self.fc2(vit.gelu(self.fc1(x))))


class WavlmNetwork(nnx.Module):
    """Samples at 16 kHz → a vector of unit length. What follows a row's own end changes nothing."""

    def __init__(self, config: WavlmConfig, *, rngs: nnx.Rngs):
        self.config = c = config
        inputs = [1, *(width for width, _, _ in c.convs)]
        self.convs = nnx.List(
            nnx.Conv(i, width, (kernel,), strides=(stride,), padding="VALID", use_bias=False, rngs=rngs)
            for i, (width, kernel, stride) in zip(inputs, c.convs, strict=False)
        )
        first, last = inputs[1], inputs[-1]
        self.conv_norm = nnx.GroupNorm(first, num_groups=first, epsilon=1e-5, use_fast_variance=False, rngs=rngs)
        self.norm_features = vit.layer_norm(last, c.epsilon, rngs=rngs)
        self.features = nnx.Linear(last, c.width, rngs=rngs)
        left = c.position_kernel // 2
        self.position = nnx.Conv(
            c.width, c.width, (c.position_kernel,), padding=[(left, c.position_kernel - 1 - left)],
            feature_group_count=c.position_groups, rngs=rngs,
        )  # fmt: skip
        self.norm_in = vit.layer_norm(c.width, c.epsilon, rngs=rngs)
        self.offsets = nnx.Param(jnp.zeros((c.buckets, c.heads)))
        self.share = nnx.Param(jnp.zeros(()))  # of what enters the layers, as theirs are
        self.blocks = vit.stack(lambda rngs: Block(c, rngs=rngs), c.layers, rngs=rngs)
        self.projector = nnx.Linear(c.width, c.tdnn[0][0], rngs=rngs)
        inputs = [c.tdnn[0][0], *(width for width, _, _ in c.tdnn)]
        self.tdnn = nnx.List(
            nnx.Conv(i, width, (kernel,), kernel_dilation=(dilation,), padding="VALID", rngs=rngs)
            for i, (width, kernel, dilation) in zip(inputs, c.tdnn, strict=False)
        )
        self.vector = nnx.Linear(2 * inputs[-1], c.vector, rngs=rngs)

    def __call__(self, samples: Float[Array, "B N"], lengths: Int[Array, " B"]) -> Float[Array, "B V"]:
        """`lengths`: samples of each row, at least `WavlmConfig.shortest`."""
        x, lengths = self._frames(samples, lengths)
        x = zero_beyond(self.features(self.norm_features(x)), lengths)
        x = self.norm_in(x + vit.gelu(self.position(x)))
        x = self.projector(self._layers(x, lengths))
        for conv in self.tdnn:
            x = nnx.relu(conv(x))
        return unit(self.vector(_statistics(x, lengths - self.config.context)))

    def _frames(self, samples: Float[Array, "B N"], lengths: Int[Array, " B"]) -> tuple[Array, Int[Array, " B"]]:
        """(what the convolutions give, how much of it is each row's own)."""
        x = samples[..., None]
        for i, (conv, (_, kernel, stride)) in enumerate(zip(self.convs, self.config.convs, strict=True)):
            x, lengths = conv(x), (lengths - kernel) // stride + 1
            if i == 0:  # over the time of the row alone
                x = self.conv_norm(x, mask=jnp.broadcast_to(_within(x, lengths)[..., None], x.shape))
            x = vit.gelu(x)
        return x, lengths

    def _layers(self, x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B T D"]:
        """The sum of what enters the layers and what each of them gives, by their shares."""
        valid, steps, c = _within(x, lengths), x.shape[1], self.config
        table = self.offsets[...][position_buckets(np.arange(1 - steps, steps), c.buckets, c.distance)]
        at = jnp.arange(steps)
        bias = table[at - at[:, None] + steps - 1].transpose(2, 0, 1)
        graph, state = nnx.split(self.blocks)

        def step(carry: tuple[Array, Array], one: nnx.State) -> tuple[tuple[Array, Array], None]:
            block = nnx.merge(graph, one)
            x = block(carry[0], bias, valid)
            return (x, carry[1] + block.share[...] * x), None

        return jax.lax.scan(step, (x, self.share[...] * x), state)[0][1]


def _within(x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Bool[Array, "B T"]:
    return jnp.arange(x.shape[1]) < lengths[:, None]


def _statistics(x: Float[Array, "B T D"], lengths: Int[Array, " B"]) -> Float[Array, "B 2*D"]:
    """Mean and deviation (over n - 1) of each row's own steps."""
    own, n = _within(x, lengths)[..., None], lengths[:, None]
    mean = jnp.sum(x, 1, where=own) / n
    variance = jnp.sum(jnp.square(x - mean[:, None]), 1, where=own) / (n - 1)
    return jnp.concatenate([mean, jnp.sqrt(variance)], -1)


def layout(config: WavlmConfig) -> Layout:
    """Transformers' WavLMForXVector → `WavlmNetwork`."""
    encoder = "wavlm.encoder"
    found: Layout = {}
    for i in range(len(config.convs)):
        found[f"convs.{i}.kernel"] = conv1d(f"wavlm.feature_extractor.conv_layers.{i}.conv")
    for i, (_, kernel, _) in enumerate(config.tdnn):  # matrices of [out, kernel · in] in the files
        found[f"tdnn.{i}.kernel"] = made(
            lambda w, k=kernel: w.reshape(len(w), k, -1).transpose(1, 2, 0), f"tdnn.{i}.kernel.weight"
        )
        found[f"tdnn.{i}.bias"] = same(f"tdnn.{i}.kernel.bias")
    layers = [_block(f"{encoder}.layers.{i}") | {"share": _share(config, i + 1)} for i in range(config.layers)]
    return {
        **found,
        **norm("conv_norm", "wavlm.feature_extractor.conv_layers.0.layer_norm"),
        **norm("norm_features", "wavlm.feature_projection.layer_norm"),
        **conv_layer("features", "wavlm.feature_projection.projection", kernel=linear),
        "position.kernel": _position(f"{encoder}.pos_conv_embed.conv"),
        "position.bias": same(f"{encoder}.pos_conv_embed.conv.bias"),
        **norm("norm_in", f"{encoder}.layer_norm"),
        "offsets": same(f"{encoder}.layers.0.attention.rel_attn_embed.weight"),
        "share": _share(config, 0),
        **{f"blocks.{path}": stacked([layer[path] for layer in layers]) for path in layers[0]},
        **conv_layer("projector", "projector", kernel=linear),
        **conv_layer("vector", "feature_extractor", kernel=linear),
    }


def _share(config: WavlmConfig, i: int) -> Rule:
    """Of the i-th: 0 is what enters the first layer."""
    if not config.weighted:
        return made(lambda: np.array(i == config.layers, np.float32))

    def share(w: np.ndarray) -> np.ndarray:
        if w.shape != (config.layers + 1,):
            raise ValueError(f"{list(w.shape)} instead of {[config.layers + 1]}")
        powers = np.exp(w - w.max())
        return (powers / powers.sum())[i]

    return made(share, "layer_weights")


def _position(theirs: str) -> Rule:
    """Its weight norm has one length for each tap, not for each output."""

    def whole(g: np.ndarray, v: np.ndarray) -> np.ndarray:
        length = np.sqrt(np.sum(np.square(v, dtype=np.float64), axis=(0, 1), keepdims=True))
        return (g * (v / length)).astype(np.float32).transpose(2, 1, 0)

    new = f"{theirs}.parametrizations.weight.original"
    rules = made(whole, f"{theirs}.weight_g", f"{theirs}.weight_v"), made(whole, f"{new}0", f"{new}1")
    return Rule(tuple(alternative for rule in rules for alternative in rule.alternatives))


def _block(theirs: str) -> Layout:
    attention = f"{theirs}.attention"
    found = norm("norm1", f"{theirs}.layer_norm") | norm("norm2", f"{theirs}.final_layer_norm")
    parts = [f"{attention}.{part}_proj" for part in "qkv"]
    found["qkv.kernel"] = made(lambda *w: np.concatenate(w).T, *(f"{part}.weight" for part in parts))
    found["qkv.bias"] = made(lambda *b: np.concatenate(b), *(f"{part}.bias" for part in parts))
    # Each gate is a sum of four products.
    found["gate.kernel"] = made(lambda w: w.reshape(2, 4, -1).sum(1).T, f"{attention}.gru_rel_pos_linear.weight")
    found["gate.bias"] = made(lambda b: b.reshape(2, 4).sum(1), f"{attention}.gru_rel_pos_linear.bias")
    found["gate_scale"] = made(np.ravel, f"{attention}.gru_rel_pos_const")
    for ours, name in (
        ("out", "attention.out_proj"), ("fc1", "feed_forward.intermediate_dense"), ("fc2", "feed_forward.output_dense"),
    ):  # fmt: skip
        found |= conv_layer(ours, f"{theirs}.{name}", kernel=linear)
    return found
