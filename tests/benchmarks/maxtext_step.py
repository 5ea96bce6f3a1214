"""MaxText's llama2-7b train step, compiled for a TPU slice that is not there. Run by MaxText's Python, not by ours.

    python3.12 -m venv .venv-maxtext
    .venv-maxtext/bin/pip install -c constraints/py311.txt "jax[tpu]" flax optax orbax-checkpoint grain tokamax==0.0.15 \\
        qwix==0.1.8 aqtp==0.9.0 drjax==0.2.1 pathwaysutils==0.1.13 ml_goodput_measurement==0.2.3 omegaconf==2.4.0 \\
        tiktoken==0.14.0 tensorboardX transformers sentencepiece sympy pillow jinja2 pydantic
    .venv-maxtext/bin/pip install --no-deps maxtext==0.2.4
    .venv-maxtext/bin/python tests/benchmarks/maxtext_step.py --topology v5p:4x4x4 --out v5p.json.gz

0.2.4 is the last release that accepts jax 0.10.2, the version whose libtpu (0.0.42.1) gives cycles; of what it declares,
only what compiling imports is installed: neither TensorFlow nor PyTorch. Nothing of MaxText's is contained here: its
ahead-of-time compilation is called as it is, and the compiled program kept. A step takes one to ten minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import importlib.metadata
import json
import os
import pathlib
import sys
import time
from typing import Any

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # any: it only spares a look-up
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# The set of `anygpt_jax.training.compiler.OVERLAP`.
COMPILER = (
    "xla_tpu_enable_async_collective_fusion",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    "xla_tpu_enable_async_collective_fusion_multiple_steps",
    "xla_tpu_overlap_compute_collective_tc",
    "xla_enable_async_all_gather",
    "xla_tpu_enable_data_parallel_all_reduce_opt",
    "xla_tpu_data_parallel_opt_different_sized_ops",
)
PACKAGES = ("maxtext", "jax", "jaxlib", "libtpu", "flax", "optax", "tokamax", "qwix", "numpy")


@dataclasses.dataclass(frozen=True)
class Slice:
    """What MaxText calls a slice, and its own settings of llama2-7b for it."""

    name: str
    rows: int  # a device
    length: int
    remat: str
    kernel: tuple[tuple[str, int], ...] = ()  # the attention kernel's block sizes


SLICES = {
    "v5p:4x4x4": Slice("v5p-128", 4, 4096, "minimal"),
    "v5e:16x16": Slice("v5e-256", 4, 2048, "save_qkv_proj"),
    "v6e:16x16": Slice(
        "v6e-256", 12, 4096, "full", (("sa_block_q", 1024), ("sa_block_q_dkv", 2048), ("sa_block_q_dq", 2048))
    ),
}


def settings(at: Slice) -> dict[str, Any]:
    """What differs from MaxText's base configuration."""
    return {
        "model_name": "llama2-7b",
        "compile_topology": at.name,
        "compile_topology_num_slices": 1,
        "compile_xla_flags": " ".join(f"--{option}=true" for option in COMPILER),
        "per_device_batch_size": at.rows,
        "max_target_length": at.length,
        "remat_policy": at.remat,
        "attention": "flash",
        "ici_fsdp_parallelism": -1,
        "use_iota_embed": True,
        "dtype": "bfloat16",
        "weight_dtype": "float32",
        "opt_type": "adamw",
        "scan_layers": True,
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "log_config": False,
        "jax_cache_dir": "",
        **dict(at.kernel),
    }


def compile_step(chosen: dict[str, Any]) -> tuple[Any, float]:
    """MaxText's own ahead-of-time compilation: the `jax.stages.Compiled` step and the seconds it took to make."""
    import maxtext.configs
    from maxtext.trainers.pre_train import train_compile

    made: list[tuple[Any, float]] = []
    jit_and_compile = train_compile.jit_and_compile

    def kept(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        compiled = jit_and_compile(*args, **kwargs)
        made.append((compiled, time.perf_counter() - began))
        return compiled

    train_compile.jit_and_compile = kept
    base = pathlib.Path(maxtext.configs.__path__[0]) / "base.yml"
    train_compile.main([sys.argv[0], str(base), *(f"{key}={value}" for key, value in chosen.items())])
    return made[0]


def memory(compiled: Any) -> dict[str, int]:
    """What the compiler allocates on one device, bytes, by the names of `anygpt_jax.planning.compile.Memory`."""
    stats = compiled.memory_analysis()
    return {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "program": stats.generated_code_size_in_bytes,
        "host": stats.host_temp_size_in_bytes + stats.host_argument_size_in_bytes,
        "peak": stats.peak_memory_in_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", choices=SLICES, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="gzip'd JSON")
    parser.add_argument("--rows", type=int, help="of a batch on one device")
    parser.add_argument("--length", type=int)
    parser.add_argument("--remat", help="one of MaxText's policies")
    args = parser.parse_args()
    given = {key: value for key in ("rows", "length", "remat") if (value := getattr(args, key)) is not None}
    os.environ.update(ENVIRONMENT)
    chosen = settings(dataclasses.replace(SLICES[args.topology], **given))
    compiled, seconds = compile_step(chosen)
    result = {
        "text": compiled.as_text(),
        "memory": memory(compiled),
        "seconds": seconds,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "settings": chosen,
    }
    args.out.write_bytes(gzip.compress(json.dumps(result).encode(), 6))


if __name__ == "__main__":
    main()
