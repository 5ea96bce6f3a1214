"""The paper's claim in miniature (docs/study.md): one any-to-any model beside specialists and pairs, at equal tokens.

`configs/study.py` is the whole mixture, on data that all arms of a seed share; `:ARM` is one of ARMS, which sees as
many tokens of each of its tasks, in as many steps as those take. `launch/study.py` runs them all.
"""

import importlib.util
import pathlib

import ml_collections

SPEC = importlib.util.spec_from_file_location("quickstart", pathlib.Path(__file__).with_name("quickstart.py"))

# Shares of the drawn records.
MIXTURE = {
    "image_to_text": 0.2, "text_to_image": 0.2, "speech_to_text": 0.16, "text_to_speech": 0.16,
    "music_to_text": 0.06, "text_to_music": 0.06, "documents": 0.03, "dialogues": 0.13,
}  # fmt: skip
# Mean length of a record, which turns shares of records into shares of tokens; launch/study.py checks it.
TOKENS = {
    "image_to_text": 60, "text_to_image": 59, "speech_to_text": 64, "text_to_speech": 62,
    "music_to_text": 122, "text_to_music": 121, "documents": 166, "dialogues": 166,
}  # fmt: skip
STEPS = 3000
PAIRS = tuple(task for task in MIXTURE if "_to_" in task)
NEVER_TRAINED = (
    "speech_to_image", "image_to_speech", "speech_to_music", "music_to_speech", "image_to_music", "music_to_image"
)  # fmt: skip
INTERLEAVED = ("documents", "dialogues")
ARMS = {
    "any_to_any": tuple(MIXTURE),
    "pairs_alone": PAIRS,  # without the interleaved dialogues
    "interleaved_alone": INTERLEAVED,  # without the text-centric pre-training
    **{f"{medium}_pair": tuple(t for t in PAIRS if medium in t) for medium in ("image", "speech", "music")},
    **{task: (task,) for task in PAIRS},  # a specialist each
}


def get_config(arm: str = "any_to_any") -> ml_collections.ConfigDict:
    if arm not in ARMS:
        raise ValueError(f"the arms of the study are {', '.join(ARMS)}, not {arm!r}")
    quickstart = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(quickstart)
    c = quickstart.full()
    c.workdir = "runs/study"
    c.data.update(
        objects=16, scenes=3000, sentences=900, espeak_sentences=1, clips=1200, dialogues=1500, held_out=128
    )  # fmt: skip
    trained = ARMS[arm]
    c.mixture = ml_collections.ConfigDict({task: MIXTURE[task] for task in trained})
    if len(trained) > 2 or arm == "interleaved_alone":
        c.tokenize.tasks = (*PAIRS, *INTERLEAVED, *NEVER_TRAINED)
    else:
        c.tokenize.tasks = trained
    share = sum(MIXTURE[t] * TOKENS[t] for t in trained) / sum(MIXTURE[t] * TOKENS[t] for t in MIXTURE)
    steps = round(STEPS * share)
    c.train.update(
        batch_size=1, steps=steps, warmup_steps=steps // 20, eval_every=steps, eval_batches=64, eval_task_batches=64,
        log_every=100, save_every=500, keep_checkpoints=1,
    )  # fmt: skip
    # The table is of models as they are: no search for better text, and what is written is the likeliest.
    c.generate.image.update(temperature=0.0, top_p=1.0)
    c.generate.speech.update(temperature=0.0, top_p=1.0)
    c.generate.music.update(temperature=0.5, top_p=0.9)
    c.evaluate.update(examples=64, dialogues=128, untrained_examples=0, hard_splits=False)
    return c
