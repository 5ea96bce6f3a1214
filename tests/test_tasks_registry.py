"""What the tasks make of a tiny world whose every field is known."""

import json

import pytest
import seqio
import tiny_world

from anygpt_jax.errors import UserError
from anygpt_jax.tasks import registry
from anygpt_jax.tasks.instructions import choose, instructions


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tasks")
    tiny_world.build(workdir, {"train": 12, "test": 6})
    config = tiny_world.config(workdir)
    registry.register(config)
    return config


def marked_examples(task, split):
    return list(seqio.get_mixture_or_task(task).get_dataset(split=split, shuffle=False).as_numpy_iterator())


def examples(task, split):
    return [example for example in marked_examples(task, split) if not example["filtered"]]


def test_a_pair_is_instruction_source_and_trained_target(config):
    for i, example in enumerate(examples("image_to_text", "train")):
        raw = tiny_world.image_example("train", i)
        asked = choose(instructions("image", "text"), raw["key"])
        assert example["key"].decode() == raw["key"]
        assert list(example["modality"]) == [b"text", b"image", b"text"]
        assert list(example["content"]) == [asked.encode(), raw["image"], raw["caption"].encode()]
        assert list(example["role"]) == [b"human", b"human", b"assistant"]
        assert list(example["loss"]) == [False, False, True]
        assert json.loads(example["attributes"]) == json.loads(raw["attributes"])
    assert i == 11


def test_both_directions_mirror_each_other(config):
    for there, back in zip(examples("speech_to_text", "test"), examples("text_to_speech", "test"), strict=False):
        if there["key"] == back["key"]:
            assert list(there["content"][1:]) == list(back["content"][1:])[::-1]


def test_formant_voices_are_heard_but_not_imitated(config):
    assert len(examples("speech_to_text", "train")) == 12
    voices = [json.loads(e["attributes"])["voice"] for e in examples("text_to_speech", "train")]
    assert voices == ["ada"] * 9
    refused = [e for e in marked_examples("text_to_speech", "train") if e["filtered"]]
    assert [e["filtered"] for e in refused] == [b"in_a_voice_to_imitate"] * 3
    assert all(json.loads(e["attributes"])["voice"] != "ada" for e in refused)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("speech_to_image", {"object"}),
        ("speech_to_music", {"instrument"}),
        ("image_to_music", {"instrument"}),
        ("music_to_image", {"object"}),
        ("image_to_speech", {"object"}),
        ("music_to_speech", {"instrument"}),
    ],
)
def test_never_trained_pairs_have_a_human_turn_and_something_to_score(config, task, expected):
    assert list(seqio.get_mixture_or_task(task).splits) == ["test"]
    found = examples(task, "test")
    assert found
    source = task.split("_")[0]
    for example in found:
        assert list(example["modality"]) == [b"text", source.encode()]
        assert list(example["role"]) == [b"human", b"human"]
        assert not example["loss"].any()
        assert expected <= set(json.loads(example["attributes"]))


def test_image_to_music_is_about_the_instrument_in_the_picture(config):
    music = examples("image_to_music", "test")
    assert [e["key"].decode() for e in music] == [f"images/test_instruments/{i:05d}" for i in range(len(music))]
    assert all(json.loads(e["attributes"]) == {"instrument": "piano"} for e in music)


def test_texts_alone_are_documents_of_every_text(config):
    for task, pair, role in (("image_captions", "image_to_text", 2), ("sentences", "speech_to_text", 2)):
        alone, asked = examples(task, "test"), examples(pair, "test")
        assert [list(e["content"]) for e in alone] == [[e["content"][role]] for e in asked]
        assert all(list(e["role"]) == [b"document"] and list(e["loss"]) == [True] for e in alone)


def test_documents_and_dialogues_put_loss_where_the_brief_says(config):
    documents, dialogues = examples("documents", "train"), examples("dialogues", "train")
    assert len(documents) == len(dialogues) == 6
    assert all(e["loss"].all() and set(e["role"]) == {b"document"} for e in documents)
    for e in dialogues:
        assert list(e["loss"]) == [role == b"assistant" for role in e["role"]]
        assert list(e["modality"]) == [b"speech", b"text", b"image"]


def test_hard_splits_belong_to_the_readers_alone(config):
    assert "test_openmoji" in seqio.get_mixture_or_task("image_to_text").splits
    assert "test_openmoji" not in seqio.get_mixture_or_task("text_to_image").splits
    assert "test_voice" in seqio.get_mixture_or_task("speech_to_text").splits


def test_registering_again_changes_nothing_and_another_workdir_moves_the_tasks(config, tmp_path):
    before = examples("music_to_text", "test")
    registry.register(config)
    assert len(before) == len(examples("music_to_text", "test"))
    tiny_world.build(tmp_path, {"test": 1})
    try:
        registry.register(tiny_world.config(tmp_path))
        assert len(examples("music_to_text", "test")) == 1
    finally:
        registry.register(config)


def test_the_mixture_has_the_configs_shares(config):
    mixture = seqio.MixtureRegistry.get(registry.MIXTURE)
    shares = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert shares == pytest.approx(dict(config.mixture))


def test_an_unregistered_task_is_named(config):
    with pytest.raises(UserError, match="smell_to_text"):
        registry.register(tiny_world.config(config.workdir, tasks=("smell_to_text",)))


def test_every_metric_exists_and_targets_are_attribute_dicts(config):
    from anygpt_jax.tasks import metrics

    for pair in registry.PAIRS:
        assert all(callable(getattr(metrics, name)) for name in (pair.metric, *pair.also))
    task = seqio.get_mixture_or_task("speech_to_text")
    (example, *_) = examples("speech_to_text", "test")
    target = task.postprocess_fn(None, example=example, is_target=True)
    word_error_rate, _ = task.metric_fns
    assert word_error_rate.__name__ == "word_error_rate"
    assert word_error_rate([target], [target["text"]])["wer"] == 0
    assert word_error_rate([target], ["quite other words"])["wer"] > 0.5
