"""WebDataset tars: whole ones as `tarfile` reads them, damaged ones without losing more than what is damaged."""

import gzip
import io
import json
import tarfile

import pytest

from anygpt_jax.tasks.sources import grouped
from anygpt_jax.tasks.sources.tar import Damage, Member, members, read_member
from anygpt_jax.tasks.sources.webdataset import webdataset

FIELDS = {"image": "jpg;png", "caption": "txt"}


def make_tar(path, files, kind=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data or b""))
    return path


def sample(i):
    return [(f"{i:04d}.jpg", f"image {i} ".encode() * 300), (f"{i:04d}.txt", f"caption {i}".encode())]


def samples(n):
    return [member for i in range(n) for member in sample(i)]


def read(*tars, split="train"):
    source = webdataset({split: [str(t) for t in tars]}, FIELDS)
    return list(source.get_dataset(split=split).as_numpy_iterator())


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_are_tarfiles_members(tmp_path, kind):
    files = [
        ("./a.txt", b"1"),
        ("d", None),
        ("d/é.txt", b"x" * 512),
        ("empty.txt", b""),
        ("b" * 60 + "/" + "c" * 60, b"9" * 700),
    ]
    if kind != tarfile.USTAR_FORMAT:
        files.append(("long/" * 40 + "name.txt", b"far"))
    path = make_tar(tmp_path / "a.tar", files, kind)
    found = list(members(path))
    with tarfile.open(path) as tar, path.open("rb") as f:
        expected = [m for m in tar.getmembers() if m.isreg()]
        assert [m.name for m in found] == [m.name.removeprefix("./") for m in expected]
        assert [read_member(f, m) for m in found] == [tar.extractfile(m).read() for m in expected]


def test_neighbours_of_one_name_are_an_example(tmp_path):
    path = make_tar(
        tmp_path / "part" / "00001.tar", [*samples(3), ("0003.png", b"3"), ("0003.json", b'{"caption": "c", "w": 1}')]
    )
    examples = read(path)
    assert [e["key"].decode() for e in examples] == [f"train/00001.tar/{i:04d}" for i in range(4)]
    assert [e["image"] for e in examples] == [*(f"image {i} ".encode() * 300 for i in range(3)), b"3"]
    assert [e["caption"].decode() for e in examples] == ["caption 0", "caption 1", "caption 2", ""]
    assert [e["filtered"].decode() for e in examples] == ["", "", "", "!it has no txt file"]
    assert json.loads(examples[3]["attributes"]) == {"caption": "c", "w": 1}


def test_a_value_inside_the_json_is_a_field(tmp_path):
    files = [("1.mp3", b"song"), ("1.json", json.dumps({"title": {"en": "Träumerei"}}).encode())]
    files += [("2.mp3", b"song"), ("2.json", b"{"), ("3.mp3", b"song"), ("3.json", b"{}")]
    path = make_tar(tmp_path / "m.tar", files)
    source = webdataset({"train": str(path)}, {"music": grouped.SOUNDS, "caption": "json:title.en"})
    examples = list(source.examples("train"))
    assert [e["caption"].decode() for e in examples] == ["Träumerei", "", ""]
    assert examples[0]["filtered"] == b""
    assert examples[1]["filtered"].startswith(b"!its json cannot be read")
    assert examples[2]["filtered"] == b"!its JSON has no title.en"


def test_names_that_come_back_stay_unique(tmp_path):
    path = make_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.txt", b"one"), ("y.jpg", b"2"), ("y.txt", b"two"), ("x.jpg", b"3"), ("x.jpg", b"4")])  # fmt: skip
    examples = read(path)
    assert [e["key"].decode() for e in examples] == [f"train/a.tar/{k}" for k in ("x", "y", "x~2", "x~3")]
    assert [e["image"] for e in examples] == [b"1", b"2", b"3", b"4"]


def test_keys_do_not_depend_on_where_the_data_is_nor_on_later_tars(tmp_path):
    keys = []
    for place, tars in (("a", ("p/0.tar", "q/0.tar")), ("b/c", ("p/0.tar",))):
        for t in tars:
            make_tar(tmp_path / place / t, samples(2))
        source = webdataset({"train": f"{tmp_path}/{place}/*/*.tar"}, FIELDS)
        keys.append([e["key"].decode() for e in source.examples("train")])
    assert keys[0] == [f"train/{p}/0.tar/{i:04d}" for p in "pq" for i in range(2)]
    assert keys[1] == keys[0][:2]


@pytest.mark.parametrize("cut", range(1, 9000, 731))
def test_a_tar_cut_anywhere_gives_what_is_whole_and_tells_the_rest(tmp_path, cut):
    path = make_tar(tmp_path / "a.tar", samples(3))
    whole = {e["key"]: e for e in read(path)}
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    examples = read(path)
    with tarfile.open(make_tar(tmp_path / "b.tar", samples(3))) as tar:
        ends = [(m.name[:4], m.offset_data + m.size) for m in tar.getmembers()]
    complete = [i for i in range(3) if all(end <= cut for name, end in ends if name == f"{i:04d}")]
    good = [e for e in examples if not e["filtered"]]
    assert [e["key"].decode() for e in good] == [f"train/a.tar/{i:04d}" for i in complete]
    assert all(e == whole[e["key"]] for e in good)
    assert len(examples) > len(good)  # the rest is told


@pytest.mark.parametrize("at", [0, 100, 148, 300])
@pytest.mark.parametrize("which", range(6))
def test_a_damaged_header_costs_its_member_and_not_the_tar(tmp_path, which, at):
    path = make_tar(tmp_path / "a.tar", samples(3), tarfile.USTAR_FORMAT)
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[which].offset
    data = bytearray(path.read_bytes())
    data[offset + at] ^= 0x55
    path.write_bytes(data)
    examples = read(path)
    good = [e["key"].decode()[-4:] for e in examples if not e["filtered"]]
    assert good == [f"{i:04d}" for i in range(3) if i != which // 2]
    bad = [e for e in examples if e["filtered"]]
    assert any(b"#damage-%d" % offset in e["key"] for e in bad)
    assert any(b"%04d" % (which // 2) in e["key"] for e in bad)  # the other half of the pair


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\0" * 300, "damaged after byte 0"),
        (b"\0" * 10240, ""),
        (b"no tar at all", "damaged after byte 0"),
        (b"PK" * 2000, "damaged after byte 0"),
    ],
)
def test_what_is_no_tar_is_one_reject_among_good_ones(tmp_path, data, reason):
    (tmp_path / "0.tar").write_bytes(data)
    good = make_tar(tmp_path / "1.tar", samples(2))
    examples = read(tmp_path / "0.tar", good)
    assert [e["key"].decode()[:11] for e in examples if not e["filtered"]] == ["train/1.tar"] * 2
    bad = [e["filtered"].decode() for e in examples if e["filtered"]]
    assert len(bad) == bool(reason)
    assert all(reason in b for b in bad)


def test_a_compressed_tar_is_told_with_the_remedy(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(make_tar(tmp_path / "b.tar", samples(1)).read_bytes()))
    (example,) = read(path)
    assert b"compressed by gzip; unpack it first" in example["filtered"]


def test_tars_one_after_another_are_one_tar(tmp_path):
    a, b = make_tar(tmp_path / "a.tar", samples(2)), make_tar(tmp_path / "b.tar", sample(7))
    (tmp_path / "c.tar").write_bytes(a.read_bytes() + b.read_bytes())
    examples = read(tmp_path / "c.tar")
    assert [e["key"].decode()[-4:] for e in examples] == ["0000", "0001", "0007"]
    assert not any(e["filtered"] for e in examples)


def test_a_member_that_claims_more_than_there_is_or_fits(tmp_path):
    path = make_tar(tmp_path / "a.tar", sample(0), tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    info = tarfile.TarInfo("0001.jpg")
    info.size = 10 << 30
    data[:] = data.rstrip(b"\0") + b"\0" * (-len(data.rstrip(b"\0")) % 512)
    path.write_bytes(bytes(data) + info.tobuf(tarfile.GNU_FORMAT) + b"short")
    found = list(members(path))
    assert [m.name for m in found if isinstance(m, Member)] == ["0000.jpg", "0000.txt", "0001.jpg"]
    assert not any(isinstance(m, Damage) for m in found)
    examples = read(path)
    assert [e["filtered"].decode()[:32] for e in examples] == ["", "!it has 10,737,418,240 bytes and"]
