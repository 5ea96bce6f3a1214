"""AnyInstruct in full size: 108,000 dialogues by open generators on one's own servers (docs/synthesis_108k.md).

It was never run: no accelerator was at hand. What it asks for is counted by
`python -m anygpt_jax.synthesis.plan --config=configs/synthesize_108k.py`.
"""

import importlib.util
import pathlib

import ml_collections

from anygpt_jax.errors import UserError

SPEC = importlib.util.spec_from_file_location(
    "synthesize_small", pathlib.Path(__file__).with_name("synthesize_small.py")
)


def get_config(part: str = "") -> ml_collections.ConfigDict:
    """`:voice` is AnyGPT's 100,000 voice dialogues: conversations of instruction sets of yours, spoken."""
    if part not in ("", "voice"):
        raise UserError(f"The 108k set has the part `voice` besides itself, not {part!r}.")
    small = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(small)
    c = small.get_config()
    c.workdir = "runs/synthesize_108k"
    s = c.synthesize
    s.shards = 100  # one a meta-topic: a shard's media are packed in memory
    s.rounds = 4
    s.topics_a_round = 50
    # 20,000 topics, of which a quarter repeats others; what is left after the filters is in the plan.
    s.scenarios_a_topic = 12
    # Two media in most, as in the paper: 1.9 pictures and 1.05 pieces of music a dialogue.
    s.requirements = ml_collections.ConfigDict(
        {"user_image": 0.05, "user_music": 0.1, "ask_image": 0.05, "ask_music": 0.05,
         "user_image+ask_image": 0.2, "user_image+ask_music": 0.2, "user_music+ask_image": 0.25,
         "ask_image+ask_music": 0.1}
    )  # fmt: skip
    s.filters.selection.target = ml_collections.ConfigDict(s.requirements.to_dict())
    s.spoken = 0.93  # the paper's 503,000 recordings are so many of its utterances
    s.held_out = 0.01

    # Own servers: prices are 0, and max_cost (a ceiling in dollars) needs one. With a service's, set both.
    # vllm serve Qwen/Qwen3-32B --max-model-len 8192, one a card behind a balancer
    s.text = ml_collections.ConfigDict(
        {"backend": "http", "base_url": "http://localhost:8000/v1", "model": "Qwen/Qwen3-32B",
         "key_variable": "VLLM_API_KEY", "temperature": 1.0, "max_tokens": 2048, "concurrency": 64, "timeout": 600.0,
         "extra": {"chat_template_kwargs": {"enable_thinking": False}}, "prices": {"input": 0.0, "output": 0.0},
         "max_cost": None}
    )  # fmt: skip
    # vllm serve black-forest-labs/FLUX.1-schnell --omni, or another server with images/generations
    s.image = ml_collections.ConfigDict(
        {"backend": "http", "base_url": "http://localhost:8001/v1", "model": "black-forest-labs/FLUX.1-schnell",
         "key_variable": "VLLM_API_KEY", "concurrency": 4, "extra": {"size": "512x512", "num_inference_steps": 4},
         "seed_field": "seed", "prices": {"image": 0.0}, "max_cost": None}
    )  # fmt: skip
    # ghcr.io/remsky/kokoro-fastapi-gpu, which asks for no key; its streamed WAV has no length, its FLAC has
    s.speech = ml_collections.ConfigDict(
        {"backend": "http", "base_url": "http://localhost:8880/v1", "model": "kokoro", "key_variable": "",
         "concurrency": 4, "extra": {"response_format": "flac"}, "prices": {"speech": 0.0}, "max_cost": None}
    )  # fmt: skip
    # A server of yours in the form of Hugging Face's text-to-audio task. With form "openai" and base_url …:8002/v1 it is
    # what `vllm-omni serve stabilityai/stable-audio-open-1.0 --omni` has, with "extra": {"audio_length": 20.0}.
    s.music = ml_collections.ConfigDict(
        {"backend": "http", "form": "task", "base_url": "http://localhost:8002/", "model": "ACE-Step/ACE-Step-v1-3.5B",
         "key_variable": "", "concurrency": 4, "timeout": 600.0, "seed_field": "seed", "extra": {"duration": 20},
         "prices": {"music": 0.0}, "max_cost": None}
    )  # fmt: skip
    s.voices = (
        "af_heart", "af_bella", "af_nicole", "af_sarah", "am_michael", "am_fenrir", "am_puck", "bf_emma", "bm_george",
        "bm_fable",
    )  # fmt: skip
    s.answering_voices = ("af_heart", "am_michael")
    if part == "voice":
        c.workdir = "runs/synthesize_108k_voice"
        s.instructions = ("instructions/*.json*",)
        s.rewrite = False  # True: Qwen3 says them as people speak, and more of them get through the filters
        s.spoken = 1.0
        s.filters.selection.target = ml_collections.ConfigDict()
    return c
