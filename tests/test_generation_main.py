"""`anygpt generate` as a person calls it: real files, a real (untrained) checkpoint, and every way to get it wrong."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import generation_world as world
import ml_collections
import numpy as np
import pytest
import soundfile
from flax import nnx
from PIL import Image

from anygpt_jax import cli
from anygpt_jax.cache import Manifest
from anygpt_jax.generation import main
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities import base
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.model.config import ModelConfig
from anygpt_jax.model.decoder import Decoder
from anygpt_jax.tasks.instructions import pair_segments
from anygpt_jax.templates import Formatter, Segment
from anygpt_jax.training.checkpoints import Checkpoints
from anygpt_jax.vocabulary import BlockSpec, Vocabulary

NAMES = ("image", "speech", "music")
CONFIG = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict({
        "kind": "decoder", "workdir": "WORKDIR", "seed": 3, "modalities": ("image", "speech", "music"),
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "head_dim": 8, "d_ff": 24,
                  "tied_embeddings": True, "vocab_multiple": 8},
        "train": {"seq_len": 256},
        "generate": {"batch_size": 4, "text": {"temperature": 1.0, "top_p": 1.0, "max_tokens": 5},
                     "image": {"temperature": 1.0, "top_p": 0.95}},
    })
"""


def vocabulary() -> Vocabulary:
    text = TextTokenizer.load()
    blocks = [BlockSpec(name, world.SIZES[name]) for name in NAMES]
    return Vocabulary.build(text_size=text.size, text_fingerprint=text.fingerprint, blocks=blocks)


def save_checkpoint(workdir: pathlib.Path, config: ml_collections.ConfigDict, vocab: Vocabulary) -> None:
    decoder = Decoder(ModelConfig.from_config(config.model, vocab), rngs=nnx.Rngs(0))
    checkpoints = Checkpoints(workdir / "checkpoints")
    params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    checkpoints.save(40, {"params": params, "optimizer": {"count": np.zeros(())}}, config, vocab)
    checkpoints.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pathlib.Path:
    """A folder with config.py, a checkpoint and an input of each kind."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.py").write_text(CONFIG.replace("WORKDIR", str(folder / "run")))
    save_checkpoint(folder / "run", cli.load_config(str(folder / "config.py")), vocabulary())
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / "in.png")
    soundfile.write(folder / "in.wav", np.zeros(1600, np.float32), 16_000)
    (folder / "cut.png").write_bytes((folder / "in.png").read_bytes()[:40])
    (folder / "song.txt").write_text("la la")
    return folder


@pytest.fixture(autouse=True)
def _modalities(monkeypatch):
    codecs = {"image": world.ImageCodec(), "speech": world.SoundCodec("speech"), "music": world.SoundCodec("music")}
    monkeypatch.setattr(base, "get", codecs.__getitem__)


@pytest.fixture
def anygpt(trained, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder; gives (exit status, stdout, last line of stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        words = [a.replace("RUN/", f"{trained}/") for a in arguments]
        status = cli.main(["generate", f"--config={trained}/config.py", *words])
        out, err = capsys.readouterr()
        return status, out, (err.strip().splitlines() or [""])[-1]

    return run


def test_text_to_image_and_its_report(anygpt):
    status, out, err = anygpt("--prompt", "a red fox", "--to", "image", "--out", "fox.png", "--json", "fox.json")
    assert (status, out) == (0, "")
    assert err == "image saved to fox.png"
    image = np.asarray(Image.open("fox.png"))
    report = json.loads(pathlib.Path("fox.json").read_text())
    vocab = vocabulary()
    expected = Formatter(vocab, TextTokenizer.load()).prompt(pair_segments("text", "image", "a red fox"), "image")
    assert report["prompt"] == {"text": "a red fox", "files": [], "ids": expected.tolist()}
    (answer,) = report["answers"]
    (segment,) = answer["segments"]
    assert (segment["modality"], segment["file"], answer["seed"]) == ("image", "fox.png", 3)
    assert world.GRAMMARS["image"].problem(segment["codes"]) is None
    np.testing.assert_array_equal(image, world.ImageCodec().decode([np.array(segment["codes"])])[0])
    block = vocab.block("image")
    ids = [block.begin, *(block.start + c for c in segment["codes"]), block.end, vocab.marker("<eos>")]
    assert answer["ids"] == ids
    assert report["checkpoint_step"] == 40
    assert report["plan"] == ["image"]
    assert set(report["seconds"]) == {"load", "encode", "generate", "decode"}
    assert report["sampling"]["image"] == dataclasses.asdict(Sampling(1.0, 0.95))


@pytest.mark.parametrize(
    ("source", "target", "extra", "plan", "files"),
    [
        ("image", "text", (), ["text"], []),
        ("speech", "text", ("--out", "said.txt"), ["text"], ["said.txt"]),
        ("image", "speech", (), ["text", "speech"], ["speech.wav"]),
        ("speech", "image", ("--direct",), ["image"], ["image.png"]),
        ("music", "image", ("--via", "text"), ["text", "image"], ["image.png"]),
        ("speech", "music", ("--n", "2", "--out", "t.wav"), ["text", "music"], ["t-1.wav", "t-2.wav"]),
    ],
)
def test_files_in_and_files_out(anygpt, source, target, extra, plan, files):
    file = "RUN/in.png" if source == "image" else "RUN/in.wav"
    status, out, _ = anygpt(f"--{source}", file, "--to", target, "--json", "r.json", *extra)
    assert status == 0
    report = json.loads(pathlib.Path("r.json").read_text())
    assert report["plan"] == plan
    texts = [s["text"] for a in report["answers"] for s in a["segments"] if s["modality"] == "text"]
    assert out == "".join(f"{t}\n" for t in texts)
    assert sorted(p.name for p in pathlib.Path().iterdir()) == sorted([*files, "r.json"])
    saved = [s["file"] for a in report["answers"] for s in a["segments"] if "file" in s]
    assert saved == files
    for name in files:
        if name.endswith(".wav"):
            assert len(soundfile.read(name)[0]) > 0


def test_the_seed_decides_and_temperature_zero_does_not_need_one(anygpt):
    def codes(*arguments: str) -> list:
        assert anygpt("--prompt", "a fox", "--to", "speech", "--json", "r.json", *arguments)[0] == 0
        return [a["segments"][0]["codes"] for a in json.loads(pathlib.Path("r.json").read_text())["answers"]]

    several = codes("--seed", "10", "--n", "5")  # more than one batch of four
    assert codes("--seed", "12") == several[2:3]
    assert len(set(map(tuple, several))) > 1
    cold = codes("--temperature", "0", "--n", "3")
    assert cold[0] == cold[1] == cold[2]


def test_free_conversation(anygpt):
    status, _, _ = anygpt("--prompt", "hello", "--to", "any", "--n", "3", "--json", "r.json")
    assert status == 0
    report = json.loads(pathlib.Path("r.json").read_text())
    assert report["plan"] == "any"
    for name in (s["file"] for a in report["answers"] for s in a["segments"] if "file" in s):
        assert pathlib.Path(name).stat().st_size > 0


def test_what_an_answer_must_hold_and_settings_of_a_modality(anygpt):
    arguments = (
        "--prompt",
        "x",
        "--to",
        "any",
        "--may",
        "text,image",
        "--must",
        "image",
        "--n",
        "4",
        "--json",
        "r.json",
    )
    assert anygpt(*arguments, "--sampling", "image.temperature=0", "--sampling", "image.guidance=2")[0] == 0
    report = json.loads(pathlib.Path("r.json").read_text())
    assert report["plan"] == {"may": ["text", "image"], "must": ["image"]}
    assert report["sampling"]["image"]["guidance"] == 2
    for answer in report["answers"]:
        modalities = {segment["modality"] for segment in answer["segments"]}
        assert "image" in modalities and modalities <= {"text", "image"}


def test_the_likeliest_of_several(anygpt):
    def ids(*arguments):
        assert anygpt("--prompt", "a", "--to", "speech", "--json", "r.json", *arguments)[0] == 0
        return [answer["ids"] for answer in json.loads(pathlib.Path("r.json").read_text())["answers"]]

    several, (best,) = ids("--n", "8"), ids("--best-of", "8")
    assert best in several
    assert len({tuple(one) for one in several}) > 1


def test_many_requests(anygpt, trained):
    lines = [
        {"key": "draw", "prompt": "a red fox", "to": "image", "seed": 5},
        {"key": "say/it", "prompt": "hello", "to": "speech", "seed": 6},
        {"key": "see", "image": "in.png", "to": "text"},
        {"key": "odd", "prompt": "x", "to": "smell"},
        {"key": "gone", "image": "missing.png"},
        {"key": "own", "prompt": "x", "out": "y.png"},
    ]
    (trained / "many.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ("--requests", f"{trained}/many.jsonl", "--out", "answers")
    status, out, err = anygpt(*asked)
    assert (status, out) == (2, "")
    assert "3 requests could not be answered; answers/answers.jsonl says why" in err

    def answers():
        return {a["key"]: a for a in map(json.loads, pathlib.Path("answers/answers.jsonl").read_text().splitlines())}

    first = answers()
    assert set(first) == {line["key"] for line in lines}
    assert "Unknown modality" in first["odd"]["error"]
    assert "missing.png does not exist" in first["gone"]["error"]
    assert "'out' cannot be said" in first["own"]["error"]
    # As one by one.
    assert anygpt("--prompt", "a red fox", "--to", "image", "--seed", "5", "--json", "r.json")[0] == 0
    alone = json.loads(pathlib.Path("r.json").read_text())["answers"][0]["segments"]
    (drawn,) = first["draw"]["segments"]
    assert drawn["codes"] == alone[0]["codes"]
    pictures = [np.asarray(Image.open(path)) for path in ("image.png", f"answers/{drawn['file']}")]
    np.testing.assert_array_equal(*pictures)
    assert soundfile.info("answers/" + first["say/it"]["segments"][0]["file"]).frames > 0
    assert first["see"]["segments"][0]["modality"] == "text"
    # A run that was cut off in the middle of a line goes on with the rest.
    whole = pathlib.Path("answers/answers.jsonl").read_text().splitlines(keepends=True)
    pathlib.Path("answers/answers.jsonl").write_text("".join(whole[:4]) + whole[4][:9])
    anygpt(*asked)
    assert answers() == first
    assert pathlib.Path("answers/answers.jsonl").read_text().startswith("".join(whole[:4]))


def told(folder: str) -> dict:
    return {a["key"]: a for a in map(json.loads, pathlib.Path(folder, "answers.jsonl").read_text().splitlines())}


BAD_LINES = [
    ({"prompt": ["a", "b"]}, "'prompt' cannot be ['a', 'b']."),
    ({"prompt": None}, "'prompt' cannot be None."),
    ({"prompt": "x", "seed": True}, "'seed' cannot be True."),
    ({"prompt": "x", "seed": "three"}, "Argument --seed: invalid int value: 'three'."),
    ({"prompt": "x", "seed": 1.5}, "Argument --seed: invalid int value: '1.5'."),
    ({"image": 5}, "/5 does not exist"),
    ({"prompt": "x", "raw_prompt": "yes"}, "'raw_prompt' cannot be 'yes'."),
    ({"input": "in.png"}, "must have the form MODALITY=FILE"),
    ({"input": [5]}, "must have the form MODALITY=FILE"),
    ({"input": {"image": "in.png"}}, "'input' cannot be {'image': 'in.png'}."),
    ({"prompt": "x", "to": "image", "via": "image"}, "invalid choice: 'image'"),
    ({"prompt": "x", "to": "image", "via": "text", "direct": True}, "not allowed with argument"),
    ({"prompt": "x", "n": 0}, "--n must be at least 1"),
    *[({"prompt": "x", name: "y"}, f"'{name}' cannot be said") for name in ("config", "workdir", "verb", "module")],
    *[({"prompt": "x", name: "y"}, f"'{name}' cannot be said") for name in ("requests", "temperature", "beams", "")],
]


def test_a_bad_line_is_one_error_among_answers(anygpt, trained):
    rows = [{"key": f"bad{i}", **row} for i, (row, _) in enumerate(BAD_LINES)]
    rows.append({"key": "good", "prompt": 5, "to": "image", "seed": "7"})  # as --prompt 5 --seed 7
    (trained / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = anygpt("--requests", f"{trained}/bad.jsonl", "--out", "bad")
    assert status == 2 and f"{len(BAD_LINES)} requests could not be answered" in err
    found = told("bad")
    for i, (row, message) in enumerate(BAD_LINES):
        assert message in found[f"bad{i}"]["error"], row
    assert anygpt("--prompt", "5", "--to", "image", "--seed", "7", "--json", "r.json")[0] == 0
    (alone,) = json.loads(pathlib.Path("r.json").read_text())["answers"]
    assert [s["codes"] for s in found["good"]["segments"]] == [s["codes"] for s in alone["segments"]]


def test_a_line_means_what_the_command_line_would(anygpt, trained):
    lines = {
        "several": ({"prompt": "x", "to": "speech", "n": 3, "seed": 9}, "--prompt x --to speech --n 3 --seed 9"),
        "best": (
            {"prompt": "x", "to": "speech", "best_of": 6, "n": 2},
            "--prompt x --to speech --best-of 6 --n 2",
        ),
        "two": (
            {"input": ["image=in.png", "speech=in.wav"], "prompt": "y", "to": "music"},
            "--input image=RUN/in.png --input speech=RUN/in.wav --prompt y --to music",
        ),
        "one": ({"input": "image=in.png", "to": "image", "prompt": "y"}, "--image RUN/in.png --to image --prompt y"),
        "direct": ({"image": "in.png", "to": "speech", "direct": True}, "--image RUN/in.png --to speech --direct"),
        "chain": ({"image": "in.png", "to": "speech", "direct": False}, "--image RUN/in.png --to speech"),
        "via": ({"prompt": "z", "to": "image", "via": "text"}, "--prompt z --to image --via text"),
    }
    (trained / "same.jsonl").write_text("".join(json.dumps({"key": k, **v[0]}) + "\n" for k, v in lines.items()))
    assert anygpt("--requests", f"{trained}/same.jsonl", "--out", "same")[0] == 0
    found = told("same")
    for key, (_, words) in lines.items():
        assert anygpt(*words.split(), "--json", "r.json")[0] == 0
        expected = json.loads(pathlib.Path("r.json").read_text())["answers"]
        answers = found[key].get("answers", [found[key]])
        assert [a["seed"] for a in answers] == [a["seed"] for a in expected]
        for one, other in zip(answers, expected, strict=True):
            assert [(s["modality"], s.get("codes"), s.get("text")) for s in one["segments"]] == [
                (s["modality"], s.get("codes"), s.get("text")) for s in other["segments"]
            ], key
    files = [s["file"] for a in found["several"]["answers"] for s in a["segments"]]
    assert files == ["several-1.wav", "several+2-1.wav", "several+3-1.wav"]
    assert all(pathlib.Path("same", name).stat().st_size for name in files)


def test_many_requests_are_searched_by_beams_as_one_is(anygpt, trained):
    names = ("a", "b c", "d", "e", "f")
    rows = [{"key": name, "prompt": name} for name in names] + [{"key": "draw", "prompt": "a", "to": "image"}]
    (trained / "beams.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = ("--beams", "2", "--sampling", "text.temperature=0")
    assert anygpt("--requests", f"{trained}/beams.jsonl", "--out", "beams", *how)[0] == 0
    assert anygpt("--requests", f"{trained}/beams.jsonl", "--out", "greedy", *how[2:])[0] == 0
    found, greedy = told("beams"), told("greedy")
    for name in names:
        assert found[name]["segments"][0]["text"] == anygpt("--prompt", name, *how)[1].removesuffix("\n")
    assert found["draw"]["segments"][0]["codes"] == greedy["draw"]["segments"][0]["codes"]
    assert any(found[name]["segments"] != greedy[name]["segments"] for name in names)


def test_many_answers_say_what_was_heard_apart_from_the_reply(anygpt, trained, monkeypatch):
    """All ways of an answer go by `Format.parse`."""
    from anygpt_jax.formats.base import Parsed
    from anygpt_jax.formats.own import Own

    def parse(self, segments):
        (_, text), *_ = segments
        return Parsed(f"{text[:1]}?", (Segment("text", f"so: {text}", "assistant"),))

    monkeypatch.setattr(Own, "parse", parse)
    (trained / "heard.jsonl").write_text('{"key": "a", "prompt": "x"}\n')
    assert anygpt("--requests", f"{trained}/heard.jsonl", "--out", "heard")[0] == 0
    assert anygpt("--prompt", "x", "--json", "r.json")[0] == 0
    (alone,) = json.loads(pathlib.Path("r.json").read_text())["answers"]
    heard, reply = told("heard")["a"]["segments"]
    assert [heard, reply] == alone["segments"]
    assert reply["text"].startswith("so: ") and heard["heard"].endswith("?")


def test_lines_that_are_no_requests(anygpt, trained):
    for text, message in (
        ("{", "many2.jsonl:1: not JSON"),
        ('{"key": "a"}\n[]', "many2.jsonl:2: a line must be an object"),
        ('{"key": "a"}\n{"key": "a"}', 'many2.jsonl:2: the key "a" is there already'),
    ):
        (trained / "many2.jsonl").write_text(text)
        status, _, err = anygpt("--requests", f"{trained}/many2.jsonl", "--out", "answers2")
        assert status == 2 and message in err


def turn(*arguments: str, codes=()) -> list[Segment]:
    import argparse

    parser = argparse.ArgumentParser()
    main.add_arguments(parser)
    config = ml_collections.ConfigDict({"seed": 0, "modalities": NAMES})
    return main.human_turn(main.parse(config, parser.parse_args(arguments)), codes)


def test_what_the_model_reads(trained):
    png, wav = str(trained / "in.png"), str(trained / "in.wav")
    picture, sound = np.arange(3), np.arange(2)
    said = lambda text: Segment("text", text, "human")  # noqa: E731
    seen, heard = Segment("image", picture, "human"), Segment("speech", sound, "human")
    assert turn("--prompt", " a fox ", "--to", "image") == pair_segments("text", "image", "a fox")
    assert turn("--prompt", "draw a fox", "--to", "image", "--raw-prompt") == [said("draw a fox")]
    assert turn("--prompt", " a ", "--to", "image", "--raw-prompt") == [said(" a ")]
    assert turn("--prompt", "hello") == [said("hello")]
    assert turn("--image", png, codes=[picture]) == pair_segments("image", "text", picture)
    assert turn("--image", png, "--to", "speech", codes=[picture]) == pair_segments("image", "speech", picture)
    assert turn("--image", png, "--prompt", "which colour", codes=[picture]) == [said("which colour"), seen]
    assert turn("--speech", wav, "--raw-prompt", "--to", "image", codes=[sound]) == [heard]
    both = turn("--image", png, "--input", f"speech={wav}", "--to", "music", codes=[picture, sound])
    assert both == [*pair_segments("image", "music", picture), heard]


BAD = [
    (("--to", "image"), "nothing to answer"),
    (("--prompt", "  ", "--to", "image"), "nothing to answer"),
    (("--prompt", "x", "--to", "smell"), "Unknown modality '--to smell'; choose text, image, speech, music or any"),
    (("--prompt", "x", "--to", "image", "--out", "fox.wav"), "image is saved as .png; name the file fox.png"),
    (("--prompt", "x", "--to", "speech", "--out", "fox"), "speech is saved as .wav"),
    (("--prompt", "x", "--out", "fox.png"), "text is saved as .txt"),
    (("--prompt", "x", "--to", "image", "--out", "nowhere/fox.png"), "The folder nowhere of --out does not exist"),
    (("--prompt", "x", "--to", "image", "--out", "."), "--out . is a folder"),
    (("--prompt", "x", "--json", "nowhere/r.json"), "The folder nowhere of --json does not exist"),
    (("--prompt", "x", "--to", "any", "--out", "x.png"), "--out needs one modality"),
    (("--image", "missing.png"), "--image missing.png does not exist"),
    (("--image", "RUN/"), "is a folder; name a file"),
    (("--image", "RUN/cut.png"), "cut.png: this is not a whole PNG image"),
    (("--music", "RUN/song.txt"), "song.txt: this is not a whole sound file"),
    (("--speech", "RUN/in.png"), "in.png: this is not a whole sound file"),
    (("--input", "smell=RUN/in.png"), "--input smell=: files may be of image, speech, music"),
    (("--input", "in.png"), "must have the form MODALITY=FILE"),
    (("--image", "RUN/in.png", "--to", "image"), "no instruction for image to image"),
    (("--prompt", "x", "--n", "0"), "--n must be at least 1"),
    (("--prompt", "x", "--seed", "-1"), "--seed must lie between 0 and"),
    (("--prompt", "x", "--temperature", "-2"), "temperature must be 0"),
    (("--prompt", "x", "--via", "text"), "--to text needs no detour"),
    (("--prompt", "word " * 400), "trained on at most 256; shorten it"),
    (("--prompt", "x", "--sampling", "image"), "must have the form MODALITY.NAME=VALUE"),
    (("--prompt", "x", "--sampling", "smell.top_p=1"), "the modalities are text, image, speech, music"),
    (("--prompt", "x", "--sampling", "image.heat=1"), "there are temperature, top_p, top_k, min_p"),
    (("--prompt", "x", "--sampling", "image.top_k=1.5"), "'1.5' is not a number that top_k can be"),
    (("--prompt", "x", "--sampling", "image.top_p=7"), "top_p must be more than 0"),
    (("--prompt", "x", "--beams", "0"), "--beams must be at least 1"),
    (("--prompt", "x", "--best-of", "0"), "--best-of must be at least 1"),
    (("--prompt", "x", "--may", "image"), "--may and --must are for --to any"),
    (("--prompt", "x", "--to", "any", "--must", "smell"), "not 'smell'"),
    (("--prompt", "x", "--to", "any", "--may", "text", "--must", "image"), "--must image, which --may leaves out"),
    (("--requests", "RUN/song.txt"), "--requests needs a folder"),
    (("--requests", "missing", "--out", "answers"), "--requests missing does not exist"),
    (("--requests", "RUN/song.txt", "--out", "x", "--json", "y"), "--json is for one request"),
    (("--requests", "RUN/song.txt", "--out", "x", "--n", "0"), "--n must be at least 1"),
    (("--prompt", "x", "--workdir", "empty"), "No checkpoints at empty/checkpoints; run `anygpt train` first"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a)[:40] for a, _ in BAD])
def test_bad_input_is_one_clear_sentence(anygpt, arguments, message):
    status, out, err = anygpt(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("anygpt: ")
    assert message in err
    assert list(pathlib.Path().iterdir()) == []  # nothing half-written


def test_other_tokenizers_than_the_checkpoints_are_refused(anygpt, trained, tmp_path):
    class Larger(world.ImageCodec):
        codebook_size = 13

    codecs = {"image": Larger(), "speech": world.SoundCodec("speech"), "music": world.SoundCodec("music")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "get", codecs.__getitem__)
        assert "knows 12 image codes and the image tokenizer has 13" in anygpt("--prompt", "x")[2]
    with pytest.MonkeyPatch.context() as patch:
        other = TextTokenizer.load()
        other.fingerprint = "another"
        patch.setattr(TextTokenizer, "load", classmethod(lambda cls: other))
        assert "and the one in use is another" in anygpt("--prompt", "x")[2]
    cache = trained / "run" / "cache"
    cache.mkdir()
    Manifest(vocabulary().fingerprint, "t", {"image": "image-0"}, {}).save(cache)
    try:
        assert "made with image tokenizer image-0 and the one in use is image-1" in anygpt("--prompt", "x")[2]
    finally:
        (cache / "manifest.json").unlink()
        cache.rmdir()


def test_unknown_flags_and_help(capsys):
    for arguments, status in ((["--smell", "x"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as stop:
            cli.main(["generate", "--config=x", *arguments])
        assert stop.value.code == status
    out, err = capsys.readouterr()
    assert "--smell" in err
    for flag in ("--prompt", "--to", "--via", "--direct", "--seed", "--out", "--raw-prompt", "--json"):
        assert flag in out


def test_generation_does_not_load_tensorflow():
    code = (
        "import sys, anygpt_jax.generation.main;"
        "print([m for m in ('tensorflow', 'seqio', 'apache_beam', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
