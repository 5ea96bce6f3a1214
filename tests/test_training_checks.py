"""Bad configs are refused before anything is compiled: every problem, a sentence each, at once."""

import pytest
import synthetic

from anygpt_jax import cli
from anygpt_jax.errors import UserError
from anygpt_jax.planning import main as planning
from anygpt_jax.planning.chips import Topology
from anygpt_jax.training import loop
from anygpt_jax.training.checks import config_problems, refuse
from anygpt_jax.vocabulary import Vocabulary

VOCABULARY = synthetic.vocabulary()


def config(**sections):
    made = synthetic.config("unused", batch_size=8)
    made.model.n_kv_heads = 4
    for section, values in sections.items():
        made[section].update(values)
    return made


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": {"n_heads": 6}}, ["n_heads 6 must be a multiple of n_kv_heads 4"]),
        ({"mesh": {"fsdp": 3}}, ["train.batch_size=8 must", "model.d_model=32 must be a multiple of mesh fsdp = 3"]),
        ({"mesh": {"data": 16}}, ["needs 16 devices and there are 8", "train.batch_size=8 must"]),
        ({"mesh": {"tensor": 0}}, ["mesh.tensor=0 must be at least 1"]),
        ({"mesh": {"tensor": 8}}, ["model.n_heads=4 must", "model.n_kv_heads=4 must"]),
        ({"train": {"seq_len": 100}, "mesh": {"context": 8}}, ["train.seq_len=100 must be a multiple of mesh context"]),
        ({"train": {"loss_chunks": 5}}, ["train.seq_len=64 must be a multiple of train.loss_chunks = 5"]),
        ({"train": {"microbatches": 3}}, ["train.microbatches = 3"]),
        ({"train": {"optimizer": "sgd"}}, ["train.optimizer 'sgd' must be adamw or muon"]),
        ({"train": {"schedule": "steps"}}, ["train.schedule 'steps' must be linear or cosine"]),
    ],
)
def test_each_problem_has_its_sentence_and_nothing_else_is_said(change, words):
    found = config_problems(config(**change), VOCABULARY, devices=8)
    assert len(found) == len(words), found
    for sentence, part in zip(found, words, strict=True):
        assert part in sentence and sentence.endswith(".")


def test_a_good_config_has_no_problems():
    for mesh in ({}, {"data": 8}, {"fsdp": 2, "tensor": 4}, {"slice": 2, "context": 2, "fsdp": 2}):
        assert config_problems(config(mesh=mesh), VOCABULARY, devices=8) == []


def test_a_block_of_the_attention_kernel_must_divide_the_sequence():
    made = config()
    made.model.attention = "splash"
    assert config_problems(made, VOCABULARY, 8) == [
        "Splash attention takes sequences of a multiple of 128 positions on each of 1 devices, not 64 in all; "
        "change train.seq_len or mesh.context."
    ]


def test_all_problems_come_at_once():
    made = config(model={"n_heads": 6, "d_ff": 49}, mesh={"tensor": 4, "data": 4}, train={"batch_size": 6})
    found = config_problems(made, VOCABULARY, devices=8)
    for words in ("n_kv_heads", "needs 16 devices", "train.batch_size=6", "model.n_heads=6", "model.d_ff=49"):
        assert sum(words in sentence for sentence in found) >= 1, words
    with pytest.raises(UserError) as e:
        refuse(found)
    assert str(e.value).count("\n") == len(found) - 1
    refuse([])


def test_training_refuses_before_it_compiles_with_the_checkpoints_complaint_among_the_others(tmp_path):
    synthetic.write_cache(tmp_path / "cache")
    good = synthetic.config(tmp_path, steps=2, save_every=2, eval_every=0)
    loop.run(good)
    other = synthetic.vocabulary(image=24)
    for old in (tmp_path / "cache").rglob("*"):
        if old.is_file():
            old.unlink()
    synthetic.write_cache(tmp_path / "cache", vocab=other)
    bad = synthetic.config(tmp_path, steps=2, save_every=2, batch_size=7)
    bad.mesh.fsdp = 4
    with pytest.raises(UserError) as e:
        loop.run(bad)
    for words in (VOCABULARY.fingerprint[:8], other.fingerprint[:8], "train.batch_size=7"):
        assert words in str(e.value)


def test_a_plan_is_refused_with_all_that_is_wrong_and_a_chip_without_the_unit(tmp_path, capsys):
    made = config(model={"quantization": "fp8", "n_heads": 6}, train={"seq_len": 62})
    made.model.attention = "splash"
    with pytest.raises(UserError) as e:
        planning.plan(made, Vocabulary(500, "", 0, 1, 2, (), ()), Topology.parse("v5e:2x2"), None)
    for words in ("n_kv_heads", "v5e has no fp8", "multiple of 128"):
        assert words in str(e.value)
    assert cli.main(["plan", "--config=configs/llama2_7b.py", "--topology=v5e:4x4", "--vocab-size=32000",
                     "--config.train.seq_len=1000", "--config.train.batch_size=10"]) == 2  # fmt: skip
    said = capsys.readouterr().err
    for words in ("v5e:4x4 × 1 is 16", "train.batch_size=10", "not 1000 in all"):
        assert words in said
