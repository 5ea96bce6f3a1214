import io

import numpy as np
import pytest
import sentencepiece

from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.templates import Formatter, Segment
from anygpt_jax.vocabulary import BlockSpec, Vocabulary


@pytest.fixture(scope="module")
def formatter() -> Formatter:
    model = io.BytesIO()
    corpus = ["draw a red fox", "describe the picture", "a small blue boat"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus), model_writer=model, vocab_size=300, hard_vocab_limit=False, byte_fallback=True
    )
    text = TextTokenizer(model.getvalue())
    blocks = [BlockSpec("image", 10), BlockSpec("speech", 5)]
    return Formatter(Vocabulary.build(text_size=text.size, text_fingerprint=text.fingerprint, blocks=blocks), text)


def test_a_pair_is_laid_out_as_in_the_paper(formatter):
    v, text = formatter.vocabulary, formatter.text
    codes = np.array([3, 0, 9])
    segments = [Segment("text", "draw a red fox", "human"), Segment("image", codes, "assistant", loss=True)]
    record = formatter.record("k", "task", segments)
    image = v.block("image")
    expected = [v.bos, v.marker("[Human]"), *text.encode("draw a red fox"), v.marker("<eoh>"), v.marker("[AnyGPT]")]
    expected += [image.begin, *(codes + image.start), image.end, v.marker("<eos>")]
    assert record.tokens.tolist() == expected


def test_loss_falls_on_the_answer_and_its_eos_alone(formatter):
    v = formatter.vocabulary
    segments = [Segment("text", "draw a fox", "human"), Segment("image", np.array([1, 2]), "assistant", loss=True)]
    record = formatter.record("k", "task", segments)
    trained = record.tokens[record.loss_mask()]
    image = v.block("image")
    assert trained.tolist() == [image.begin, image.start + 1, image.start + 2, image.end, v.marker("<eos>")]


def test_turns_open_and_close_once_however_many_segments_they_have(formatter):
    v = formatter.vocabulary
    segments = [
        Segment("text", "draw what you hear", "human"),
        Segment("speech", np.array([1]), "human"),
        Segment("text", "a red fox", "assistant", loss=True),
        Segment("image", np.array([2]), "assistant", loss=True),
        Segment("text", "describe the picture", "human"),
        Segment("text", "a small boat", "assistant", loss=True),
    ]
    tokens = formatter.record("k", "task", segments).tokens.tolist()
    counts = {m: tokens.count(v.marker(m)) for m in ("[Human]", "<eoh>", "[AnyGPT]", "<eos>")}
    assert counts == {"[Human]": 2, "<eoh>": 2, "[AnyGPT]": 2, "<eos>": 2}


def test_a_document_has_no_turns_and_ends_with_end_of_text(formatter):
    v = formatter.vocabulary
    segments = [Segment("text", "a red fox", "document", True), Segment("image", np.array([4]), "document", True)]
    record = formatter.record("k", "task", segments)
    assert record.tokens[0] == v.bos
    assert record.tokens[-1] == v.eos
    assert not set(record.tokens.tolist()) & {i for _, i in v.markers}
    assert record.loss_mask().tolist() == [False] + [True] * (len(record.tokens) - 1)


def test_a_prompt_is_the_beginning_of_its_record(formatter):
    human = [Segment("text", "draw a red fox", "human")]
    record = formatter.record("k", "task", [*human, Segment("image", np.array([3]), "assistant", loss=True)])
    for answer, extra in ((None, 0), ("text", 0), ("image", 1)):
        prompt = formatter.prompt(human, answer)
        assert prompt.tolist() == record.tokens[: len(prompt)].tolist()
        assert len(prompt) + 4 - extra == len(record.tokens)


def test_any_text_encodes_and_comes_back(formatter):
    for text in ("a red fox", "Zebra 42!", "naïve 🦊"):
        assert formatter.text.decode(formatter.text.encode(text)) == text
    with pytest.raises(ValueError, match="outside the text vocabulary"):
        formatter.text.decode(np.array([formatter.vocabulary.block("image").start]))


def test_no_segments_is_an_error(formatter):
    with pytest.raises(ValueError, match="no segments"):
        formatter.record("k", "task", [])
