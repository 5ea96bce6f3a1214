"""The command line: overrides are checked, mistakes are one sentence and status 2."""

import pytest

from anygpt_jax import cli
from anygpt_jax.errors import UserError

CONFIG = "configs/quickstart.py"


def test_overrides_are_read_by_the_type_of_the_setting():
    config = cli.load_config(CONFIG, ["--config.train.steps=7", "--config.train.learning_rate=1e-4"])
    assert config.train.steps == 7 and config.train.learning_rate == 1e-4
    assert cli.load_config(f"{CONFIG}:small").train.steps < cli.load_config(CONFIG).train.steps


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.nonsense=3", "has no setting 'nonsense'"),
        ("--config.train.nonsense=3", "has no setting 'nonsense'"),
        ("--config.train.steps=many", "invalid literal"),
    ],
)
def test_a_mistaken_override_is_one_sentence(override, message):
    with pytest.raises(UserError, match=message):
        cli.load_config(CONFIG, [override])


def test_mistakes_end_with_status_2(capsys, tmp_path):
    assert cli.main(["train", "--config=configs/nowhere.py"]) == 2
    assert "No config at configs/nowhere.py" in capsys.readouterr().err
    assert cli.main(["train", f"--config={CONFIG}", f"--workdir={tmp_path}"]) == 2
    assert "run `anygpt tokenize` first" in capsys.readouterr().err
    for unknown in (["frobnicate"], ["train", f"--config={CONFIG}", "--stepps=3"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(unknown)


def test_a_full_disk_says_so(monkeypatch, capsys):
    def full(config, args):
        raise OSError(28, "No space left on device", "runs/x/cache")

    monkeypatch.setattr("anygpt_jax.data.inspect.run", full)
    assert cli.main(["inspect", f"--config={CONFIG}"]) == 2
    assert capsys.readouterr().err.startswith("anygpt: The disk is full (runs/x/cache)")


def test_an_interruption_is_one_sentence(monkeypatch, capsys):
    def interrupted(config, args):
        raise KeyboardInterrupt

    monkeypatch.setattr("anygpt_jax.data.inspect.run", interrupted)
    assert cli.main(["inspect", f"--config={CONFIG}"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_missing_package_is_not_tried_again(tmp_path, capsys):
    (tmp_path / "c.py").write_text("import no_such_package\n")
    assert cli.main(["train", f"--config={tmp_path}/c.py"]) == 2
    error = capsys.readouterr().err
    assert error.rstrip().splitlines()[-1].startswith("anygpt: No module named 'no_such_package'; install")
    assert "c.py" in error  # where
