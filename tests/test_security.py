"""Nothing of the submitter's environment is launched, on no target."""

import base64
import pathlib
import re

import pytest

from anygpt_jax import cli

ROOT = pathlib.Path(__file__).parents[1]

SECRETS = {
    "THE_ENDPOINTS_KEY": "sk-0123456789abcdef",  # the one that the config names
    "OPENAI_API_KEY": "sk-fedcba9876543210",
    "ANYGPT_TOKEN": "0f1e2d3c4b5a69788796a5b4",
    "HF_TOKEN": "hf_abcdefghijklmnop",
    "GOOGLE_APPLICATION_CREDENTIALS": "/home/somebody/account-key.json",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
}

CONFIG = """
from anygpt_jax.cli import load_config

def get_config():
    c = load_config({quickstart!r})
    c.workdir = "runs/a"
    with c.unlocked():
        c.generators = {{"text": {{"base_url": "https://models.example/v1", "key_variable": "THE_ENDPOINTS_KEY"}}}}
    return c
"""

TARGETS = {
    "local": ("--processes=1",),
    "slurm": ("--nodes=1",),
    "gke": ("--accelerator=v5e-8", "--image=registry.example/a:1", "--bucket=b", "--service-account=trainer"),
    "tpu-vm": ("--accelerator=v5e-8", "--image=registry.example/a:1", "--bucket=b", "--zone=us-west4-a"),
    "dataflow": ("--project=p", "--region=us-central1", "--image=registry.example/a:1", "--bucket=b"),
    "flink": ("--master=localhost:8081", "--image=registry.example/a:1"),
    "spark": ("--master=spark://localhost:7077", "--image=registry.example/a:1"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_secrets_of_the_environment_stay_there(target, tmp_path, monkeypatch, capfd):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(quickstart=str(ROOT / "configs" / "quickstart.py")))
    job = "tokenize" if target in ("dataflow", "flink", "spark") else "evaluate"
    assert cli.main(["launch", f"--config={config}", f"--target={target}", f"--job={job}", *TARGETS[target],
                     "--dry-run"]) == 0  # fmt: skip
    shown, said = capfd.readouterr()
    carried = shown if target != "tpu-vm" else shown + decoded(shown)
    assert "THE_ENDPOINTS_KEY" in carried  # the config is in what is shown, and with it what it says of the key
    for value in SECRETS.values():
        assert value not in carried + said
    assert [p.name for p in tmp_path.iterdir()] == ["config.py"]


def decoded(shown):
    """The config, which TPU VMs get as base64."""
    (text,) = set(re.findall(r"echo ([A-Za-z0-9+/=]{100,}) \| base64", shown))
    return base64.b64decode(text).decode()
