"""Released layouts, by tiny stand-ins of the same shape of files."""

import io
import json

import numpy as np
import pytest
import soundfile
import test_sources_tar as tars

from anygpt_jax.tasks import preprocessors
from anygpt_jax.tasks.sources import layouts
from anygpt_jax.tasks.sources.any_instruct import Names, any_instruct
from anygpt_jax.tasks.sources.gigaspeech import gigaspeech
from anygpt_jax.tasks.sources.mmc4 import mmc4

RATE = 16_000


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def read(source, split="train"):
    return list(source.get_dataset(split=split).as_numpy_iterator())


def attributes(examples):
    return [json.loads(e["attributes"]) for e in examples]


def test_laion_like_tars(tmp_path):
    for t in range(2):
        files = []
        for i in range(2):
            name = f"{t:05d}{i:04d}"
            said = json.dumps({"key": name, "width": 300, "similarity": 0.25 + t, "caption": "c"}).encode()
            files += [
                (f"{name}.jpg", b"jpeg " + name.encode()),
                (f"{name}.json", said),
                (f"{name}.txt", b"alt " + name.encode()),
            ]
        tars.make_tar(tmp_path / f"{t:05d}.tar", files)
        write(tmp_path / f"{t:05d}_stats.json", "{}")  # as img2dataset leaves it beside the tars
    examples = read(layouts.laion({"train": f"{tmp_path}/*.tar"}))
    names = ["000000000", "000000001", "000010000", "000010001"]
    assert [e["key"].decode() for e in examples] == [f"train/{n[:5]}.tar/{n}" for n in names]
    assert [e["image"].decode() for e in examples] == [f"jpeg {n}" for n in names]
    assert [e["caption"].decode() for e in examples] == [f"alt {n}" for n in names]
    assert [a["similarity"] for a in attributes(examples)] == [0.25, 0.25, 1.25, 1.25]


def test_music_with_json_captions(tmp_path):
    files = [("a.flac", b"sound"), ("a.json", b'{"meta": {"caption": "slow"}, "artist": "x"}')]
    source = layouts.music_with_json({"train": str(tars.make_tar(tmp_path / "m.tar", files))}, "meta.caption")
    (example,) = read(source)
    assert (example["music"], example["caption"], example["filtered"]) == (b"sound", b"slow", b"")
    assert attributes([example])[0]["artist"] == "x"


def test_multilingual_librispeech(tmp_path):
    folder = tmp_path / "mls_german" / "train"
    lines = [
        "4800_10003_000000\toft kühlt er",
        "4800_10003_000001\tdie hand",
        "no tab here",
        "77_5_000009\tweg\u2028noch",
    ]
    write(folder / "transcripts.txt", "\n".join(lines) + "\n")
    write(folder / "audio/4800/10003/4800_10003_000000.flac", b"eins")
    write(folder / "audio/77/5/77_5_000009.flac", b"drei")
    source = layouts.multilingual_librispeech({"train": str(folder)})
    assert source.num_input_examples("train") == 4
    examples = read(source)
    base = "train/transcripts.txt/"
    assert [e["key"].decode() for e in examples] == [base + k for k in ("4800_10003_000000", "4800_10003_000001", "#2", "77_5_000009")]  # fmt: skip
    assert [e["speech"] for e in examples] == [b"eins", b"", b"", b"drei"]
    assert [e["text"].decode() for e in examples] == ["oft kühlt er", "die hand", "", "weg\u2028noch"]
    assert [bool(e["filtered"]) for e in examples] == [False, True, True, False]
    assert attributes(examples)[0] == {"speaker": "4800", "book": "10003"}


def test_common_voice(tmp_path):
    header = "client_id\tpath\tsentence\tup_votes\tage\tlocale"
    rows = ['ab\tcommon_voice_en_1.mp3\tHe said "yes.\t2\t\ten', "cd\tcommon_voice_en_2\tNo quotes.\t3\tthirties\ten"]
    write(tmp_path / "en/train.tsv", "\n".join([header, *rows]) + "\n")
    for i in (1, 2):
        write(tmp_path / f"en/clips/common_voice_en_{i}.mp3", f"mp3 {i}")
    source = layouts.common_voice({"train": f"{tmp_path}/en/train.tsv"})
    assert source.num_input_examples("train") == 2
    examples = read(source)
    assert [e["speech"] for e in examples] == [b"mp3 1", b"mp3 2"]
    assert [e["text"].decode() for e in examples] == ['He said "yes.', "No quotes."]
    assert attributes(examples) == [
        {"client_id": "ab", "up_votes": "2", "locale": "en"},
        {"client_id": "cd", "up_votes": "3", "age": "thirties", "locale": "en"},
    ]


def encoded(samples, kind="FLAC"):
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=kind, subtype="PCM_16")
    return out.getvalue()


def segment(sid, begin, end, text, *subsets):
    return {
        "sid": sid,
        "speaker": "N/A",
        "begin_time": begin,
        "end_time": end,
        "text_tn": text,
        "subsets": [f"{{{s}}}" for s in subsets],
    }


@pytest.fixture
def giga(tmp_path):
    ramp = (np.arange(5 * RATE) % 20011 - 10000).astype(np.int16)
    write(tmp_path / "audio/podcast/P1/POD1.flac", encoded(ramp))
    write(tmp_path / "audio/podcast/P1/POD2.flac", b"fLaC broken")
    audios = [
        {"title": "one", "aid": "POD1", "path": "audio/podcast/P1/POD1.flac", "md5": "x", "category": "Arts", "segments": [
            segment("POD1_S1", 0.5, 1.25, "HELLO <COMMA> WORLD <PERIOD>", "XL", "L"),
            segment("POD1_S2", 1.25, 3.0, "<SIL>", "XL"),
            segment("POD1_S3", 4.0, 5.0, "FOR EVALUATION <QUESTIONMARK>", "DEV"),
            segment("POD1_S4", 4.5, 9.0, "BEYOND THE END", "XL"),
        ]},
        {"title": "two", "aid": "POD2", "path": "audio/podcast/P1/POD2.flac", "segments": [
            segment("POD2_S1", 0.0, 1.0, "LOST", "XL"), segment("POD2_S2", 1.0, 2.0, "LOST TOO", "XL"),
        ]},
    ]  # fmt: skip
    write(
        tmp_path / "GigaSpeech.json",
        json.dumps({"dataset": "GigaSpeech", "language": "EN", "audios": audios}, indent=1),
    )
    return tmp_path / "GigaSpeech.json", ramp


def test_gigaspeech_cuts_utterances_from_long_recordings(giga):
    path, ramp = giga
    source = gigaspeech(str(path), {"train": "XL", "validation": "DEV"})
    examples = read(source)
    names = [e["key"].decode().rsplit("/", 1)[1] for e in examples]
    assert names == ["POD1_S1", "POD1_S2", "POD1_S4", "POD2_S1", "POD2_S2"]
    for example, (begin, end) in zip(examples[:2], ((8000, 20000), (20000, 48000)), strict=True):
        samples, rate = soundfile.read(io.BytesIO(example["speech"]), dtype="int16")
        assert rate == RATE
        assert np.abs(samples.astype(int) - ramp[begin:end]).max() <= 1
        assert len(samples) == end - begin
    assert examples[0]["text"] == b"HELLO <COMMA> WORLD <PERIOD>"
    assert [e["filtered"].decode()[:9] for e in examples] == ["", "", "!it is sa", "!POD2.fla", "!POD2.fla"]
    assert attributes(examples)[0] == {"title": "one", "aid": "POD1", "category": "Arts", "speaker": "N/A"}
    (held_out,) = read(source, "validation")
    assert held_out["key"] == b"validation/GigaSpeech.json/POD1_S3"


def test_recordings_outside_of_gigaspeechs_folder_are_not_read(giga):
    path, _ = giga
    told = json.loads(path.read_text())
    (path.parent / "moved").mkdir()
    told["audios"][0]["path"] = f"../{told['audios'][0]['path']}"
    write(path.parent / "moved/GigaSpeech.json", json.dumps(told))
    reasons = [e["filtered"] for e in read(gigaspeech(f"{path.parent}/moved/GigaSpeech.json", {"train": "XL"}))]
    assert reasons[:3] == [b"!its path leads out of the folder of media"] * 3


def interleaved(source, kind):
    return list(preprocessors.interleaved(source.get_dataset(split="train"), kind=kind).as_numpy_iterator())


def test_mmc4_like_documents(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path / "images" / f"{name}.png", f"image {name}")
    documents = [
        {"url": "u", "text_list": ["First.", " ", "Third."], "similarity_matrix": [[0.1]], "image_info": [
            {"image_name": "b.png", "matched_text_index": 2, "matched_sim": 0.3},
            {"image_name": "a.png", "matched_text_index": 0, "matched_sim": 0.4},
            {"image_name": "c.png", "matched_text_index": 2, "matched_sim": 0.1},
            {"image_name": "dead.png", "matched_text_index": 1, "matched_sim": 0.9},
        ]},
        {"url": "v", "text_list": ["Only text."], "image_info": []},
        {"url": "w", "text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 5}]},
        {"url": "x", "text_list": ["x"], "image_info": [{"image_name": "../secret.png", "matched_text_index": 0}]},
        {"url": "y", "text_list": ["x"], "image_info": [{"image_name": f"{tmp_path}/secret.png", "matched_text_index": 0}]},
    ]  # fmt: skip
    write(tmp_path / "secret.png", "secret")
    write(tmp_path / "docs_shard_0_v3.jsonl", "".join(json.dumps(d) + "\n" for d in documents))
    examples = interleaved(mmc4({"train": f"{tmp_path}/docs_*.jsonl"}, f"{tmp_path}/images", 0.24), "document")
    first, second, third, *hostile = examples
    assert list(first["modality"]) == [b"image", b"text", b"image", b"text"]
    assert list(first["content"]) == [b"image a", b"First.", b"image b", b"Third."]
    assert first["loss"].all()
    assert json.loads(first["attributes"]) == {"url": "u", "dissimilar_images": 1, "missing_images": 1}
    assert list(second["content"]) == [b"Only text."]
    assert third["filtered"].startswith(b"!IndexError")
    assert all(not e["filtered"] for e in (first, second))
    assert [e["filtered"] for e in hostile] == [b"!its path leads out of the folder of media"] * 2
    assert not any(b"secret" in c for e in hostile for c in e["content"])


@pytest.fixture
def instruct(tmp_path):
    tars.make_tar(tmp_path / "images_224.tar", [("images_224", None), ("images_224/1.jpg", b"picture 1")])
    tars.make_tar(tmp_path / "music.tar", [("music/m.mp3", b"song")])
    tars.make_tar(tmp_path / "speech.tar", [("./h.mp3", b"asked"), ("./a.mp3", b"answered")])
    dialogues = [
        {"id": "7", "topic": "dance", "chat": [
            {"role": "USER", "message": "what is this", "images": ["1.jpg"], "speech": "h.mp3"},
            {"role": "CHATBOT", "message": "a waltz", "music": ["music/m.mp3"], "speech": "a.mp3"},
        ]},
        {"id": "8", "chat": [{"role": "USER", "message": "hello", "images": ["absent.jpg"]}]},
        {"id": "9", "chat": [{"role": "narrator", "message": "once"}]},
        {"id": "10"},
    ]  # fmt: skip
    write(tmp_path / "metadata.json", json.dumps(dialogues))
    return tmp_path


def any_instruct_of(folder, **settings):
    media = {
        "image": [f"{folder}/images_224.tar"],
        "music": [f"{folder}/music.tar"],
        "speech": [f"{folder}/speech.tar"],
    }
    return any_instruct({"train": f"{folder}/metadata.json"}, media, **settings)


def test_any_instruct_like_dialogues(instruct):
    first, *rest = interleaved(any_instruct_of(instruct), "dialogue")
    assert first["key"] == b"train/metadata.json/7"
    assert list(first["modality"]) == [b"image", b"text", b"text", b"music"]
    assert list(first["role"]) == [b"human", b"human", b"assistant", b"assistant"]
    assert list(first["content"]) == [b"picture 1", b"what is this", b"a waltz", b"song"]
    assert list(first["loss"]) == [False, False, True, True]
    assert json.loads(first["attributes"]) == {"topic": "dance"}
    reasons = [e["filtered"].decode() for e in rest]
    assert "has absent.jpg" in reasons[0] and "role 'narrator'" in reasons[1] and "no list 'chat'" in reasons[2]


def test_spoken_dialogues_ask_by_voice_and_answer_by_text_and_voice(instruct):
    first = interleaved(any_instruct_of(instruct, spoken=True), "dialogue")[0]
    assert list(zip(first["modality"], first["content"], strict=True)) == [
        (b"image", b"picture 1"), (b"speech", b"asked"), (b"text", b"a waltz"), (b"music", b"song"), (b"speech", b"answered"),
    ]  # fmt: skip


def test_answers_to_speech_can_begin_with_its_words(instruct):
    first = interleaved(any_instruct_of(instruct, spoken=True, heard="you said {} :"), "dialogue")[0]
    assert list(first["content"])[2] == b"you said what is this : a waltz"
    written = interleaved(any_instruct_of(instruct, heard="you said {} :"), "dialogue")[0]
    assert list(written["content"])[2] == b"a waltz"  # nothing was heard


def test_the_names_inside_metadata_are_settings(tmp_path):
    names = Names(turns="conversations", role="from", text="value", media=(("image", "picture"),))
    rows = [{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}]
    write(tmp_path / "m.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    (example,) = interleaved(any_instruct({"train": f"{tmp_path}/m.jsonl"}, {}, names), "dialogue")
    assert list(example["content"]) == [b"hi", b"ho"]
    source = any_instruct({"train": f"{tmp_path}/m.jsonl"}, {}, names, spoken=True, heard="you said {} :")
    (example,) = interleaved(source, "dialogue")
    assert list(example["content"]) == [b"hi", b"ho"], "without a name of speech nothing is heard"
    assert example["filtered"] == b""
