"""Diffusion samplers against diffusers' DDIMScheduler, PNDMScheduler and DDPMScheduler on a nonlinear model."""

import jax.numpy as jnp
import numpy as np
import pytest

from anygpt_jax.modalities.codecs import schedulers
from anygpt_jax.modalities.codecs.schedulers import NoiseSchedule, SamplerSettings

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

SHAPE = (2, 3, 4)


def reference(method, settings, steps, x):
    noise = settings.noise
    config = {
        "num_train_timesteps": noise.train_steps,
        "beta_start": noise.beta_start,
        "beta_end": noise.beta_end,
        "beta_schedule": noise.betas,
        "set_alpha_to_one": settings.final_one,
        "steps_offset": settings.offset,
        "prediction_type": settings.prediction,
        "timestep_spacing": settings.spacing,
    }
    if method == "ddim":
        scheduler = diffusers.DDIMScheduler(clip_sample=False, **config)
    else:
        scheduler = diffusers.PNDMScheduler(skip_prk_steps=settings.skip_prk, **config)
    scheduler.set_timesteps(steps)
    x, inputs = torch.from_numpy(x), []
    for time in scheduler.timesteps:
        inputs.append(x.numpy())
        x = scheduler.step(torch.tanh(1.3 * x + 0.001 * time) - 0.2 * x, time, x).prev_sample
    return scheduler.timesteps.numpy(), inputs, x.numpy()


def ours(method, settings, steps, x):
    plan = schedulers.plan(method, settings, steps)

    def network(x, time):
        return jnp.tanh(1.3 * x + 0.001 * time) - 0.2 * x

    return plan.times, np.asarray(schedulers.sample(plan, network, jnp.asarray(x)))


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 30])
@pytest.mark.parametrize("prediction", schedulers.PREDICTIONS)
@pytest.mark.parametrize("method", ["ddim", "pndm"])
def test_samples_are_those_of_diffusers(method, prediction, steps):
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    settings = SamplerSettings(prediction=prediction)
    times, _, expected = reference(method, settings, steps, x)
    found_times, found = ours(method, settings, steps, x)
    np.testing.assert_array_equal(found_times, times)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "settings",
    [
        SamplerSettings(spacing="trailing", offset=0),
        SamplerSettings(spacing="linspace", offset=0),
        SamplerSettings(final_one=True, offset=0),
        SamplerSettings(NoiseSchedule("linear", 0.0001, 0.02), "epsilon", final_one=True),
        SamplerSettings(NoiseSchedule("squaredcos_cap_v2", 0.0001, 0.02, 400), "v_prediction"),
    ],
    ids=lambda s: f"{s.spacing}-{s.offset}-{s.final_one}-{s.noise.betas}-{s.prediction}",
)
@pytest.mark.parametrize("method", ["ddim", "pndm"])
def test_every_setting_does_what_diffusers_does(method, settings):
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    times, _, expected = reference(method, settings, 7, x)
    found_times, found = ours(method, settings, 7, x)
    np.testing.assert_array_equal(found_times, times)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("steps", [4, 5, 11, 20])
@pytest.mark.parametrize("prediction", schedulers.PREDICTIONS)
def test_pndm_with_runge_kutta_steps(prediction, steps):
    x = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    settings = SamplerSettings(prediction=prediction, offset=0, skip_prk=False)
    times, _, expected = reference("pndm", settings, steps, x)
    found_times, found = ours("pndm", settings, steps, x)
    np.testing.assert_array_equal(found_times, times)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("betas", schedulers.BETAS)
def test_the_signal_left_is_that_of_diffusers(betas):
    theirs = diffusers.DDPMScheduler(beta_schedule=betas, beta_start=0.0001, beta_end=0.02).alphas_cumprod.numpy()
    ours = NoiseSchedule(betas, 0.0001, 0.02).signal()
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    # The noise of the first step, which unCLIP adds to image embeddings, is a small difference of these.
    assert abs(np.sqrt(1 - ours[0]) - np.sqrt(1 - theirs[0])) < 1e-6


def test_impossible_numbers_of_steps_and_unknown_names_are_refused():
    settings = SamplerSettings()
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="sampling steps"):
            schedulers.plan("ddim", settings, steps)
    with pytest.raises(ValueError, match="go past step 999"):
        schedulers.plan("ddim", settings, 1000)
    with pytest.raises(ValueError, match="at least 4"):
        schedulers.plan("pndm", SamplerSettings(skip_prk=False), 3)
    with pytest.raises(ValueError, match="euler"):
        schedulers.plan("euler", settings, 5)
    with pytest.raises(ValueError, match="sample"):
        SamplerSettings(prediction="sample")
