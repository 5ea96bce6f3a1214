"""Folders, metadata files, Hugging Face and TFDS builds on disk: what is read, sharding, and what damage costs."""

import functools
import io
import json
import shutil

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import seqio
import soundfile
import tensorflow as tf
import tensorflow_datasets as tfds

from anygpt_jax.errors import UserError
from anygpt_jax.tasks import recipe
from anygpt_jax.tasks.sources.folder import folder
from anygpt_jax.tasks.sources.huggingface import huggingface
from anygpt_jax.tasks.sources.metadata import json_items, metadata
from anygpt_jax.tasks.sources.source import MediaSource
from anygpt_jax.tasks.sources.tfds_arrays import tfds_arrays
from anygpt_jax.tasks.sources.webdataset import webdataset


def read(source, split="train", index=0, count=1):
    """Through tf.data, as SeqIO reads it."""
    info = seqio.ShardInfo(index=index, num_shards=count)
    dataset = source.get_dataset(split=split, shuffle=False, shard_info=info)
    return list(dataset.as_numpy_iterator())


def keys(examples):
    return [e["key"].decode() for e in examples]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


PICTURES = {"image": "jpg;png", "caption": "txt"}


@pytest.fixture
def pictures(tmp_path):
    for name in ("b", "a", "deep/c.2020"):
        write(tmp_path / f"{name}.png", f"image {name}")
        write(tmp_path / f"{name}.txt", f"caption {name}")
    write(tmp_path / "a.json", json.dumps({"width": 3, "tags": ["x"]}))
    write(tmp_path / "only_text.txt", "nothing to see")
    write(tmp_path / ".hidden.png", "no")
    return tmp_path


def test_a_folder_pairs_media_with_their_sidecars_in_the_order_of_names(pictures):
    examples = read(folder({"train": str(pictures)}, PICTURES))
    assert keys(examples) == ["train/a", "train/b", "train/deep/c.2020", "train/only_text"]
    assert [e["image"] for e in examples] == [b"image a", b"image b", b"image deep/c.2020", b""]
    assert [e["caption"] for e in examples] == [b"caption a", b"caption b", b"caption deep/c.2020", b"nothing to see"]
    assert json.loads(examples[0]["attributes"]) == {"width": 3, "tags": ["x"]}
    assert [e["filtered"] for e in examples] == [b"", b"", b"", b"!it has no jpg, png file"]
    assert folder({"train": str(pictures)}, PICTURES).num_input_examples("train") == 4


def test_a_folder_that_changed_is_other_data_and_one_that_moved_is_not(pictures, tmp_path):
    def shards(path):
        return folder({"train": str(path)}, PICTURES).list_shards("train")

    before = shards(pictures)
    moved = pictures.rename(pictures.with_name("moved"))
    assert shards(moved) == before
    write(moved / "a.png", "IMAGE a")  # as many bytes as before
    assert shards(moved) != before


def test_the_fingerprint_is_of_settings_and_of_the_code_that_reads(pictures, monkeypatch):
    one = folder({"train": str(pictures)}, PICTURES)
    before = one.fingerprint("train")
    assert folder({"train": str(pictures / "deep")}, dict(PICTURES)).fingerprint("train") == before
    assert folder({"train": str(pictures)}, PICTURES | {"caption": "text"}).fingerprint("train") != before
    assert webdataset({"train": str(pictures)}, PICTURES).fingerprint("train") != before
    written = recipe.module_code
    for module, counts in (("sources.grouped", True), ("sources.source", True), ("sources.tar", False)):

        def edited(thing, module=module):
            return written(thing) + ("# edited" if getattr(thing, "__name__", "").endswith(module) else "")

        with monkeypatch.context() as patch:
            patch.setattr(recipe, "module_code", edited)
            assert (one.fingerprint("train") != before) == counts, module


@pytest.mark.parametrize("files", [1, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_shards_are_the_whole_without_overlap_and_read_only_their_own_media(tmp_path, files, count):
    called = []
    for f in range(files):
        write(tmp_path / f"{f}.list", "\n".join(f"{f}-{i}" for i in range(4)))

    def reader(file):
        def unit(name):
            called.append(name)
            yield {"key": name, "text": name}

        for name in file.path.read_text().split():
            yield functools.partial(unit, name)

    source = MediaSource({"train": f"{tmp_path}/*.list"}, reader, fields=("text",))
    parts = [list(source.examples("train", i, count)) for i in range(count)]
    found = [e["text"].decode() for part in parts for e in part]
    expected = [f"{f}-{i}" for f in range(files) for i in range(4)]
    assert sorted(found) == sorted(called) == expected
    again = [list(source.examples("train", i, count)) for i in range(count)]
    assert again == parts
    assert [e["text"].decode() for e in source.examples("train")] == expected
    assert all(
        e["key"].decode() == f"train/{e['text'].decode()[0]}.list/{e['text'].decode()}" for p in parts for e in p
    )


def test_a_reader_that_fails_costs_its_unit_and_a_damaged_file_is_one_reject(tmp_path):
    write(tmp_path / "0.list", "x")

    def fails(n):
        if n == 1:
            raise RuntimeError("bad unit")
        yield {"key": str(n), "text": "good"}

    def reader(file):
        for n in range(3):
            yield functools.partial(fails, n)
        raise OSError("disk")

    source = MediaSource({"train": f"{tmp_path}/*.list"}, reader, fields=("text",))
    for count in (1, 2):
        examples = [e for i in range(count) for e in read(source, "train", i, count)]
        assert sorted((e["key"], e["text"], e["filtered"]) for e in examples) == [
            (b"train/0.list/#1", b"", b"!RuntimeError: bad unit"),
            (b"train/0.list/#after-2", b"", b"!the rest of 0.list cannot be read (OSError: disk)"),
            (b"train/0.list/0", b"good", b""),
            (b"train/0.list/2", b"good", b""),
        ]


def test_a_wrong_path_is_a_sentence(tmp_path):
    source = folder({"train": str(tmp_path / "absent")}, PICTURES)
    with pytest.raises(UserError, match=r"no file .*absent for split 'train'"):
        source.list_shards("train")


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "a.png").open("wb") as f:
        f.truncate(10 << 30)  # sparse: it takes no disk
    write(tmp_path / "a.txt", "caption")
    (example,) = read(folder({"train": str(tmp_path)}, PICTURES))
    assert example["image"] == b""
    assert b"10,737,418,240 bytes" in example["filtered"]


ROWS = [
    {"file_name": "one.png", "text": 'a "quoted", thing', "year": 1999},
    {"file_name": "absent.png", "text": "zwei\tund drei", "year": 2000},
    {"file_name": "sub/three.png", "text": "trois", "year": 2001},
]


def write_rows(path, rows=ROWS):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif path.suffix == ".csv":
        import csv

        with path.open("w", newline="") as f:
            table = csv.DictWriter(f, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_metadata_of_every_kind_gives_the_same_examples(tmp_path, kind):
    write(tmp_path / "one.png", "1")
    write(tmp_path / "sub/three.png", "3")
    write_rows(tmp_path / f"metadata.{kind}")
    source = metadata({"train": f"{tmp_path}/metadata.{kind}"}, {"image": "file_name"}, {"caption": "text"})
    examples = read(source)
    name = f"train/metadata.{kind}"
    assert keys(examples) == [f"{name}/00000000", f"{name}/00000001", f"{name}/00000002"]
    assert [e["image"] for e in examples] == [b"1", b"", b"3"]
    assert [e["caption"].decode() for e in examples] == [r["text"] for r in ROWS]
    assert [int(json.loads(e["attributes"])["year"]) for e in examples] == [1999, 2000, 2001]
    assert [e["filtered"] for e in examples] == [b"", b"!absent.png cannot be read (No such file or directory)", b""]
    assert source.num_input_examples("train") == 3


def test_one_bad_line_of_jsonl_costs_one_example(tmp_path):
    write(tmp_path / "a.png", "A")
    lines = ['{"id": "x", "file": "a.png", "text": "1"}', '{"id": "y", "fi', "[]", '{"id": "z", "file": "a.png"}']
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    examples = read(metadata({"t": f"{tmp_path}/m.jsonl"}, {"image": "file"}, {"text": "text"}, key="id"), "t")
    assert keys(examples) == ["t/m.jsonl/x", "t/m.jsonl/00000001", "t/m.jsonl/00000002", "t/m.jsonl/z"]
    assert [bool(e["filtered"]) for e in examples] == [False, True, True, False]
    assert examples[3]["text"] == b""


@pytest.mark.parametrize("read_size", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_json_arrays_are_read_in_pieces_as_json_reads_them_whole(tmp_path, monkeypatch, read_size, indent):
    from anygpt_jax.tasks.sources import metadata as module

    monkeypatch.setattr(module, "READ", read_size)
    items = [{"a": [1, {"b": "]},["}]}, "text, with ] in it", 12345, -1.5e3, None, True, [], {"audios": [1]}]
    whole = {"name": "x", "audios": items, "after": [9]}
    (tmp_path / "a.json").write_text(json.dumps(whole, indent=indent))
    (tmp_path / "b.json").write_text(json.dumps(items, indent=indent))
    assert list(json_items(tmp_path / "a.json", "audios")) == items
    assert list(json_items(tmp_path / "b.json")) == items
    (tmp_path / "c.json").write_text(json.dumps(whole)[: -len('"after": [9]}') - 6])
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        list(json_items(tmp_path / "c.json", "audios"))


def hugging_table(n, media="image"):
    struct = [{"bytes": f"bytes {i}".encode(), "path": f"{i}.png"} for i in range(n)]
    struct[1] = {"bytes": None, "path": "beside.png"}
    rows = [
        {media: struct[i], "text": f"caption {i}", "label": i % 2, "similarity": i / 4, "ids": [i]} for i in range(n)
    ]
    return pyarrow.Table.from_pylist(rows)


def save_to_disk(path, table, rows_a_batch=2, files=2):
    """As `Dataset.save_to_disk` lays it out: Arrow streams, state.json, dataset_info.json."""
    path.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    size = -(-table.num_rows // files)
    for i, name in enumerate(names):
        part = table.slice(i * size, size)
        with pyarrow.ipc.new_stream(path / name, part.schema) as stream:
            stream.write_table(part, max_chunksize=rows_a_batch)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
    (path / "dataset_info.json").write_text("{}")
    (path / "beside.png").write_bytes(b"bytes beside")


EXPECTED = [b"bytes 0", b"bytes beside", *(f"bytes {i}".encode() for i in range(2, 7))]


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_hugging_face_datasets_on_disk(tmp_path, kind):
    table = hugging_table(7)
    if kind == "arrow":
        save_to_disk(tmp_path / "train", table)
        (tmp_path / "train" / "cache-1234.arrow").write_bytes(b"a result of Dataset.map")
        source = huggingface({"train": str(tmp_path / "train")}, {"image": "image", "caption": "text"})
    else:
        (tmp_path / "beside.png").write_bytes(b"bytes beside")
        for i in range(2):
            part = table.slice(i * 4, 4)
            pyarrow.parquet.write_table(part, tmp_path / f"train-{i:05d}-of-00002.parquet", row_group_size=2)
        source = huggingface({"train": f"{tmp_path}/train-*.parquet"}, {"image": "image", "caption": "text"})
    assert source.num_input_examples("train") == 7
    examples = read(source)
    assert [e["image"] for e in examples] == EXPECTED
    assert [e["caption"].decode() for e in examples] == [f"caption {i}" for i in range(7)]
    assert [json.loads(e["attributes"]) for e in examples] == [{"label": i % 2, "similarity": i / 4} for i in range(7)]
    assert len(set(keys(examples))) == 7
    sharded = [e["key"] for i in range(3) for e in read(source, "train", i, 3)]
    assert sorted(sharded) == sorted(e["key"] for e in examples)
    assert len(sharded) == 7


def test_a_cut_arrow_file_gives_what_is_whole_and_one_reject(tmp_path):
    save_to_disk(tmp_path / "train", hugging_table(6), rows_a_batch=1, files=1)
    path = next((tmp_path / "train").glob("*.arrow"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    examples = read(huggingface({"train": str(tmp_path / "train")}, {"image": "image", "caption": "text"}))
    good = [e for e in examples if not e["filtered"]]
    assert 0 < len(good) < 6
    assert [e["image"] for e in good] == EXPECTED[: len(good)]
    assert len(examples) == len(good) + 1 and b"#after" in examples[-1]["key"]


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([{"text": f"{i}" * 5000, "image": b"x"} for i in range(6)])
    pyarrow.parquet.write_table(table, path, row_group_size=2, compression="snappy", use_dictionary=False)
    group = pyarrow.parquet.read_metadata(path).row_group(1)
    data = bytearray(path.read_bytes())
    start = group.column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    examples = read(huggingface({"train": str(path)}, {"image": "image", "text": "text"}))
    assert [bool(e["filtered"]) for e in examples] == [False, False, True, True, False, False]
    assert len(set(keys(examples))) == 6


def test_a_column_that_is_not_there_is_named(tmp_path):
    save_to_disk(tmp_path / "train", hugging_table(3))
    examples = read(huggingface({"train": str(tmp_path / "train")}, {"image": "picture"}))
    assert all(b"no column picture" in e["filtered"] for e in examples) and examples


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    pixels = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    sound = np.linspace(-30000, 30000, 5 * 160).astype(np.int64).reshape(5, 160)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
            "audio": tfds.features.Audio(sample_rate=16000),
            "text": tfds.features.Text(),
            "label": tf.int64,
        }
    )
    rows = {"image": pixels, "audio": sound, "text": [f"text {i}" for i in range(5)], "label": np.arange(5)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="small", version="1.0.0", data_dir=str(data_dir), features=features, disable_shuffling=True,
        split_datasets={"train": tf.data.Dataset.from_tensor_slices(rows)}, file_format="array_record",
    )  # fmt: skip
    return data_dir / "small" / "1.0.0"


def test_array_record_builds_are_read_as_tfds_reads_them(build):
    source = tfds_arrays(str(build), ("train",), {"image": "image", "speech": "audio", "text": "text"})
    examples = read(source)
    reference = tfds.builder_from_directory(str(build)).as_data_source(split="train")
    assert len(examples) == len(reference) == source.num_input_examples("train") == 5
    for example, expected in zip(examples, reference, strict=True):
        np.testing.assert_array_equal(tf.io.decode_png(example["image"]).numpy(), expected["image"])
        samples, rate = soundfile.read(io.BytesIO(example["speech"]), dtype="int16")
        np.testing.assert_array_equal(samples, expected["audio"])
        assert rate == 16000
        assert example["text"] == expected["text"]
        assert json.loads(example["attributes"]) == {"label": int(expected["label"])}


def test_seqio_itself_refuses_an_array_record_build(build):
    """The reason for `tfds_arrays`; when this fails, SeqIO's own source will do."""
    source = seqio.TfdsDataSource("small:1.0.0", tfds_data_dir=str(build.parents[1]), splits=("train",))
    with pytest.raises(NotImplementedError):
        source.get_dataset(split="train", shuffle=False)


def test_a_damaged_record_of_a_build_costs_itself_alone(build, tmp_path):
    copy = tmp_path / "1.0.0"
    shutil.copytree(build, copy)
    path = next(copy.glob("*.array_record*"))
    whole = path.read_bytes()
    used = len(whole[: 1 << 14].rstrip(b"\0"))
    damaged = 0
    for at in range(100, used, used // 12):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        examples = read(tfds_arrays(str(copy), ("train",), {"text": "text"}))
        if keys(examples) == [f"train/{path.name}/#after-0"]:  # the file's own header or footer
            assert examples[0]["filtered"]
            continue
        assert keys(examples) == [f"train/{path.name}/{i:08d}" for i in range(5)]
        assert [e["text"] for e in examples if not e["filtered"]] == [
            f"text {i}".encode() for i in range(5) if not examples[i]["filtered"]
        ]
        assert sum(bool(e["filtered"]) for e in examples) <= 1
        damaged += sum(bool(e["filtered"]) for e in examples)
    assert damaged


@pytest.mark.parametrize(
    "way", ["../secret.png", "sub/../../secret.png", "{root}/../secret.png", "/dev/null", "media2/a.png"]
)
def test_a_path_that_leads_out_of_the_root_costs_its_example(tmp_path, way):
    """Also one whose folder only begins like the root, reached from beside it."""
    root = tmp_path / "media"
    write(tmp_path / "secret.png", "secret")
    write(tmp_path / "media2/a.png", "beside")
    write(root / "sub/a.png", "A")
    out = way.format(root=root) if way != "media2/a.png" else "../media2/a.png"
    inside = ["sub/a.png", "./sub/../sub/a.png", f"{root}/sub/a.png"]
    rows = [{"file": path, "text": "t"} for path in (*inside, out)]
    write(tmp_path / "m.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    listed = {"train": f"{tmp_path}/m.jsonl"}
    examples = read(metadata(listed, {"image": "file"}, {"text": "text"}, root=str(root)))
    assert [e["image"] for e in examples] == [b"A", b"A", b"A", b""]
    assert [e["filtered"] for e in examples] == [b""] * 3 + [b"!its path leads out of the folder of media"]
    anywhere = read(metadata(listed, {"image": "file"}, {"text": "text"}, root="/"))
    assert anywhere[2]["image"] == b"A" and not anywhere[2]["filtered"]


def test_links_in_the_root_are_followed_wherever_they_lead(tmp_path, monkeypatch):
    write(tmp_path / "disk/a.png", "A")
    (tmp_path / "media").mkdir()
    (tmp_path / "media/far").symlink_to(tmp_path / "disk")
    write(tmp_path / "m.csv", "file,text\nmedia/far/a.png,x\n../m.csv,y\n")
    monkeypatch.chdir(tmp_path)
    for root in (".", None):
        inside, out = read(metadata({"train": "m.csv"}, {"image": "file"}, {"caption": "text"}, root=root))
        assert (inside["image"], inside["filtered"], out["image"]) == (b"A", b"", b"")


def test_the_kind_of_a_file_does_not_depend_on_the_case_of_its_name(tmp_path):
    pyarrow.parquet.write_table(hugging_table(3), tmp_path / "A.PARQUET")
    write(tmp_path / "beside.png", "bytes beside")
    for path in ("A.PARQUET", "*.PARQUET"):
        source = huggingface(
            {"train": f"{tmp_path}/{path}"} if "*" not in path else {"train": [f"{tmp_path}/{path}"]},
            {"image": "image", "caption": "text"},
        )
        assert [e["image"] for e in read(source)] == EXPECTED[:3]
        assert source.num_input_examples("train") == 3
