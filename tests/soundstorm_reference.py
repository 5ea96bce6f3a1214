"""SoundStorm as AnyGPT runs it, derived anew in plain NumPy (float64, one row at a time) from its description.

Weights go by the names of the published state dict. Beside every result stands the smallest margin by which any of
its decisions was taken, so that a test knows that rounding cannot have turned one.
"""

from __future__ import annotations

import math

import numpy as np

HEADS = 8


def names(semantic=12, size=10, levels=3, width=16, depth=2, head_dim=4, mlp=24, conv=20, kernel=5):
    """The shapes of a published state dict of these sizes."""
    inner = HEADS * head_dim
    shapes = {
        "semantic_token_emb.weight": (semantic, width),
        "net.code_embeds.weight": (levels * (size + 1), width),
        "net.heads.0.weight": (levels * width, width),
        "net.heads.0.bias": (levels * width,),
        "net.to_logits.0.weight": (width,),
        "net.to_logits.0.bias": (width,),
        "net.to_logits.2.weight": (levels, width, size),
        "net.to_logits.2.bias": (1, 1, levels, size),
    }
    for i in range(depth):
        layer = f"net.conformer.layers.{i}."
        for ff in ("ff1", "ff2"):
            shapes |= {
                f"{layer}{ff}.fn.norm.weight": (width,),
                f"{layer}{ff}.fn.norm.bias": (width,),
                f"{layer}{ff}.fn.fn.net.0.weight": (mlp, width),
                f"{layer}{ff}.fn.fn.net.0.bias": (mlp,),
                f"{layer}{ff}.fn.fn.net.3.weight": (width, mlp),
                f"{layer}{ff}.fn.fn.net.3.bias": (width,),
            }
        shapes |= {
            f"{layer}attn.norm.weight": (width,),
            f"{layer}attn.norm.bias": (width,),
            f"{layer}attn.fn.to_q.weight": (inner, width),
            f"{layer}attn.fn.to_kv.weight": (2 * inner, width),
            f"{layer}attn.fn.to_out.weight": (width, inner),
            f"{layer}attn.fn.to_out.bias": (width,),
            f"{layer}conv.net1.0.weight": (width,),
            f"{layer}conv.net1.0.bias": (width,),
            f"{layer}conv.net1.2.weight": (2 * conv, width, 1),
            f"{layer}conv.net1.2.bias": (2 * conv,),
            f"{layer}conv.ds_conv.conv.weight": (conv, 1, kernel),
            f"{layer}conv.ds_conv.conv.bias": (conv,),
            f"{layer}conv.net2.1.gamma": (1, conv, 1),
            f"{layer}conv.net2.2.weight": (width, conv, 1),
            f"{layer}conv.net2.2.bias": (width,),
            f"{layer}post_norm.weight": (width,),
            f"{layer}post_norm.bias": (width,),
        }
    return shapes


def random_weights(seed=0, **sizes):
    """Random values of those shapes, float32, none of them a fixed point such as a scale of 1 or a bias of 0."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, shape in names(**sizes).items():
        if name.endswith(("norm.weight", "net1.0.weight", "to_logits.0.weight", "gamma")):
            value = 1 + 0.3 * rng.standard_normal(shape)
        elif "bias" in name or "emb" in name:
            value = 0.5 * rng.standard_normal(shape)
        else:
            fan_in = shape[1] if len(shape) < 3 or shape[1] > 1 else shape[2]
            value = 1.5 * rng.standard_normal(shape) / math.sqrt(fan_in)
        made[name] = value.astype(np.float32)
    return made


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer_norm(x, w, name):
    centred = x - x.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]


def dense(x, w, name):
    matrix = w[f"{name}.weight"]
    y = x @ matrix.reshape(matrix.shape[0], matrix.shape[1]).T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def turn(x):
    """Rotary positions as rotations of complex numbers: element j of the first half with element j of the second."""
    steps, half = x.shape[0], x.shape[1] // 2
    angles = np.outer(np.arange(steps), 10000.0 ** (-np.arange(half) / half))
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag], 1)


def attention(x, w, name):
    q, kv = dense(x, w, f"{name}.to_q"), dense(x, w, f"{name}.to_kv")
    size = q.shape[1] // HEADS
    heard = []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        query, key, value = turn(q[:, part]), turn(kv[:, part]), kv[:, q.shape[1] :][:, part]
        logits = query @ key.T / math.sqrt(size)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        heard.append(odds @ value / odds.sum(1, keepdims=True))
    return dense(np.concatenate(heard, 1), w, f"{name}.to_out")


def convolution(x, w, name):
    x = dense(layer_norm(x, w, f"{name}.net1.0"), w, f"{name}.net1.2")
    channels = x.shape[1] // 2
    x = x[:, :channels] * sigmoid(x[:, channels:])
    taps, bias = w[f"{name}.ds_conv.conv.weight"][:, 0], w[f"{name}.ds_conv.conv.bias"]
    y = np.stack([np.correlate(np.pad(x[:, c], taps.shape[1] // 2), taps[c]) for c in range(channels)], 1) + bias
    y = y * sigmoid(y)
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(np.maximum(y.var(1, keepdims=True), 1e-6))
    return dense(y * w[f"{name}.net2.1.gamma"].ravel(), w, f"{name}.net2.2")


def feed_forward(x, w, name):
    hidden = dense(layer_norm(x, w, f"{name}.norm"), w, f"{name}.fn.net.0")
    return dense(hidden * sigmoid(hidden), w, f"{name}.fn.net.3")


def logits(w, semantic, codes):
    """semantic [T] and codes [T, Q] with the mask's where they are not known → [T, Q, K]."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    levels, width, size = w["net.to_logits.2.weight"].shape
    x = w["semantic_token_emb.weight"][semantic]
    for q in range(levels):
        x = x + w["net.code_embeds.weight"][q * (size + 1) + codes[:, q]]
    depth = len({name.split(".")[3] for name in w if name.startswith("net.conformer.layers")})
    for i in range(depth):
        layer = f"net.conformer.layers.{i}"
        x = x + feed_forward(x, w, f"{layer}.ff1.fn") / 2
        x = x + attention(layer_norm(x, w, f"{layer}.attn.norm"), w, f"{layer}.attn.fn")
        x = x + convolution(x, w, f"{layer}.conv")
        x = x + feed_forward(x, w, f"{layer}.ff2.fn") / 2
        x = layer_norm(x, w, f"{layer}.post_norm")
    x = dense(x, w, "net.heads.0").reshape(len(x), levels, width)
    x = layer_norm(x, w, "net.to_logits.0")
    bias = w["net.to_logits.2.bias"].reshape(levels, size)
    return np.stack([x[:, q] @ w["net.to_logits.2.weight"][q] + bias[q] for q in range(levels)], 1)


def counts(steps, length):
    """How many codes each of the passes of level 0 masks again, in single precision as torch computes it."""
    step, found = np.float32(1.0 / steps), []
    for i in range(steps + 1):
        # torch.linspace goes up from 0 in its first half and down from 1 in its second.
        time = step * np.float32(i) if 2 * i < steps else np.float32(1) - step * np.float32(steps - i)
        found.append(int(np.cos(time * np.float32(np.pi) / np.float32(2)) * np.float32(length)))
    return found


def gap(values):
    """By how much the largest along the last axis exceeds the next."""
    ordered = np.sort(values, -1)
    return float((ordered[..., -1] - ordered[..., -2]).min())


def generate(w, semantic, prompt, steps, noise, greedy=True, temperature=1.0, kept=0.3):
    """(codes [N, Q+1], the smallest margin, [(codes read, logits) of each pass]).

    semantic [N], prompt [P, Q+1]; `noise(i)` [P+N, Q, K] in 0..1 for pass i.
    """
    levels, _, size = w["net.to_logits.2.weight"].shape
    start, length = len(prompt), len(prompt) + len(semantic)
    condition = np.concatenate([prompt[:, 0], semantic])
    codes = np.full((length, levels), size)
    codes[:start] = prompt[:, 1:]
    pending = np.zeros((length, levels), bool)
    pending[start:] = True
    margin, passes = np.inf, []
    for i, count in enumerate(counts(steps, length)):
        found = logits(w, condition, codes)
        passes.append((codes.copy(), found))
        if count == 0 and greedy:
            margin = min(margin, gap(found[pending]))
            codes[pending] = found.argmax(-1)[pending]
            continue
        amount = math.ceil(kept * size)
        ordered = np.sort(found, -1)
        if amount < size:
            margin = min(margin, float((ordered[..., -amount] - ordered[..., -amount - 1]).min()))
        found = np.where(found >= ordered[..., -amount, None], found, -np.inf)
        heat = max(temperature * i / steps, 1e-10)
        perturbed = found / heat - np.log(-np.log(noise(i) + 1e-10) + 1e-10)
        drawn = perturbed.argmax(-1)
        # Near temperature 0 what counts is the margin of the logits, not of their huge quotients.
        margin = min(margin, gap(perturbed) * min(heat, 1.0))
        codes[pending] = drawn[pending]
        if count == 0:
            continue
        odds = np.exp(found - found.max(-1, keepdims=True))
        doubt = 1 - np.take_along_axis(odds / odds.sum(-1, keepdims=True), drawn[..., None], -1).ravel()
        order = np.argsort(-doubt, kind="stable")
        if count < len(order):
            margin = min(margin, float(doubt[order[count - 1]] - doubt[order[count]]))
        pending = np.zeros(length * levels, bool)
        pending[order[:count]] = True
        pending = pending.reshape(length, levels)
        pending[:, 1:] = True
        pending[:start] = False
        codes[pending] = size
    for q in range(1, levels):
        found = logits(w, condition, codes)
        passes.append((codes.copy(), found))
        margin = min(margin, gap(found[:, q:]))
        codes[:, q:] = found.argmax(-1)[:, q:]
    return np.concatenate([semantic[:, None], codes[start:]], 1), margin, passes
