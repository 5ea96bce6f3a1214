"""LLaMA-2's training step compiled for TPU slices, beside MaxText's, by the reader of `anygpt plan`.

    .venv/bin/python tests/benchmarks/tpu_plan.py [--only v5p] [--maxtext .venv-maxtext/bin/python] [--json PATH]

No TPU is needed; a program takes one to eight minutes to compile and is kept for the next run. With `--maxtext` (the
Python of an environment made as `maxtext_step.py` says) the peer is compiled too, by the same libtpu; without it, the
figures recorded for libtpu 0.0.42.1 stand in, and the table says so. Both are llama2-7b with a vocabulary of 32,000,
AdamW, bfloat16 compute and float32 weights, at MaxText's own settings for the chip, read by the same reader with the
same assumptions (attention kernels at 55 % of the peak, collectives by a ring model). Ours are listed at the same
tokens a device. Estimates compare programs; they are no measurements of hardware.

Then what has no peer here: eight-bit products, tensor parallelism, several slices, 13B and 70B.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import math
import pathlib
import subprocess

from anygpt_jax.cli import load_config
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.sharding import BATCH_AXES
from anygpt_jax.planning.chips import GIB, Topology
from anygpt_jax.planning.compile import Compiled, Memory, compiler_version, default_cache
from anygpt_jax.planning.estimate import Estimate, estimate
from anygpt_jax.planning.main import plan
from anygpt_jax.planning.sweep import parse_mesh
from anygpt_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(32_000, "", 0, 1, 2, (), ())


@dataclasses.dataclass(frozen=True)
class Setting:
    topology: str
    mesh: str
    rows: int  # of the batch on a device that has rows of its own
    length: int
    remat: str
    microbatches: int = 1
    slices: int = 1
    config: str = "llama2_7b"
    quantization: str = "none"

    @property
    def barriers(self) -> str:
        """What `anygpt plan` finds fastest on the chip."""
        return "all" if self.topology.startswith("v5p") else "all_but_gates"

    @property
    def name(self) -> str:
        parts = [self.config, f"{self.topology}{f' × {self.slices}' if self.slices > 1 else ''}", self.mesh]
        parts += [f"{self.rows} × {self.length}", self.remat]
        parts += [f"{self.microbatches} microbatches"] * (self.microbatches > 1)
        return " ".join(parts + [self.quantization] * (self.quantization != "none"))


@dataclasses.dataclass(frozen=True)
class Row:
    """What the table shows of a compiled step. GiB, seconds, shares of 1."""

    name: str
    tokens: int  # a device and step
    peak: float
    allocated: float
    seconds: float
    mfu: float
    exposed: float
    matmul: float
    roofline: float
    dcn_in_layers: float = 0.0  # bytes


@dataclasses.dataclass(frozen=True)
class Peer:
    """MaxText's own settings of llama2-7b for a chip, and its figures as recorded."""

    topology: str
    rows: int
    length: int
    remat: str
    recorded: Row


PEERS = (
    Peer("v5p:4x4x4", 4, 4096, "minimal", Row("", 4 * 4096, 45.90, 49.16, 2.596, 0.589, 0.0573, 2.050, 1.434)),
    Peer("v5e:16x16", 4, 2048, "save_qkv_proj", Row("", 4 * 2048, 10.03, 11.54, 2.986, 0.575, 0.1640, 2.473, 1.955)),
    # Without the scoped-VMEM option of its own v6e script, which multiplies the time to compile; ours goes without too.
    Peer("v6e:16x16", 12, 4096, "full", Row("", 12 * 4096, 19.40, 28.59, 5.867, 0.391, 0.0820, 4.762, 2.690)),
)
OURS = (
    Setting("v5p:4x4x4", "fsdp=64", 4, 4096, "most"),
    Setting("v5p:4x4x4", "fsdp=64", 4, 4096, "minimal"),
    Setting("v5e:16x16", "data=16,fsdp=16", 4, 2048, "all_but_mlp", microbatches=2),
    Setting("v5e:16x16", "data=16,fsdp=16", 4, 2048, "minimal", microbatches=4),
    Setting("v5e:16x16", "data=16,fsdp=16", 2, 2048, "minimal"),
    Setting("v6e:16x16", "fsdp=256", 12, 4096, "full"),
    Setting("v6e:16x16", "data=16,fsdp=16", 2, 4096, "minimal"),
)
ALONE = (
    Setting("v5e:16x16", "data=16,fsdp=16", 4, 2048, "all_but_mlp", microbatches=2, quantization="int8"),
    Setting("v5e:16x16", "slice=2,data=16,fsdp=16", 4, 2048, "all_but_mlp", microbatches=2, slices=2),
    Setting("v5e:16x16", "slice=4,data=16,fsdp=16", 4, 2048, "all_but_mlp", microbatches=2, slices=4),
    Setting("v5p:4x4x4", "fsdp=32,tensor=2", 8, 4096, "most"),
    Setting("v5p:4x4x8", "fsdp=128", 2, 4096, "most", config="llama2_13b"),
    Setting("v5p:8x8x8", "fsdp=512", 1, 4096, "minimal", config="llama2_70b"),
    Setting("v5p:8x8x8", "fsdp=128,tensor=4", 4, 4096, "most", config="llama2_70b"),
)


def ours(setting: Setting) -> Row | str:
    """The row, or why there is none."""
    topology = Topology.parse(setting.topology, setting.slices)
    config = load_config(f"configs/{setting.config}.py")
    axes = dict.fromkeys(config.mesh, 1) | parse_mesh(setting.mesh)
    config.mesh.update(axes)
    config.model.update(remat=setting.remat, quantization=setting.quantization, matmul_barriers=setting.barriers)
    config.train.update(
        batch_size=setting.rows * math.prod(axes[axis] for axis in BATCH_AXES),
        seq_len=setting.length,
        microbatches=setting.microbatches,
    )
    e = plan(config, VOCABULARY, topology, default_cache())
    return row(setting.name, e) if e.fits else f"{setting.name}: does not fit ({e.refused or e.memory.total / GIB})"


def row(name: str, e: Estimate) -> Row:
    assert e.speed is not None
    s, tokens = e.speed, e.batch_size * e.seq_len // math.prod(e.mesh.values())
    of_matmul = s.matmul_seconds, s.matmul_roofline_seconds
    return Row(
        name, tokens, e.memory.peak / GIB, e.memory.total / GIB, s.step_seconds, s.mfu, s.exposed_seconds, *of_matmul,
        e.dcn_bytes_in_layers,
    )  # fmt: skip


def maxtexts(peer: Peer, python: str | None) -> Row:
    """The peer compiled by its own Python (kept beside our programs), or what is recorded of it."""
    name = f"MaxText {peer.topology} {peer.rows} × {peer.length} {peer.remat}"
    if python is None:
        return dataclasses.replace(peer.recorded, name=f"{name} (recorded)")
    kept = default_cache() / f"maxtext_{peer.topology.replace(':', '_')}_{compiler_version()}.json.gz"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        script = pathlib.Path(__file__).with_name("maxtext_step.py")
        command = [python, str(script), "--topology", peer.topology, "--out", str(kept)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = json.loads(gzip.decompress(kept.read_bytes()))
    if made["versions"]["libtpu"] != compiler_version():
        raise SystemExit(f"{kept} is libtpu {made['versions']['libtpu']}'s, and ours {compiler_version()}: remove it.")
    topology = Topology.parse(peer.topology)
    model = ModelConfig.from_config(load_config("configs/llama2_7b.py").model, VOCABULARY)
    memory = Memory(**made["memory"])
    state = {"params": memory.arguments // 3, "optimizer": 2 * memory.arguments // 3}
    compiled = Compiled("maxtext", made["text"], memory, "", made["seconds"], True, 0, state)
    batch = peer.rows * topology.devices
    mesh = {"fsdp": topology.devices}
    return row(name, estimate(compiled, model, topology, mesh, batch, peer.length, 1, compiler_version()))


HEAD = f"{'':<78}{'peak':>7}{'alloc':>7}{'step s':>8}{'MFU %':>7}{'exposed %':>10}{'matmul':>8}{'faster a token':>16}"


def line(r: Row, peer: Row | None) -> str:
    faster = f"{ratio(r, peer):>16.3f}" if peer else ""
    return (
        f"{r.name:<78}{r.peak:>7.2f}{r.allocated:>7.2f}{r.seconds:>8.3f}{100 * r.mfu:>7.1f}"
        f"{100 * r.exposed / r.seconds:>10.1f}{100 * r.roofline / r.matmul:>7.0f}%{faster}"
    )


def ratio(r: Row, peer: Row) -> float:
    """How many times the tokens of the peer's second."""
    return (peer.seconds / peer.tokens) / (r.seconds / r.tokens)


def result(r: Row, peer: Row | None) -> dict:
    conditions = dataclasses.asdict(r) | {"libtpu": compiler_version(), "estimated": True}
    return {
        "name": r.name, "ours": r.seconds / r.tokens, "peer": peer and peer.seconds / peer.tokens,
        "unit": "device-seconds a token", "ratio": peer and ratio(r, peer), "spread": 0.0,
        "conditions": conditions | ({"peer": dataclasses.asdict(peer)} if peer else {}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="topologies that begin with this")
    parser.add_argument("--maxtext", metavar="PYTHON", help="of an environment with MaxText: compile the peer too")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    results = []
    print(
        "HBM in GiB: peak, the most that is live at once; alloc, what the compiler lays out. matmul: of its roofline."
    )
    print(HEAD)
    for peer in (p for p in PEERS if p.topology.startswith(args.only)):
        theirs = maxtexts(peer, args.maxtext)
        print(line(theirs, theirs))
        for setting in (s for s in OURS if s.topology == peer.topology):
            found = ours(setting)
            print(found if isinstance(found, str) else line(found, theirs), flush=True)
            if isinstance(found, Row):
                results.append(result(found, theirs))
    for setting in (s for s in ALONE if s.topology.startswith(args.only)):
        found = ours(setting)
        print(found if isinstance(found, str) else line(found, None), flush=True)
        if isinstance(found, Row):
            assert found.dcn_in_layers == 0, f"{found.name}: the layers send {found.dcn_in_layers} bytes over DCN"
            results.append(result(found, None))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
