"""Filters of scripts and of media: what each must refuse, and what it must let through."""

import dataclasses
import json
import pathlib

import ml_collections
import numpy as np
import pytest
from synthesis_dialogues import GOOD, applied, dialogue, of_turns, png, tone, wav, with_medium, world

from anygpt_jax.embedded import scenes, sentences, tunes, voices
from anygpt_jax.errors import UserError
from anygpt_jax.modalities.base import Audio
from anygpt_jax.synthesis import filters
from anygpt_jax.synthesis.dialogue import SPEECH, Dialogue, Medium, media_of
from anygpt_jax.synthesis.filters import Verdict, media, scripts, worlds
from anygpt_jax.synthesis.filters.safety import CATEGORIES, LISTS, inflected, personal, read_list, unsafe

ROUNDS = "User: hello there\nAssistant: here [image: a fox]\n"


def outcome(d, **settings):
    return applied(scripts.filters(scripts.ScriptSettings(**settings)), d)


def removed_by(text, **settings):
    found = outcome(dialogue(text), **settings)
    assert bool(found.reason) == bool(found.removed_by)
    return found.removed_by


def answered(text):
    """A dialogue with a picture, and this answer in words alone."""
    return f"{ROUNDS}User: and now another\nAssistant: {text}"


def described(text):
    return f"User: please draw it\nAssistant: here you are [image: {text}]"


def test_a_good_dialogue_passes_with_scores():
    found = outcome(dialogue(GOOD))
    assert not found.removed_by
    assert {"rounds": 2.0, "words_least": 3.0, "words_most": 9.0}.items() <= found.scores.items()
    assert found.scores["language_en"] > 0.9


def test_the_embedded_world_passes():
    found = [outcome(d) for d in [*world(150, rounds=2), *world(50, seed=1, rounds=1)]]
    assert [(d.removed_by, d.reason) for d in found if d.removed_by] == []


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [("human", "hello")],
        [("assistant", "hello"), ("human", "hello")],
        [("human", "a"), ("human", "b")],
        [("human", "a"), ("assistant", "b"), ("assistant", "c"), ("human", "d")],
        [("human", "a"), ("assistant", "b"), ("human", "c")],
        [("human", " "), ("assistant", "b")],
        [("human", "a", Medium("video", "a fox")), ("assistant", "b")],
        [("human", "a", Medium("image", "")), ("assistant", "b")],
        [("user", "a"), ("assistant", "b", Medium("image", "a fox"))],
    ],
)
def test_form(turns):
    assert outcome(of_turns(*turns)).removed_by == "form"


def test_a_turn_may_be_a_medium_alone():
    assert not outcome(of_turns(("human", "", Medium("image", "a fox")), ("assistant", "that is a fox"))).removed_by


def test_rounds_words_and_media_have_limits():
    assert removed_by(ROUNDS * 6) == "rounds"
    assert removed_by(ROUNDS, rounds=(2, 3)) == "rounds"
    assert removed_by(answered("word " * 61)) == "words"
    assert removed_by(GOOD, words=(4, 15)) == "words"  # "here it is"
    assert removed_by("User: hello\nAssistant: hello to you") == "media"
    assert removed_by(ROUNDS * 3) == "media"  # three images
    assert not removed_by(ROUNDS * 3, images=3)
    assert removed_by(ROUNDS + "User: x\nAssistant: y [music: a jig] [music: a reel]") == "media"
    assert not removed_by(ROUNDS * 2)


@pytest.mark.parametrize(
    "text",
    [
        "i am sorry, as an ai language model i cannot draw pictures",
        "I'm sorry, but I can't assist with that request.",
        "Sorry, I cannot generate images.",
        "i am unable to play music",
        "I’m not able to view images, unfortunately.",
        "sorry as a large language model that is beyond me",
        "Unfortunately, I can not directly create music for you.",
        "we are not allowed to share this",
    ],
)
def test_an_answer_that_only_refuses(text):
    assert removed_by(answered(text)) == "refusals"
    # With a medium it does more than refuse.
    assert not removed_by(answered(f"{text} [image: a fox]"))


@pytest.mark.parametrize(
    "text",
    [
        "i'm sorry to hear that you are sad today",
        "I can't draw a whole orchestra, but I can tell you about it",
        "I can't help but smile at this tune",
        "i cannot make out the second instrument",
        "you cannot play this tune on a flute",
        "as an aid to sleep i would choose slow music",
        "I cannot see any difference between the two",
        "as an ai i am very fond of this one",
    ],
)
def test_what_is_no_refusal(text):
    assert not removed_by(answered(text))


@pytest.mark.parametrize(
    "text",
    [
        "here is {object} for you", "that is [object", "see https://example.org/a.png", "see www.example", "look at picture.org now",
        "this is **bold** text", "<b>bold</b> it is", "here <image> it is", "a fox &amp; a whale", "```python", "dear $name hello",
        "Insert name here please", "hello User: draw a fox", "<👀5> it is", "this ends here <eom>", "and <|endoftext|>", "hello %s",
    ],
)  # fmt: skip
def test_leftovers(text):
    answer = of_turns(("human", "please draw it"), ("assistant", text, Medium("image", "a fox")))
    assert outcome(answer).removed_by == "leftovers"
    description = of_turns(("human", "please draw it"), ("assistant", "here", Medium("image", text)))
    assert outcome(description).removed_by == "leftovers"


@pytest.mark.parametrize(
    "text",
    [
        "i <3 this tune",
        "7 > 5 and 3 < 4",
        "rock & roll",
        "a $5 ticket",
        "100% jazz",
        "wait... what?",
        "a 4*4 grid",
        "my user manual: none",
    ],
)
def test_what_is_no_leftover(text):
    assert not removed_by(answered(text))


@pytest.mark.parametrize(
    "text",
    [
        "User: bitte male einen großen fuchs auf blauem grund\nAssistant: hier ist er [image: ein großer fuchs]",
        "User: dessine un grand renard sur un fond bleu\nAssistant: le voici pour vous [image: un renard]",
        "User: dibuja un zorro grande sobre un fondo azul\nAssistant: aquí está [image: un zorro]",
        "User: 请画一只大狐狸\nAssistant: 这是你的狐狸 [image: 狐狸]",
        "User: нарисуй большую лису\nAssistant: вот она [image: лиса]",
    ],
)
def test_other_languages(text):
    assert removed_by(text) == "language"


def test_another_language_may_be_asked_for():
    german = "User: bitte male einen großen fuchs\nAssistant: hier ist er [image: ein großer fuchs auf blauem grund]"
    assert not removed_by(german, language="de")
    assert removed_by(GOOD, language="de") == "language"
    with pytest.raises(UserError, match="'xx' is not among"):
        scripts.ScriptSettings(language="xx")


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("a pornographic picture", "sexual"), ("two naked people", "sexual"), ("something SEXY", "sexual"),
        ("a swastika on a flag", "hate"), ("songs of white supremacists", "hate"),
        ("a man holding a gun", "violence"), ("he kills him", "violence"), ("a beheaded king", "violence"), ("bombing a city", "violence"),
        ("how to shoot them", "violence"), ("i want to die", "self-harm"), ("self-harm", "self-harm"), ("a Suicidal man", "self-harm"),
        ("lines of cocaine", "drugs"), ("smoking weed", "drugs"), ("they smoke weed", "drugs"), ("a drug dealer’s car", "drugs"),
        ("write to jo.do@example.co.uk", "personal"), ("call +44 20 7946 0958", "personal"), ("call (212) 555-0123", "personal"),
        ("pay to DE89 3704 0044 0532 0130 00", "personal"), ("it is 4111 1111 1111 1111", "personal"), ("ssn 078-05-1120", "personal"),
    ],
)  # fmt: skip
def test_unsafe_texts(text, category):
    assert unsafe(text)[0] == category
    assert removed_by(described(text)) == removed_by(answered(text)) == "safety"
    others = tuple(c for c in CATEGORIES if c != category)
    assert not removed_by(described(text), unsafe=others)


@pytest.mark.parametrize(
    "text",
    [
        "greetings from Scunthorpe and Penistone", "a therapist in Essex", "an analysis of grapes", "a cocktail on a table", "drapes and a rapier",
        "a red toy gun on a table", "a toy in the shape of a gun", "children with water guns", "a glue gun", "killer whales in the sea",
        "we kill time with music", "a bomber jacket", "funk with brass stabs", "a murder of crows", "the sex pistols play punk", "the heroine of a novel",
        "with the naked eye", "a shooting star", "method acting", "spicy food", "a skull and a sword", "a hammer and a boot", "the bass drum",
        "a bath bomb", "the therapist's sessions", "weeds in a garden", "a classic of 1984-2023", "bach, bwv 1001 to 1006", "1920 x 1080 px",
        "opus 27 number 2 from 1801", "120 to 140 beats a minute", "DE89 3704 1144 0532 0130 01", "4111 1111 1111 1112", "10 000 000 people",
    ],
)  # fmt: skip
def test_harmless_texts(text):
    assert unsafe(text) is None


def test_the_embedded_world_is_safe_word_by_word():
    assert [w for w in {*sentences.written_words(), *sentences.spoken_words()} if unsafe(w)] == []


def test_the_lists_have_versions_and_no_entry_twice():
    for name in LISTS:
        entries = {entry.term for found in read_list(name).values() for entry in found}
        lines = (pathlib.Path(filters.__path__[0]) / "words" / f"{name}.txt").read_text("utf-8").splitlines()
        assert lines[0].startswith("# version ")
        terms = [line.partition("/")[0].strip() for line in lines if line and not line.startswith("#")]
        assert sorted(terms) == sorted(set(terms)) and set(terms) == entries
        for term in terms:
            assert unsafe(term, (name,))[0] == name


def test_inflections():
    assert {"kill", "kills", "killed", "killing", "killer", "killers", "kill's"} <= inflected("kill")
    assert {"stabbed", "stabbing"} <= inflected("stab") and {"raped", "raping"} <= inflected("rape")
    assert {"orgies"} <= inflected("orgy")
    assert not {"heroine", "drape"} & (inflected("heroin") | inflected("rape"))


def test_kinds_of_personal_data():
    assert personal("a@b.co") == "an e-mail address"
    assert personal("jo at gmail dot com") == "an e-mail address"
    assert personal("gb82 west 1234 5698 7654 32") == "a bank account"
    assert personal("0221 4710 1234") == "a telephone number"


def test_the_first_filter_that_refuses_is_named_and_the_later_are_not_asked():
    @dataclasses.dataclass(frozen=True)
    class Fixed:
        name: str
        verdict: Verdict | None

        def check(self, d, read):
            assert self.verdict is not None, "asked after a refusal"
            return self.verdict

    chain = [
        Fixed("a", Verdict({"x": 1.0})), Fixed("b", Verdict({"y": 2.0}, "No.")), Fixed("c", None),
    ]  # fmt: skip
    found = applied(chain, dialogue(scores={"old": 0.5}))
    assert (found.scores, found.removed_by, found.reason) == ({"old": 0.5, "x": 1.0, "y": 2.0}, "b", "No.")
    assert applied(chain[2:], found) == found
    assert Dialogue.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_settings_of_a_section():
    section = ml_collections.ConfigDict({"scripts": {"rounds": (2, 3), "confidence": 1}, "media": {"side": [8, 9]}})
    chosen = filters.of_scripts(section)
    assert scripts.Rounds((2, 3)) in chosen and scripts.Language("en", 1.0) in chosen
    assert filters.of_media(section)[0].settings.side == (8, 9)
    assert len(filters.of_scripts({})) == len(chosen)
    with pytest.raises(
        UserError, match=r"config.synthesize.filters.scripts.round is not a setting; known ones: .*rounds"
    ):
        filters.of_scripts({"scripts": {"round": 2}})
    for wrong in ({"rounds": 2}, {"rounds": (3, 2)}, {"images": "two"}, {"images": True}, {"unsafe": ("politics",)}):
        with pytest.raises(UserError):
            filters.of_scripts({"scripts": wrong})
    for wrong in ({"recognizer": "siri"}, {"side": (0, 5)}):
        with pytest.raises(UserError):
            filters.of_media({"media": wrong})


# ---- media


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def whole(modality, data, **settings):
    d = with_medium(Medium(modality, "a fox", file="f"))
    return applied([media.Whole(media.MediaSettings(**settings))], d, {"f": data}.__getitem__)


@pytest.mark.parametrize(
    ("modality", "data", "said"),
    [
        ("image", b"", "cannot be read: The image file is empty"),
        ("image", wav(tone()), "cannot be read"),
        ("image", png(NOISE)[:-900], "cannot be read"),
        ("image", png(NOISE[:16]), "has 64 x 16 px; sides of 32 to 8192 px"),
        ("image", png(np.full((64, 64, 3), 77, np.uint8)), "is blank"),
        ("music", b"", "cannot be read"),
        ("music", png(NOISE), "cannot be read"),
        ("music", wav(tone(0.5)), "lasts 0.50 s; 1 to 60 s"),
        ("music", wav(np.zeros(32_000)), "is silent"),
        ("music", wav(tone(2.0, 0.0005)), "is silent"),
        ("speech", wav(tone(31)), "lasts 31.00 s; 0.2 to 30 s"),
        ("speech", wav(np.sign(tone())), "of its samples at full scale"),
    ],
)
def test_media_that_are_not_whole(modality, data, said):
    found = whole(modality, data)
    assert found.removed_by == "media_whole" and said in found.reason
    assert found.reason.startswith(f"The {'picture' if modality == 'image' else modality} of turn 2 ")


def test_media_that_are_whole_have_scores():
    picture = whole("image", png(NOISE)).turns[1].media[0].scores
    assert picture["width"] == picture["height"] == 64 and picture["contrast"] == pytest.approx(
        NOISE.std((0, 1)).max(), abs=0.01
    )
    d = whole("speech", wav(tone(2.0, 0.3)))
    speech = d.turns[1].speech.scores
    assert not d.removed_by and speech["seconds"] == 2.0 and speech["loudness"] == pytest.approx(0.3 / 2**0.5, rel=0.01)
    assert not whole("music", wav(tone())).removed_by
    # 1 % at full scale is let through: loud music is limited.
    assert not whole("music", wav(np.where(np.arange(32_000) % 100, tone(2.0), 1.0))).removed_by


def test_a_medium_that_was_not_made_or_is_gone():
    def gone(file):
        raise FileNotFoundError(2, "No such file or directory")

    check = media.Whole(media.MediaSettings()).check
    assert "was not made" in check(with_medium(Medium("image", "a fox")), gone).reason
    assert "No such file" in check(with_medium(Medium("image", "a fox", file="f")), gone).reason


def judged(judge, *pairs):
    return judge([text for text, _ in pairs], lambda i: pairs[i][1])


def own_and_others(judge, texts, made):
    """What it says of each medium with its own text, and with the text before."""
    return [judged(judge, *zip(texts, of, strict=True)) for of in (made, [*made[1:], made[0]])]


NOISES = Audio(np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32), 16_000)


@pytest.mark.parametrize(
    ("judge", "text", "medium"),
    [
        (worlds.world_pictures(1.0), "a fox in a snowy forest at dawn", None),
        (worlds.world_pictures(1.0), "an oil painting of a whale", None),
        (worlds.world_pictures(1.0), "blue", None),
        (worlds.world_pictures(1.0), "a fox and a penguin", None),
        (worlds.world_pictures(1.0), "", None),
        (worlds.world_pictures(1.0), "a fox on a red background", NOISE),  # of another size
        (worlds.world_music(1.0, None), "a funky bass line with drums", None),
        (worlds.world_music(1.0, None), "a slow jig", None),  # no instrument
        (worlds.world_speech(0.35), "what a marvellous Tuesday", NOISES),
        (worlds.of_either([]), "a jig", None),
    ],
)
def test_what_a_judge_does_not_know_has_no_score(judge, text, medium):
    assert judged(judge, (text, medium)) == [worlds.NOTHING]


def test_pictures_of_the_embedded_world_agree_with_their_captions():
    rng = np.random.default_rng(0)
    drawn = [scenes.sample(rng, "train") for _ in range(40)] + [scenes.sample_two(rng, "train") for _ in range(40)]
    captions = [sentences.caption_scene(a, rng) for a in drawn]
    own, others = own_and_others(worlds.world_pictures(1.0), captions, [scenes.render(a) for a in drawn])
    assert own == [({"attributes": 1.0}, None)] * 80
    assert all(reason and scores["attributes"] < 1 for scores, reason in others)


RED_FOX = scenes.render({"object": "fox", "colour": "red", "size": "large", "place": "center"})


def test_what_a_picture_shows_instead_is_said():
    [(scores, reason)] = judged(worlds.world_pictures(1.0), ("a large fox on a blue background", RED_FOX))
    assert scores == {"attributes": pytest.approx(2 / 3, abs=1e-3)} and reason == "shows red for the colour blue"
    assert judged(worlds.world_pictures(0.5), ("a large fox on a blue background", RED_FOX))[0][1] is None


class Near:
    """A network in whose space text and medium have the cosine that the medium holds."""

    def texts(self, texts):
        return np.array([[1.0, 0.0]] * len(texts))

    def images(self, pictures):
        return np.array([[c, (1 - c * c) ** 0.5] for c in (float(p) for p in pictures)])

    def sounds(self, sounds):
        return self.images(sounds)


def test_what_the_world_does_not_know_goes_to_the_next_judge():
    seen = []

    def clip(texts, load):
        seen.extend(texts)
        return worlds.clip_cosines(Near, 0.2)(texts, load)

    judge = worlds.of_either([worlds.world_pictures(1.0), clip])
    found = judged(judge, ("a snowy forest", 0.3), ("a fox on a red background", RED_FOX), ("an oil painting", 0.1))
    assert seen == ["a snowy forest", "an oil painting"]
    assert found[0] == ({"clip": 0.3}, None) and found[1] == ({"attributes": 1.0}, None)
    assert found[2] == ({"clip": 0.1}, "has a cosine of 0.10 to its description, below 0.2")
    assert judged(worlds.clap_cosines(Near, 0.2), ("a jig", 0.5), ("a reel", 0.1))[1][1]


class Listener:
    """A judge of music that hears what the sound itself says."""

    def read(self, sounds):
        return sounds


def test_music_by_instrument_and_tempo():
    text = "a slow jig in d major played on the violin"
    right, wrong = {"instrument": "violin", "tempo": "slow", "key": "g major"}, {"instrument": "piano", "tempo": "slow"}
    assert judged(worlds.world_music(1.0, Listener), (text, right), (text, wrong)) == [
        ({"attributes": 1.0}, None),
        ({"attributes": 0.5}, "sounds like piano for the instrument violin"),
    ]


@pytest.mark.slow
def test_the_judge_of_music_knows_the_embedded_worlds():
    rng = np.random.default_rng(1)
    texts, sounds = [], []
    for i, instrument in enumerate(tunes.PROGRAMS):
        tempo = list(tunes.NOTES_PER_SECOND)[i % 3]
        tune = tunes.tunes("test", "reel")[int(rng.integers(20))]
        sounds.append(tunes.render(tune, instrument, tempo)[0])
        texts.append(f"a {tempo} reel played on the {instrument}")
    own, others = own_and_others(worlds.world_music(1.0), texts, sounds)
    assert sum(reason is None for _, reason in own) >= 7 and all(reason for _, reason in others)


def test_speech_says_its_words():
    said = ["please draw a large fox on blue", "a slow jig on the violin", "thank you for the picture"]
    sounds = [voices.synthesize(text, voices.names("tts")[i]) for i, text in enumerate(said)]
    own, others = own_and_others(worlds.world_speech(0.35), said, sounds)
    assert [reason for _, reason in own] == [None] * 3
    assert all(scores["wer"] > 0.5 and reason.startswith("is heard as") for scores, reason in others)
    assert judged(worlds.world_speech(0.35), (said[0], NOISES))[0][1]


def test_word_errors_do_not_depend_on_the_writing():
    assert worlds.word_errors("I'd like twenty foxes, please!", "i would like 20 foxes please") == 0
    assert worlds.word_errors("draw a fox", "draw a whale") == pytest.approx(1 / 3)
    heard = worlds.heard_errors(lambda sounds: ["draw a box"] * len(sounds), 0.5)
    assert judged(heard, ("draw a fox", None)) == [({"wer": pytest.approx(1 / 3, abs=1e-3)}, None)]


def test_many_dialogues_at_once_are_as_one_by_one():
    rng = np.random.default_rng(3)
    files, several = {}, []
    for i in range(6):
        attributes = scenes.sample(rng, "train")
        files[f"{i}"] = png(scenes.render(attributes if i % 3 else scenes.sample(rng, "train")))
        several.append(with_medium(Medium("image", sentences.caption_scene(attributes, rng), file=f"{i}"), f"d{i}"))
    chosen = filters.of_media({})
    together = filters.apply_many(chosen, several, files.__getitem__)
    assert together == [applied(chosen, d, files.__getitem__) for d in several]
    assert [d.removed_by for d in together] == ["image_agrees", "", ""] * 2
    assert together[1].turns[1].media[0].scores["attributes"] == 1.0


def test_scores_go_to_their_medium():
    speech = Medium("speech", "hello", file="s", scores={"old": 1.0})
    d = with_medium(speech)
    found = filters.judged(d, "x", Verdict({"a": 1.0}, None, {(1, SPEECH): {"wer": 0.1}, (0, 0): {"no": 1.0}}))
    assert found.turns[1].speech.scores == {"old": 1.0, "wer": 0.1} and found.turns[0] == d.turns[0]
    assert [place for place, _ in media_of(found)] == [(1, SPEECH)]


def test_whisper_that_is_not_there_is_told(monkeypatch):
    from anygpt_jax.evaluation.judges.chosen import Judges

    monkeypatch.setattr(Judges, "whisper", None)
    chosen = filters.of_media({"media": {"recognizer": "whisper", "world": False}})
    d = with_medium(Medium("speech", "hello", file="s"))
    with pytest.raises(UserError, match="whisper/"):
        applied(chosen, d, {"s": wav(tone())}.__getitem__)
