"""AnyInstruct in the small world: 2,000 dialogues and more by generators that need no network (docs/synthesis.md)."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.workdir = "runs/synthesize_small"
    c.seed = 0
    c.synthesize = s = ml_collections.ConfigDict()
    s.shards = 16
    s.runner = "FnApiRunner"
    s.runner_options = ("--direct_num_workers=0", "--direct_running_mode=multi_processing")  # 0: as many as cores

    s.meta_topics = ""  # a file with one a line; "": the hundred of this project
    s.rounds = 2  # of topics for a meta-topic (AnyGPT: 4)
    s.topics_a_round = 11  # (AnyGPT: 50)
    s.topics_a_call = 10  # that scenarios are asked for together
    s.scenarios_a_topic = 1
    # Who brings what in a scenario, and how often; "+" joins two.
    s.requirements = ml_collections.ConfigDict(
        {"user_image": 0.2, "user_music": 0.15, "ask_image": 0.3, "ask_music": 0.2,
         "user_image+ask_music": 0.05, "user_music+ask_image": 0.05, "ask_image+ask_music": 0.05}
    )  # fmt: skip
    s.rounds_a_dialogue = (2, 3)  # at least, at most
    s.spoken = 0.4  # of the dialogues: both sides speak
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
    return c
