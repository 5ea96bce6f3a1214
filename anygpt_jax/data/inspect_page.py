"""One record of a token cache as a self-contained HTML page: text, pictures and sound, as their codes decode."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping

import numpy as np

from anygpt_jax.modalities.base import ModalityTokenizer
from anygpt_jax.modalities.text import TextTokenizer
from anygpt_jax.records import TokenRecord
from anygpt_jax.templates import TEXT
from anygpt_jax.vocabulary import Vocabulary

SHOWN_CODES = 400  # of one medium, as numbers

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
section { border-left: 3px solid #8884; margin: .6rem 0; padding: .2rem .9rem; }
section.trained { border-color: #2f8560; }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; }
small { color: #808080; }
img { max-width: 100%; min-width: 8rem; image-rendering: auto; display: block; }
p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; }
code { overflow-wrap: anywhere; font-size: .8rem; }
"""


def page(
    record: TokenRecord, vocabulary: Vocabulary, text: TextTokenizer, tokenizers: Mapping[str, ModalityTokenizer]
) -> str:
    """A page that loads nothing from elsewhere. What is trained has a green edge.

    A medium whose tokenizer is absent, or whose codes it cannot decode, is shown as codes with the reason.
    """
    names = {token: marker for marker, token in vocabulary.markers} | {vocabulary.bos: "<s>", vocabulary.eos: "</s>"}
    sections, start = [], 0
    for span in record.spans:
        ids = record.tokens[start : start + span.length]
        start += span.length
        if span.modality != TEXT:
            shown = _medium(vocabulary.decode_codes(span.modality, ids[1:-1]), tokenizers.get(span.modality))
        elif len(ids) == 1 and int(ids[0]) in names:
            shown = f"<code>{html.escape(names[int(ids[0])])}</code>"
        else:
            shown = f"<p>{html.escape(text.decode(ids))}</p>"
        trained = ", trained" if span.loss else ""
        about = f"<small>{html.escape(span.modality)}, {html.escape(span.role)}, {span.length} tokens{trained}</small>"
        sections.append(f'<section class="{"trained" if span.loss else "given"}">{about}{shown}</section>')
    title = html.escape(f"{record.source}: {record.key}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"</head><body><h1>{title}</h1><p><small>{len(record.tokens)} tokens</small></p>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _medium(codes: np.ndarray, tokenizer: ModalityTokenizer | None) -> str:
    numbers = " ".join(map(str, codes[:SHOWN_CODES])) + (" …" if len(codes) > SHOWN_CODES else "")
    listed = f"<details><summary>{len(codes)} codes</summary><code>{numbers}</code></details>"
    if tokenizer is None:
        return f"<p>its tokenizer is not at hand</p>{listed}"
    try:
        medium = tokenizer.decode([codes])[0]
        own = getattr(tokenizer, "html", None)
        return (own(medium) if own else _tag(tokenizer.save(medium))) + listed
    except Exception as e:  # a look at a record must not fail on what it is there to show
        return f"<p>it cannot be decoded ({html.escape(f'{type(e).__name__}: {e}')})</p>{listed}"


def _tag(data: bytes) -> str:
    """PNG and WAV inline; of another kind of file, its size."""
    encoded = base64.b64encode(data).decode()
    if data.startswith(b"\x89PNG"):
        return f'<img alt="" src="data:image/png;base64,{encoded}">'
    if data.startswith(b"RIFF"):
        return f'<audio controls src="data:audio/wav;base64,{encoded}"></audio>'
    return f"<p>a file of {len(data)} bytes</p>"
