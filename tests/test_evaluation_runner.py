"""A directed pair end to end on a tiny random model: what is asked, judged, kept, and not done twice."""

import io
import json

import jax
import ml_collections
import numpy as np
import pytest
import seqio
import tensorflow as tf
from flax import nnx
from PIL import Image

from anygpt_jax import shipped
from anygpt_jax.cache import Manifest, write_shard
from anygpt_jax.embedded import scenes, sentences
from anygpt_jax.evaluation import legs, main, pairs, runner
from anygpt_jax.evaluation.examples import load_prompts, read_examples, stable_order
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import Settings
from anygpt_jax.modalities import image, pictures
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.tasks import preprocessors, registry
from anygpt_jax.templates import Formatter, Segment
from anygpt_jax.training.checkpoints import LoadedModel
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

N = 10
SPLIT = "test"


def _world():
    rng = np.random.default_rng(0)
    attributes = [scenes.sample(rng, "test") for _ in range(N)]
    return [
        (f"scene-{i}", a, scenes.render(a), sentences.caption_scene(a, rng, "test")) for i, a in enumerate(attributes)
    ]


def _examples(split, shuffle_files=False, seed=None):
    rows = [
        {"key": k, "image": pictures.save_png(pixels), "caption": caption, "attributes": json.dumps(a)}
        for k, a, pixels, caption in _world()
    ]
    return tf.data.Dataset.from_tensor_slices({name: [row[name] for row in rows] for name in rows[0]})


def _register(source, target, metric):
    name = pairs.task_name(source, target)
    fields = {"image": "image", "text": "caption"}
    step = {"source_field": fields[source], "target_field": fields[target], "source": source, "target": target}
    if name in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(_examples, splits=(SPLIT,)),
        preprocessors=[lambda dataset: preprocessors.pair(dataset, **step)],
        output_features=preprocessors.OUTPUT_FEATURES,
        postprocess_fn=registry.postprocess,
        metric_fns=[registry.metric(metric)],
    )


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = ml_collections.ConfigDict(
        {
            "workdir": str(workdir), "seed": 0, "mixture": {"image_to_text": 1.0}, "model": {"d_model": 32},
            "evaluate": {"split": SPLIT, "examples": 6, "untrained_examples": 2},
            "generate": {
                "batch_size": 4, "text": {"temperature": 0.0, "max_tokens": 8}, "image": {"temperature": 1.0},
            },
        }
    )  # fmt: skip
    text, tokenizer = TextTokenizer.load(), image.load()
    vocabulary = Vocabulary.build(
        text_size=text.size, text_fingerprint=text.fingerprint, blocks=[BlockSpec("image", tokenizer.codebook_size)]
    )
    formatter = Formatter(vocabulary, text)
    shards: dict = {}
    codes = tokenizer.encode([pixels for _, _, pixels, _ in _world()])
    for source, target, metric in (("image", "text", "caption_attributes"), ("text", "image", "image_attributes")):
        _register(source, target, metric)
        records = []
        for (key, _, _, caption), code in zip(_world(), codes, strict=True):
            content = {"image": code, "text": caption}
            human = [Segment("text", "describe this", "human"), Segment(source, content[source], "human")]
            answer = [Segment(target, content[target], "assistant", True)]
            # One kind of record has its answer, the other ends with the human's turn.
            records.append(formatter.record(key, "t", human + (answer if target == "text" else [])))
        name = pairs.task_name(source, target)
        shard = write_shard(workdir / "cache", f"{name}/{SPLIT}/00000-of-00001", records[: N - 1])
        shards[name] = {SPLIT: [shard]}
    Manifest(vocabulary.fingerprint, text.fingerprint, {}, shards).save(workdir / "cache")
    model = ModelConfig.from_config(
        ml_collections.ConfigDict(
            {
                "d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "head_dim": 16, "d_ff": 64,
                "rope_theta": 1e4, "norm_eps": 1e-5, "tied_embeddings": True, "qk_norm": True, "vocab_multiple": 128,
                "param_dtype": "float32", "compute_dtype": "float32", "remat": "none",
            }
        ),
        vocabulary,
    )  # fmt: skip

    def pipeline(seed, step):
        loaded = LoadedModel(Decoder(model, rngs=nnx.Rngs(seed)), model, vocabulary, step)
        return Pipeline.build(loaded, {"image": tokenizer}, Settings.from_config(config.generate))

    return runner.Evaluation(config, pipeline(0, 7), pipeline(1, 0))


def test_prompts_end_where_the_assistant_speaks(evaluation):
    vocabulary = evaluation.trained.engine.vocabulary
    for name in ("image_to_text", "text_to_image"):
        examples = read_examples(name, SPLIT)
        prompts = load_prompts(evaluation.workdir / "cache", name, SPLIT, examples, vocabulary)
        assert len(prompts) == N - 1  # one example was not tokenized
        for prompt in prompts.values():
            opening = vocabulary.marker("[AnyGPT]")
            assert prompt[-1] == opening
            assert (prompt == opening).sum() == 1
            assert prompt[-2] == vocabulary.marker("<eoh>")


def test_examples_come_in_a_stable_order_unlike_the_data(evaluation):
    keys = [e.key for e in read_examples("image_to_text", SPLIT)]
    assert keys == sorted(keys, key=stable_order)
    assert keys != sorted(keys)
    assert set(keys) == {f"scene-{i}" for i in range(N)}


def test_trained_pair(evaluation):
    entry = evaluation.run_pair("image", "text")
    shape = {"metric", "score", "chance", "ceiling", "n", "trained", "higher_is_better"}
    assert shape <= set(entry)
    assert (entry["metric"], entry["n"], entry["trained"], entry["higher_is_better"]) == ("attributes", 6, True, True)
    assert entry["score"] < 0.5  # random weights
    assert 0.05 < entry["chance"] < 0.5
    assert entry["ceiling"] >= 0.95  # the shipped image tokenizer's
    assert entry["interval"][0] <= entry["score"] <= entry["interval"][1]
    assert "via_text" not in entry
    assert 0 <= entry["untrained"] <= 1
    assert set(entry["details"]["direct"]) == {"attributes", "all", "object", "colour", "size", "place"}


def test_never_trained_pair_is_answered_directly_and_via_text(evaluation):
    entry = evaluation.run_pair("text", "image")
    assert entry["trained"] is False
    assert 0 <= entry["via_text"] <= 1
    low, high = entry["via_text_interval"]
    assert low <= entry["via_text"] <= high
    assert (low, high) != tuple(entry["interval"])  # of its own answers
    folder = evaluation.workdir / "predictions" / "text_to_image"
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    for row in rows:
        pixels = np.asarray(Image.open(io.BytesIO((folder / row["direct"]["file"]).read_bytes())))
        assert pixels.shape == (72, 72, 3)
        assert isinstance(row["thought"], str)
        truth = np.asarray(Image.open(folder / row["truth"]["file"]))
        np.testing.assert_array_equal(truth, scenes.render(row["attributes"]))
    assert np.mean([row["score"] for row in rows]) == pytest.approx(entry["score"])


def test_finished_pair_is_not_done_again_unless_something_changed(evaluation, monkeypatch):
    first = evaluation.run_pair("image", "text")

    def fail(*args):
        raise AssertionError("generated again")

    monkeypatch.setattr(evaluation, "_answer", fail)
    assert evaluation.run_pair("image", "text") == json.loads(json.dumps(first))
    evaluation.config.evaluate.examples = 5
    with pytest.raises(AssertionError, match="generated again"):
        evaluation.run_pair("image", "text")
    evaluation.config.evaluate.examples = 6


def _entry(metric, score, trained=True, **more):
    return {"metric": metric, "score": score, "trained": trained, "n": 3, "chance": 0.1, "ceiling": None, **more}


def test_never_trained_pairs_beside_their_legs():
    matrix = {
        "text": {"image": _entry("attributes", 0.9), "speech": _entry("wer", 1.25)},
        "speech": {"text": _entry("wer", 0.2), "image": _entry("attributes", 0.36, False, via_text=0.54)},
        "image": {"text": _entry("attributes", 0.8), "speech": _entry("attributes", 0.3, False, via_text=0.1)},
        "music": {"image": _entry("attributes", 0.3, False, via_text=0.1)},
    }
    legs.add_legs(matrix)
    assert matrix["speech"]["image"]["legs"] == pytest.approx(0.8 * 0.9)
    assert matrix["speech"]["image"]["share_of_legs"] == pytest.approx({"direct": 0.5, "via_text": 0.75})
    assert matrix["image"]["speech"]["legs"] == 0.0  # more errors than words
    assert matrix["image"]["speech"]["share_of_legs"] == {"direct": None, "via_text": None}
    assert "legs" not in matrix["music"]["image"]  # no leg from music
    assert "legs" not in matrix["speech"]["text"]
    lines = {line[:18].strip(): " ".join(line[18:].split()) for line in main.table(matrix).splitlines()}
    assert lines["speech to image"] == "attributes 0.36 0.10 – 0.54 0.72 0.50 0.75 3 never trained"


def test_what_is_measured_is_what_the_config_and_the_cache_have(tmp_path):
    """Hard splits that were not tokenized are left out, and so are the dialogues where none are wanted."""
    asked = []

    class Recorder:
        workdir, trained = tmp_path, ml_collections.ConfigDict({"step": 5})
        config = ml_collections.ConfigDict(
            {"modalities": ("image", "speech"), "evaluate": {"split": SPLIT, "dialogues": 0}}
        )

        def run_pair(self, source, target, split):
            asked.append((source, target, split))
            return _entry("wer", 0.5)

        def run_text(self, task):
            return {"perplexity_per_word": 3.0}

        def run_tokenizers(self):
            return {"image": {}}

    held = {
        "speech_to_text": (SPLIT, "test_voice", "test_unspoken"),
        "text_to_speech": (SPLIT, "test_unspoken"),
        "dialogues": (SPLIT,), "sentences": ("train",),
    }  # fmt: skip
    shards = {task: {split: [] for split in splits} for task, splits in held.items()}
    Manifest("v", "t", {}, shards).save(tmp_path / "cache")
    tasks = ("speech_to_text", "text_to_speech", "dialogues", "sentences")
    measured = main.measure(Recorder(), tasks)
    assert asked == [
        ("text", "speech", None), ("speech", "text", None), ("speech", "text", "test_voice"),
        ("speech", "text", "test_unspoken"), ("text", "speech", "test_unspoken"),
    ]  # fmt: skip
    assert set(measured["hard"]["speech_to_text"]) == {"test_voice", "test_unspoken"}
    assert set(measured["hard"]["text_to_speech"]) == {"test_unspoken"}
    assert measured["text"] == {"dialogues": {"perplexity_per_word": 3.0}}
    assert "dialogues" not in measured
    assert (measured["tokenizers"], measured["step"]) == ({"image": {}}, 5)


def test_metrics_file_has_the_shape_that_scripts_read(tmp_path):
    (tmp_path / "timings.json").write_text('[{"stage": "train", "seconds": 3.5}]')
    matrix = {"text": {"image": {"score": 0.5}}}
    main.write_metrics(tmp_path, {"matrix": matrix}, str(tmp_path / "copy.json"))
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert metrics["quickstart"]["matrix"] == matrix
    assert metrics["shipped"] == json.loads(shipped.METRICS.read_text())["shipped"]  # as the card tells it
    main.write_metrics(tmp_path, {"matrix": matrix}, of_shipped=True)
    of_shipped = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert (of_shipped["quickstart"], of_shipped["shipped"]) == ({"matrix": {}}, {"matrix": matrix})
    assert metrics["timings"] == [{"stage": "train", "seconds": 3.5}]
    assert metrics["versions"]["jax"] == jax.__version__
    assert json.loads((tmp_path / "copy.json").read_text()) == metrics


def test_terms_of_picture_and_tune_translate():
    assert pairs.as_told_by({"instrument": "piano"}, "image") == {"object": "piano"}
    assert pairs.as_told_by({"object": "piano", "size": "small"}, "music") == {"instrument": "piano"}
    assert pairs.as_told_by({"object": "fox"}, "image") == {"object": "fox"}
    assert pairs.fits({"object": "piano"}, [{"object": "piano"}, {"object": "flute"}])
    assert not pairs.fits({"object": "fox"}, [{"object": "piano"}])
    assert pairs.subject("speech", [{"instrument": "piano"}]) == "music"
    assert pairs.subject("speech", [{"object": "piano"}]) == "image"
