"""What the plan of a synthesis takes for granted: shares kept, throughputs, prices, each with where it is from.

None was measured by this project. Prices and throughputs were looked up on 2026-11-29.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator as it is rented, in US dollars."""

    name: str
    dollars: float  # an hour
    source: str


@dataclasses.dataclass(frozen=True)
class Generator:
    """`rates` are of one chip, a second, by the names of `plan.Use`."""

    chip: Chip
    rates: Mapping[str, float]
    published: bool  # as it stands; else it is our estimate from what is published
    source: str


H100 = Chip(
    "H100 SXM", 2.69,
    "RunPod's secure cloud by spheron.network/blog/runpod-h100-pricing-2026 of 2026-05-22, not its own list",
)  # fmt: skip
RTX_4090 = Chip(
    "RTX 4090", 0.60, "RunPod on demand by deploybase.ai/articles/runpod-gpu-pricing of 2026-03-10, not its own list"
)  # fmt: skip
GENERATORS: Mapping[str, Generator] = {
    # 217,393 tokens in and 201,422 out take 178.01 s, 998,175 and 50,000 take 328.04 s: the two rates solve both.
    "Qwen/Qwen3-32B": Generator(
        H100, {"input_tokens": 3326.0, "output_tokens": 1788.0}, False,
        "vLLM 0.11, bfloat16: from both loads of docs.gpustack.ai/latest/performance-lab/qwen3-32b/h100",
    ),
    "black-forest-labs/FLUX.1-schnell": Generator(
        RTX_4090, {"images": 1 / (1.8 * 0.9 / 2.4)}, False,
        "1.8 s at 1024 px in float8 by gigagpu.com/rtx-4090-24gb-flux-schnell-benchmark; at 512 px 0.9/2.4 of it, "
        "which gigagpu.com/rtx-5060-ti-16gb-for-flux-api has of another card",
    ),
    "ACE-Step/ACE-Step-v1-3.5B": Generator(
        RTX_4090, {"music_seconds": 34.48}, True,
        "27 steps, one piece at a time: README of github.com/ace-step/ACE-Step",
    ),
    "kokoro": Generator(
        RTX_4090, {"speech_seconds": 36.4}, False,
        "the slower text on an RTX 4060 Ti, taken as no faster here: README of github.com/remsky/Kokoro-FastAPI",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What `plan.Plan.of` takes unless it is given others. Shares are of 0 to 1."""

    characters_a_token: float = 4.0
    characters_a_second: float = 16.4  # of Kokoro's speech: 64,996 in 66 min 6 s by its server's README
    music_seconds: float = 20.0  # of a piece: what AnyGPT's command line reads of one
    # Shares that go on. No run has shown them for these generators.
    topics_kept: float = 0.75  # the rounds of a meta-topic do not see each other and repeat topics
    scenarios_kept: float = 0.97
    scripts_kept: float = 0.80  # can be read, and pass the filters of scripts
    selected_kept: float = 0.90  # no duplicates, and balanced
    media_kept: float = 0.97  # every medium is made and whole; no judge of their content is set
    busy: float = 0.7  # of the rented time; else models load, stages end, work is repeated
    at_once: int = 4  # accelerators of a kind, for hours by the clock
    voice_dialogues: float = 100_000.0  # that the filters of scripts leave: an instruction and its answer, both spoken
    voice_characters: float = 300.0  # of the two together; the paper does not say
    generators: Mapping[str, Generator] = dataclasses.field(default_factory=lambda: GENERATORS)
