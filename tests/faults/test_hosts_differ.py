"""A process whose data, config or clock is another is found out, and named."""

import shutil

import numpy as np
import pod
import pytest
import synthetic

from anygpt_jax.cache import Manifest, write_shard
from anygpt_jax.records import TokenRecord

pytestmark = pytest.mark.slow


def make(workdir):
    config = synthetic.config(workdir, steps=8, check_hosts_every=3, eval_every=0)
    config.mesh.update(data=2)
    config.heartbeat_seconds = 10
    return config


@pytest.fixture
def two(tmp_path):
    """Two workdirs, as of hosts with disks of their own; checkpoints are shared."""
    for i in range(2):
        synthetic.write_cache(tmp_path / f"host_{i}" / "cache")
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / f"host_{i}" / "checkpoints").symlink_to(tmp_path / "checkpoints")
    return tmp_path


def run(two, **more):
    configs = [make(two / f"host_{i}") for i in range(2)]
    with pod.running(configs[0], two / "said", devices=1, configs=configs, **more) as job:
        return job.wait(), [output.read_text() for output in job.outputs]


def flip(cache):
    """Another token in every record of a shard, and nothing that its manifest or its lengths would tell."""
    shard = Manifest.load(cache).tasks["documents"]["train"][0]
    vocabulary = synthetic.vocabulary()
    made = [synthetic.record(vocabulary, "documents", i, np.random.default_rng((2, 0, i))) for i in range(30)]
    other = [TokenRecord(r.key, r.source, np.where(r.tokens == 5, 6, r.tokens).astype(np.int32), r.spans) for r in made]
    assert any((a.tokens != b.tokens).any() for a, b in zip(made, other, strict=True))
    name = shard.path.removesuffix(".array_record")
    shutil.rmtree(cache.parent / "other", ignore_errors=True)
    write_shard(cache.parent / "other", name, other)
    shutil.copy(cache.parent / "other" / shard.path, cache / shard.path)


def test_another_token_in_one_process_cache_stops_both(two):
    flip(two / "host_1" / "cache")
    codes, said = run(two)
    assert codes != [0, 0] and 0 not in codes
    assert "is not the same on all 2 processes" in said[0] + said[1]
    assert "anygpt inspect --verify" in said[0] + said[1]
    assert not [p for p in (two / "checkpoints").iterdir() if p.name.isdigit() and int(p.name) > 3]


def test_another_manifest_or_config_is_said_before_anything_is_compiled(two):
    synthetic.write_cache(two / "host_1" / "cache", records=40)
    codes, said = run(two)
    assert 0 not in codes
    assert "The token cache is not the same on all 2 processes: 1 differs from the others." in said[0]
    assert "Compiled" not in said[0] + said[1]


def test_a_clock_that_is_off_is_a_warning(two):
    codes, said = run(two, clocks=(0.0, 40.0))
    assert codes == [0, 0], said
    assert "Compiled" in said[0]
    assert "The clocks of processes {1: 40" in said[0] or "The clocks of processes {0: -40" in said[0]
