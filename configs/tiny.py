"""The model that ships in the package: two hours of training on two CPU cores, every stage by the ordinary verbs."""

import importlib.util
import pathlib

import ml_collections

SPEC = importlib.util.spec_from_file_location("quickstart", pathlib.Path(__file__).with_name("quickstart.py"))


def get_config(stage: str = "") -> ml_collections.ConfigDict:
    """`configs/tiny.py` is the first stage and `configs/tiny.py:second` goes on from it, on other examples.

    `configs/tiny.py:text` is a model of the same size that learns from the texts alone.
    """
    quickstart = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(quickstart)
    c = quickstart.full()
    c.workdir = "runs/tiny"
    c.data.update(
        objects=128, scenes=24_000, two_objects=25, sentences=7000, voices_a_sentence=1, espeak_sentences=500,
        clips=4000, dialogues=4000, held_out=400,
    )  # fmt: skip
    texts = ("image_captions", "music_captions", "sentences")
    c.tokenize.tasks = (*c.tokenize.tasks, *texts)
    c.tokenize.shards = 8
    c.mixture = ml_collections.ConfigDict(
        {
            "image_to_text": 0.17, "text_to_image": 0.27, "speech_to_text": 0.16, "text_to_speech": 0.17,
            "music_to_text": 0.03, "text_to_music": 0.07, "documents": 0.02, "dialogues": 0.08,
            "image_captions": 0.01, "music_captions": 0.01, "sentences": 0.01,
        }
    )  # fmt: skip
    c.model.update(d_model=128, n_layers=5, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=384)
    c.train.update(
        steps=22_000, warmup_steps=200, ema_decay=0.999, log_every=200, eval_every=2000, save_every=1000,
    )  # fmt: skip
    # A word is one token and a tune a hundred, of which no one can know all beforehand.
    c.train.loss_weights.update(text=2.0, music=0.7)
    # The best of two or three on the validation splits. The paper's captions and transcripts too are by beams.
    c.generate.text.update(beams=8, length_penalty=0.0, round_trip=0.3)
    c.generate.image.update(temperature=0.0, top_p=1.0)
    c.generate.speech.update(temperature=0.0, top_p=1.0)
    c.generate.music.update(temperature=0.5, top_p=0.9)
    c.evaluate.update(examples=256, dialogues=600)
    if stage == "text":
        c.workdir = "runs/tiny_text"
        c.tokenize.tasks = texts
        c.mixture = ml_collections.ConfigDict({name: 1 / 3 for name in texts})
        c.train.update(steps=2000, eval_every=500, save_every=500)
    elif stage == "second":
        c.workdir = "runs/tiny_second"
        c.seed = 1
        # What the first stage was worst at: which two objects there are. The examples are new ones throughout.
        c.data.update(two_objects=60)
        c.mixture.update(image_to_text=0.26, text_to_image=0.27, speech_to_text=0.08)
        c.train.update(start_from="runs/tiny", learning_rate=1.5e-3, steps=7000, eval_every=1000)
        c.tokenize.tasks = tuple(c.mixture)
    elif stage:
        raise ValueError(f"the stages of tiny are the first, `second` and `text`, not {stage!r}")
    return c
