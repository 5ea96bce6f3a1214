"""Sampling of diffusion models: DDIM and PNDM as linear multistep methods, planned ahead.

Every step of either is linear in the samples and network outputs so far, with coefficients that depend on the
number of steps alone. A `Plan` holds them; `sample` runs it as one `lax.scan`, the same for every method.
Formulas: Song et al. 2021 (DDIM, equation 12), Liu et al. 2022 (PNDM, equations 9, 12, 13 and algorithm 2).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")


def _one_of(what: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ValueError(f"{what} is one of {', '.join(values)}, not {value!r}")


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """How much of the signal is left at each training step; the names are diffusers'."""

    betas: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000

    def __post_init__(self):
        _one_of("the beta schedule", self.betas, BETAS)

    def signal(self) -> Float[np.ndarray, " train_steps"]:
        """ᾱ, the products of 1 - β, in float32 as they were trained with."""
        if self.betas == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, equation 17
            at = np.cos((np.arange(self.train_steps + 1) / self.train_steps + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - at[1:] / at[:-1], 0.999)
        elif self.betas == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.train_steps) ** 2
        else:
            betas = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        return np.cumprod(1 - betas.astype(np.float32), dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """diffusers' scheduler settings. `final_one`: after the last step ᾱ is 1, else that of training step 0.

    `skip_prk`: PNDM starts with a multistep predictor-corrector (PLMS) instead of twelve Runge-Kutta evaluations.
    """

    noise: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)
    prediction: str = "v_prediction"
    spacing: str = "leading"
    offset: int = 1
    final_one: bool = False
    skip_prk: bool = True

    def __post_init__(self):
        _one_of("the prediction", self.prediction, PREDICTIONS)
        _one_of("the spacing of time steps", self.spacing, SPACINGS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Step i evaluates the network on the newest sample at `times[i]`; then the new sample is

    Σ_j `samples[i, j]` · (the sample j steps ago) + Σ_j `outputs[i, j]` · (the output j steps ago, 0 the new one).
    """

    times: Int[np.ndarray, " N"]
    samples: Float[np.ndarray, "N S"]
    outputs: Float[np.ndarray, "N K"]


def spaced(settings: SamplerSettings, steps: int) -> Int[np.ndarray, " steps"]:
    """Training steps to visit, upwards. ValueError if they are not all steps of the training.

    Lin et al. 2024 (Common diffusion noise schedules and sample steps are flawed, table 2).
    """
    trained = settings.noise.train_steps
    if not 1 <= steps <= trained:
        raise ValueError(f"{steps} sampling steps: there are 1 to {trained}")
    if settings.spacing == "leading":
        times = np.arange(steps) * (trained // steps) + settings.offset
    elif settings.spacing == "trailing":
        times = np.round(np.arange(trained, 0, -trained / steps))[::-1].astype(int) - 1
    else:
        times = np.linspace(0, trained - 1, steps).round().astype(int)
    if times[-1] >= trained:
        raise ValueError(f"{steps} sampling steps with an offset of {settings.offset} go past step {trained - 1}")
    return times


def _transfer(settings: SamplerSettings, signal: np.ndarray, time: int, to: int) -> tuple[float, float]:
    """Coefficients of the sample at `time` and of the network's output there in the sample at the earlier `to`.

    DDIM's equation 12 without noise; PNDM's equation 9 is the same map, written so that nothing cancels.
    """
    final = 1.0 if settings.final_one else float(signal[0])
    now, then = float(signal[time]), float(signal[to]) if to >= 0 else final
    a, s, a2, s2 = math.sqrt(now), math.sqrt(1 - now), math.sqrt(then), math.sqrt(1 - then)
    if settings.prediction == "epsilon":
        return a2 / a, s2 - a2 * s / a
    return a2 * a + s2 * s, s2 * a - a2 * s


def _plan(times: list[int], rows: list[tuple[int, float, dict[int, float]]]) -> Plan:
    """`rows[i]`: (the step whose sample is continued, its coefficient, coefficients of the outputs of steps)."""
    lags = 1 + max(i - base for i, (base, _, _) in enumerate(rows))
    depth = 1 + max(i - min(outputs) for i, (_, _, outputs) in enumerate(rows))
    samples, outputs = np.zeros((len(rows), lags), np.float32), np.zeros((len(rows), depth), np.float32)
    for i, (base, scale, weights) in enumerate(rows):
        samples[i, i - base] = scale
        for step, weight in weights.items():
            outputs[i, i - step] = weight
    return Plan(np.asarray(times, np.int32), samples, outputs)


def ddim(settings: SamplerSettings, steps: int) -> Plan:
    """Deterministic DDIM (η = 0, no clipping): one evaluation a step."""
    times = [int(t) for t in spaced(settings, steps)[::-1]]
    signal, ratio = settings.noise.signal(), settings.noise.train_steps // steps
    rows = []
    for i, time in enumerate(times):
        scale, weight = _transfer(settings, signal, time, time - ratio)
        rows.append((i, scale, {i: weight}))
    return _plan(times, rows)


# Adams-Bashforth, newest output first: PNDM's equation 12 and the lower orders that lead up to it.
MULTISTEP = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def pndm(settings: SamplerSettings, steps: int) -> Plan:
    """PNDM with `steps` + 1 evaluations if `skip_prk`, else `steps` + 9. ValueError if too few steps are asked for."""
    times = [int(t) for t in spaced(settings, steps)]
    if not settings.skip_prk and steps < 4:
        raise ValueError(f"PNDM with Runge-Kutta steps takes at least 4 steps, not {steps}")
    signal, ratio = settings.noise.signal(), settings.noise.train_steps // steps
    order: list[int] = []
    rows: list[tuple[int, float, dict[int, float]]] = []
    kept: list[int] = []  # steps whose outputs the multistep formula uses

    def row(base: int, time: int, to: int, mixture: dict[int, float]) -> None:
        scale, weight = _transfer(settings, signal, time, to)
        rows.append((base, scale, {step: weight * share for step, share in mixture.items()}))

    if not settings.skip_prk:
        half = ratio // 2
        for time, after in zip(times[:-4:-1], times[-2:-5:-1], strict=True):
            start = len(rows)
            kept.append(start)
            order += [time, after + half, after + half, after]
            row(start, time, time - half, {start: 1.0})
            row(start, time, after + half, {start + 1: 1.0})
            row(start, time, after, {start + 2: 1.0})
            row(start, time, after, {start + i: share for i, share in enumerate(RUNGE_KUTTA)})
        times = times[:-3]
    for time in times[::-1]:
        i = len(rows)
        kept = [*kept[-3:], i]
        order.append(time)
        weights = MULTISTEP[len(kept) - 1]
        row(i, time, time - ratio, dict(zip(kept[::-1], weights, strict=True)))
        if i == 0 and len(times) > 1:  # the first step once more, with the mean of its ends' outputs
            order.append(times[-2])
            row(0, times[-2] + ratio, times[-2], {0: 0.5, 1: 0.5})
    return _plan(order, rows)


METHODS = {"ddim": ddim, "pndm": pndm}


def plan(method: str, settings: SamplerSettings, steps: int) -> Plan:
    """ValueError for an unknown method or an impossible number of steps."""
    _one_of("the scheduler", method, tuple(METHODS))
    return METHODS[method](settings, steps)


def sample(
    plan: Plan, network: Callable[[Float[Array, B * S], Int[Array, ""]], Float[Array, B * S]], x: Float[Array, B * S]
) -> Float[Array, B * S]:
    """The sample that the plan ends with, from the noise x; `network(sample, time)` gives the model's output."""

    def mixed(weights: Float[Array, " n"], arrays: Float[Array, "n B *S"]) -> Float[Array, B * S]:
        # Not a matrix product: those may be computed in half precision.
        return jnp.sum(weights.reshape(-1, *(1,) * x.ndim) * arrays, 0)

    def newest(array: Float[Array, B * S], history: Float[Array, "n B *S"]) -> Float[Array, "n B *S"]:
        return jnp.concatenate([array[None], history[:-1]])

    def step(carry, row):
        samples, outputs = carry
        time, sample_weights, output_weights = row
        outputs = newest(network(samples[0], time).astype(x.dtype), outputs)
        new = mixed(sample_weights, samples) + mixed(output_weights, outputs)
        return (newest(new, samples), outputs), None

    samples = jnp.broadcast_to(x, (plan.samples.shape[1], *x.shape))
    outputs = jnp.zeros((plan.outputs.shape[1], *x.shape), x.dtype)
    rows = (jnp.asarray(plan.times), jnp.asarray(plan.samples, x.dtype), jnp.asarray(plan.outputs, x.dtype))
    return jax.lax.scan(step, (samples, outputs), rows)[0][0][0]
