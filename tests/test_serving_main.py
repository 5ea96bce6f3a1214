"""`anygpt serve` as it is called: doors that stay shut, and mistakes that cost a sentence."""

import argparse
import importlib.util
import sys

import numpy as np
import pytest
import serving_world as world
import soundfile

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.serving import main, voices
from anygpt_jax.serving.limits import Limits


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    main.add_arguments(parser)
    return parser.parse_args(given)


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("ANYGPT_TOKEN", raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_this_machine_needs_no_token_but_its_own_name(host):
    trust = main.trust_of(arguments("--host", host, "--allow-host", "Proxy.Example"))
    assert trust.token is None and "localhost" in trust.hosts and "proxy.example" in trust.hosts


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com", "127.0.0.1.example.com", ""])
def test_the_network_needs_a_token(host, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="lets the network in; name a --token-file"):
        main.trust_of(arguments("--host", host))
    assert main.trust_of(arguments("--host", host, "--insecure")).hosts is None
    (tmp_path / "token").write_text("  0123456789abcdef\n")
    trust = main.trust_of(arguments("--host", host, "--token-file", str(tmp_path / "token")))
    assert trust.token == "0123456789abcdef"
    monkeypatch.setenv("ANYGPT_TOKEN", "from-the-environment")
    assert main.trust_of(arguments("--host", host)).token == "from-the-environment"


@pytest.mark.parametrize("token", ["", "short", "two words of a token", "täken-that-is-long-enough"])
def test_a_bad_token_is_refused(token, tmp_path):
    (tmp_path / "token").write_text(token)
    with pytest.raises(UserError, match="must be 16 or more ASCII characters without spaces"):
        main.trust_of(arguments("--token-file", str(tmp_path / "token")))
    with pytest.raises(UserError, match="cannot be read"):
        main.trust_of(arguments("--token-file", str(tmp_path / "none")))


def test_limits_are_flags(capsys):
    assert Limits.from_args(arguments()) == Limits()
    changed = Limits.from_args(arguments("--body-bytes", "5", "--drain-seconds", "0.5"))
    assert (changed.body_bytes, changed.drain_seconds, changed.queue) == (5, 0.5, Limits().queue)
    with pytest.raises(UserError, match="--queue must be more than 0, not 0"):
        Limits.from_args(arguments("--queue", "0"))
    assert cli.main(["serve", "--queue", "-1"]) == 2
    assert capsys.readouterr().err == "anygpt: --queue must be more than 0, not -1.\n"
    assert cli.main(["serve", "--host", "0.0.0.0"]) == 2


def test_voices_are_the_packages_and_a_folders(tmp_path):
    assert set(voices.load()) == {"ada", "ben", "cleo"}
    soundfile.write(tmp_path / "me.wav", np.full(8000, 0.1), 16_000)
    (tmp_path / "notes.txt").write_text("x")
    found = voices.load(tmp_path)
    assert set(found) == {"ada", "ben", "cleo", "me"} and found["me"].seconds == pytest.approx(0.5)
    (tmp_path / "bad.wav").write_bytes(world.wav(0.5)[:60])
    with pytest.raises(UserError, match=r"bad\.wav: The sound file is cut short"):
        voices.load(tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        voices.load(tmp_path / "none")


def test_a_recording_cannot_take_the_place_of_the_models_own_voice(tmp_path, capsys):
    soundfile.write(tmp_path / "default.wav", np.full(8000, 0.1), 16_000)
    assert cli.main(["serve", "--voices", str(tmp_path)]) == 2  # before the model is loaded
    message = "default.wav: 'default' is the model's own voice; give the recording another name.\n"
    assert capsys.readouterr().err == f"anygpt: {tmp_path}/{message}"


def test_without_its_packages_it_says_what_to_install(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "uvicorn" else find(name, *a))
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("anygpt_jax.serving")}
    try:
        assert cli.main(["serve"]) == 2
    finally:
        sys.modules.update(kept)
    assert (
        "Serving needs the package uvicorn; install it with `pip install 'anygpt-jax[serve]'`."
        in capsys.readouterr().err
    )
