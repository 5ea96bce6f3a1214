"""AnyInstruct in the small world: 6,000 dialogues and more by generators that need no network (docs/synthesis.md)."""

import pathlib

import ml_collections

from anygpt_jax.errors import UserError


def get_config(part: str = "") -> ml_collections.ConfigDict:
    """`:voice` is voice dialogues instead: only speech, of the sentences in synthesize_small_instructions.jsonl."""
    c = ml_collections.ConfigDict()
    c.workdir = "runs/synthesize_small"
    c.seed = 0
    c.synthesize = s = ml_collections.ConfigDict()
    s.shards = 16
    s.runner = "FnApiRunner"
    s.runner_options = ("--direct_num_workers=0", "--direct_running_mode=multi_processing")  # 0: as many as cores

    # Files or globs of conversations whose words are spoken, in the place of topics, scenarios and scripts.
    s.instructions = ()
    s.rewrite = False  # the language model says them again as people speak
    s.meta_topics = ""  # a file with one a line; "": the hundred of this project
    s.rounds = 2  # of topics for a meta-topic (AnyGPT: 4)
    s.topics_a_round = 11  # (AnyGPT: 50)
    s.topics_a_call = 10  # that scenarios are asked for together
    s.scenarios_a_topic = 3
    # Who brings what in a scenario, and how often; "+" joins two.
    s.requirements = ml_collections.ConfigDict(
        {"user_image": 0.2, "user_music": 0.15, "ask_image": 0.3, "ask_music": 0.2,
         "user_image+ask_music": 0.05, "user_music+ask_image": 0.05, "ask_image+ask_music": 0.05}
    )  # fmt: skip
    s.rounds_a_dialogue = (2, 3)  # at least, at most
    s.spoken = 0.15  # of the dialogues: both sides speak (AnyGPT: nearly all); most of the time goes into it
    s.held_out = 0.1  # of the topics go to test, a third as many to validation

    # Who makes what: embedded, or http and local (docs/synthesis.md).
    s.text = ml_collections.ConfigDict({"backend": "embedded"})
    s.image = ml_collections.ConfigDict({"backend": "embedded"})
    s.music = ml_collections.ConfigDict({"backend": "embedded"})
    s.speech = ml_collections.ConfigDict({"backend": "embedded"})
    s.voices = ("ada", "ben", "cleo", "espeak-eva", "espeak-flo")  # of the human; one a dialogue
    s.answering_voices = ("ada", "ben", "cleo")
    # Every filter's settings: anygpt_jax/synthesis/filters. Sentences outside the small world's grammar are not judged.
    s.filters = ml_collections.ConfigDict(
        {"scripts": {}, "selection": {"target": s.requirements.to_dict()}, "media": {}}
    )
    s.retry_failures = False  # ask again what a backend refused in an earlier run
    if part == "voice":
        c.workdir = "runs/synthesize_small_voice"
        s.instructions = (str(pathlib.Path(__file__).with_name("synthesize_small_instructions.jsonl")),)
        s.spoken = 1.0
        s.shards = 4
        s.filters.selection.target = ml_collections.ConfigDict()
    elif part:
        raise UserError(f"The small set has the part `voice` besides itself, not {part!r}.")
    return c
