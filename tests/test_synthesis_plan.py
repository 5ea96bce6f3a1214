"""The plan of a synthesis: calls by arithmetic, tokens by the prompts, money by throughputs and prices."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics

import pytest

from anygpt_jax.cli import load_config
from anygpt_jax.errors import UserError
from anygpt_jax.synthesis import filters, plan, prompts
from anygpt_jax.synthesis.backends.http_settings import HttpSettings
from anygpt_jax.synthesis.job import Job
from anygpt_jax.synthesis.plan import Plan
from anygpt_jax.synthesis.plan_assumptions import GENERATORS, Assumptions

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
CONFIG = str(CONFIGS / "synthesize_108k.py")
TEXTS = ("topics", "scenarios", "dialogues")


def lines(overrides=(), **assumed) -> dict[str, plan.Line]:
    made = Plan.of(load_config(CONFIG, overrides), Assumptions(**assumed))
    return {line.stage: line for line in made.lines}


def test_calls_follow_from_the_config():
    found = {stage: line.use for stage, line in lines().items()}
    topics = 100 * 4 * 50 * 0.75
    scenarios = topics * 12 * 0.97
    dialogues = scenarios * 0.8 * 0.9
    assert found["topics"].calls == 100 * 4
    assert found["scenarios"].calls == pytest.approx(topics * 12 / 10)
    assert found["dialogues"].calls == pytest.approx(scenarios)
    # Demands of pictures are 0.05 + 0.05 + 2 · 0.2 + 0.2 + 0.25 + 0.1, and ten have twelve in the demonstrations.
    # Of music they are 0.1 + 0.05 + 0.2 + 0.25 + 0.1, and each has one.
    assert found["images"].images == found["images"].calls == pytest.approx(dialogues * 1.05 * 12 / 10)
    assert (
        found["music"].music_seconds == pytest.approx(20 * found["music"].calls) == pytest.approx(dialogues * 0.7 * 20)
    )
    assert found["speech"].calls == pytest.approx(dialogues * 0.93 * 5)
    assert found["voice dialogues"].calls == 200_000
    assert found["voice dialogues"].speech_seconds == pytest.approx(100_000 * 300 / 16.4)


def test_the_config_leaves_108_000_dialogues_for_training():
    made = Plan.of(load_config(CONFIG))
    assert made.dialogues == pytest.approx(15_000 * 12 * 0.97 * 0.8 * 0.9 * 0.97)
    assert made.train == pytest.approx(made.dialogues * (1 - 0.01 - 0.01 / 3))
    assert made.train > 108_000


def test_tokens_are_those_of_the_prompts():
    found = {stage: line.use for stage, line in lines().items()}
    metas = prompts.meta_topics().split("\n")
    sent = sum(len(prompts.topics_messages(meta, 50)[0][1]) for meta in metas if meta)
    assert found["topics"].input_tokens == pytest.approx(4 * sent / 4)
    # A dialogue's prompt is its template, three demonstrations of equal chance, a scenario and a requirement.
    shown = [len(f"Situation: {one['scenario']}\n{one['script']}") for one in prompts.demonstrations("dialogues")]
    told = statistics.mean(len(one["scenario"]) for one in prompts.demonstrations("scenarios"))
    about = len(prompts.read("dialogues.txt")) + 3 * statistics.mean(shown) + told
    each = found["dialogues"].input_tokens / found["dialogues"].calls
    assert each == pytest.approx(about / 4, rel=0.05)


def test_tokens_and_media_are_linear():
    once, twice = lines(), lines(["--config.synthesize.scenarios_a_topic=24"])
    for stage in ("scenarios", "dialogues", "images", "music", "speech"):
        assert dataclasses.astuple(twice[stage].use) == pytest.approx(
            tuple(2 * x for x in dataclasses.astuple(once[stage].use))
        )
    assert twice["topics"] == once["topics"]
    for stage in TEXTS:
        assert lines(characters_a_token=2.0)[stage].use.output_tokens == pytest.approx(
            2 * once[stage].use.output_tokens
        )


def test_hours_and_money_of_a_worked_example():
    line = lines()["music"]
    assert line.hours == pytest.approx(line.use.music_seconds / 34.48 / 3600 / 0.7)
    assert line.dollars == pytest.approx(line.hours * 0.60)
    line = lines()["dialogues"]
    assert line.hours == pytest.approx((line.use.input_tokens / 3326 + line.use.output_tokens / 1788) / 3600 / 0.7)
    # Those rates give back both loads that they are from, in seconds.
    for read, written, seconds in ((217_393, 201_422, 178.01), (998_175, 50_000, 328.04)):
        assert read / 3326 + written / 1788 == pytest.approx(seconds, rel=1e-3)


def test_a_doubled_price_doubles_its_lines_alone():
    voice = GENERATORS["kokoro"]
    dearer = dataclasses.replace(voice, chip=dataclasses.replace(voice.chip, dollars=2 * voice.chip.dollars))
    before, after = lines(), lines(generators={**GENERATORS, "kokoro": dearer})
    for stage, line in before.items():
        factor = 2 if stage in ("speech", "voice dialogues") else 1
        assert after[stage].dollars == pytest.approx(factor * line.dollars)
        assert after[stage].hours == line.hours


def test_the_table_has_every_stage_and_every_source(capsys):
    assert plan.main([f"--config={CONFIG}"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{stage} " in printed for stage in (*TEXTS, "images", "music", "speech", "voice dialogues", "all"))
    for generator in GENERATORS.values():
        assert generator.source in printed and generator.chip.source in printed


def test_embedded_generators_take_no_accelerator():
    small = Plan.of(load_config(str(CONFIGS / "synthesize_small.py")))
    assert [line.dollars for line in small.lines] == [0.0] * 7
    assert small.lines[0].use.calls == 100 * 2


def test_what_is_not_known_is_refused(capsys):
    assert plan.main([f"--config={CONFIG}", "--config.synthesize.text.model=gpt-4"]) == 2
    assert "no throughput of 'gpt-4'; there are Qwen/Qwen3-32B" in capsys.readouterr().err


def test_voice_dialogues_are_speech_alone_unless_they_are_rewritten():
    spoken = Plan.of(load_config(f"{CONFIG}:voice"))
    assert spoken.lines == (lines()["voice dialogues"],)
    assert spoken.dialogues == 97_000 and spoken.train == pytest.approx(97_000 * (1 - 0.01 - 0.01 / 3))
    rewritten, voice = Plan.of(load_config(f"{CONFIG}:voice", ["--config.synthesize.rewrite=True"])).lines
    asked = len(prompts.read("spoken.txt").strip()) - len("{script}") + 300
    assert rewritten.use == plan.Use(100_000, 100_000 * asked / 4, 100_000 * 300 / 4)
    assert voice == spoken.lines[0] and rewritten.model == "Qwen/Qwen3-32B"


def test_the_sections_of_the_config_are_valid():
    for part in ("", ":voice"):
        config = load_config(CONFIG + part)
        assert Job.of(config).instructed == bool(part)
        s = config.synthesize
        filters.check(s.filters)
        for modality in ("text", "image", "speech", "music"):
            assert HttpSettings.from_config(s[modality], modality).model == s[modality].model
    for config in (CONFIG, str(CONFIGS / "synthesize_small.py")):
        with pytest.raises(UserError, match="part `voice`"):
            load_config(f"{config}:songs")
