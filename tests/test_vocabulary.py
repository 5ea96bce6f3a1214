import numpy as np
import pytest

from anygpt_jax.errors import UserError
from anygpt_jax.vocabulary import BlockSpec, Vocabulary


def make(*specs: tuple[str, int]) -> Vocabulary:
    return Vocabulary.build(
        text_size=100, text_fingerprint="t", blocks=[BlockSpec(name, size, name[0]) for name, size in specs]
    )


def test_ids_are_contiguous_in_anygpt_order():
    v = make(("image", 10), ("speech", 4))
    assert [i for _, i in v.markers] == [100, 101, 102, 103]
    image, speech = v.blocks
    assert (image.start, image.stop, image.begin, image.end) == (104, 114, 114, 115)
    assert (speech.start, speech.begin, speech.end) == (116, 120, 121)
    assert v.size == 122


def test_every_id_has_exactly_one_meaning():
    v = make(("image", 10), ("speech", 4), ("music", 8))
    meanings = list(range(v.text_size)) + [i for _, i in v.markers]
    for b in v.blocks:
        meanings += [*range(b.start, b.stop), b.begin, b.end]
    assert sorted(meanings) == list(range(v.size))


def test_appending_moves_nothing_and_changes_the_fingerprint():
    before = make(("image", 10))
    after = before.append(BlockSpec("depth", 7))
    assert after.blocks[0] == before.blocks[0]
    assert after.markers == before.markers
    assert after.fingerprint != before.fingerprint
    with pytest.raises(UserError, match="already has"):
        after.append(BlockSpec("depth", 7))


def test_json_round_trip_keeps_the_fingerprint(tmp_path):
    v = make(("image", 10), ("speech", 4))
    v.save(tmp_path / "vocabulary.json")
    again = Vocabulary.load(tmp_path / "vocabulary.json")
    assert again == v
    assert again.fingerprint == v.fingerprint


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"text_size": 3}'])
def test_damaged_json_is_one_sentence(tmp_path, text):
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(UserError, match=r"not a vocabulary\.json"):
        Vocabulary.load(tmp_path / "vocabulary.json")


def test_codes_round_trip_and_reject_what_is_not_theirs():
    v = make(("image", 10), ("speech", 4))
    codes = np.arange(4, dtype=np.int32)
    assert (v.decode_codes("speech", v.encode_codes("speech", codes)) == codes).all()
    with pytest.raises(ValueError, match="must lie"):
        v.encode_codes("speech", np.array([4]))
    with pytest.raises(ValueError, match="outside"):
        v.decode_codes("speech", np.array([v.block("speech").end]))
    with pytest.raises(UserError, match="Unknown modality 'smell'"):
        v.block("smell")


def test_modality_ids_cover_markers():
    v = make(("image", 10), ("speech", 4))
    table = v.modality_ids()
    assert table[: v.block("image").start].max() == 0
    assert set(table[v.block("image").start : v.block("speech").start]) == {1}
    assert set(table[v.block("speech").start :]) == {2}


def test_padding_rounds_up():
    assert make(("image", 10)).padded_size(128) == 128
    assert make(("image", 10)).padded_size(1) == 116


def test_different_vocabularies_refuse_to_meet():
    with pytest.raises(UserError, match="the cache was made with"):
        make(("image", 10)).require_same(make(("image", 11)), "the cache", "the checkpoint")
