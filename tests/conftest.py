"""Runs before any test imports jax: CPU only, with eight fake devices for what is sharded."""

import gc
import os
import pathlib

from compiling import QUICK

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# What one test has compiled no other one, nor a process that it starts, need compile again.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

from anygpt_jax.modalities import base
from anygpt_jax.modalities.text import TextTokenizer

# Files that take minutes begin first, so that no worker is left alone with one at the end.
LONGEST = (
    "test_killed",
    "test_tokenize_killed",
    "test_topology",
    "test_planning_compile",
    "test_convert_gguf",
    "test_hosts",
    "test_docs",
)

REAL = (base._entry_points, TextTokenizer.__dict__["load"])


@pytest.fixture(autouse=True, scope="module")
def whose_tokenizers(request):
    """`tiny_world` puts small stand-ins in the place of the tokenizers, for the modules that import it and no others."""
    if hasattr(request.module, "tiny_world"):
        request.module.tiny_world.install()
    else:
        base._entry_points, TextTokenizer.load = REAL
        base.get.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """Compiled programs of a module go with it: of a whole run they would take many gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.path.name.startswith(LONGEST))  # a stable sort
