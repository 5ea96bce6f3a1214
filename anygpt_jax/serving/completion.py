"""Answers in the shape of OpenAI's chat completions. docs/serving.md shows all of it."""

from __future__ import annotations

import base64
import json
import time
import uuid
from typing import Any

from anygpt_jax.serving.answering import Finished, Made, Said

# s that an id of sound is good for: as long as the model is the same. OpenAI's clients want a number.
_FOREVER = 10 * 365 * 86400
_TYPES = {"png": "image/png", "wav": "audio/wav", "flac": "audio/flac", "mp3": "audio/mpeg", "opus": "audio/ogg"}


def _url(made: Made) -> str:
    kind = _TYPES.get(made.format, "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(made.data).decode()}"


class Completion:
    """What all chunks, or the whole, of one response have in common."""

    def __init__(self, model: str, prompt_tokens: int):
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0

    def usage(self) -> dict[str, int]:
        """OpenAI's counts; those of answers are of the choices that have ended so far."""
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }

    def count(self, finished: Finished) -> None:
        """Adds the ids of one ended choice to `usage`."""
        self.completion_tokens += len(finished.answer.ids)

    def whole(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The response without a stream; `choices` are what `choice` makes."""
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage()}

    def chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        """One event of a stream."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage_chunk(self) -> bytes:
        """The event before [DONE] that `include_usage` asks for: counts, and no choice."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage()})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def audio(made: Made, transcript: str) -> dict[str, Any]:
    """OpenAI's `audio`, with what it was and how to play pcm16."""
    return {
        "id": made.id,
        "data": base64.b64encode(made.data).decode(),
        "expires_at": int(time.time()) + _FOREVER,
        "transcript": transcript,
        "format": made.format,
        "sample_rate": made.sample_rate,
        "modality": made.modality,
    }


def delta(event: Said | Made, transcript: str) -> dict[str, Any]:
    """What a stream says of one event. `part` numbers the answer's segments; ids come with the last piece."""
    if isinstance(event, Said):
        return {"content": event.text, "part": event.part}
    if event.sample_rate is None:
        return {"images": [_image(event)], "part": event.part}
    return {"audio": audio(event, transcript if event.first else ""), "part": event.part}


def _image(made: Made) -> dict[str, Any]:
    return {
        "type": "image_url",
        "index": made.part,
        "image_url": {"url": _url(made)},
        "id": made.id,
        "modality": made.modality,
    }


def choice(index: int, said: dict[int, str], made: dict[int, Made], reason: str) -> dict[str, Any]:
    """A whole answer: `content`, `audio` and `images` as clients know them, and in order all of it as `parts`."""
    parts: list[dict[str, Any]] = []
    sounds, images = [], []
    for part in sorted({*said, *made}):
        if part in said:
            parts.append({"type": "text", "text": said[part]})
        elif made[part].sample_rate is None:
            images.append(_image(made[part]))
            parts.append(images[-1])
        else:
            sounds.append(audio(made[part], said.get(part - 1, "")))
            parts.append({"type": "audio", "audio": sounds[-1]})
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "\n".join(said[part] for part in sorted(said)) if said else None,
        "refusal": None,
    }
    if sounds:
        message["audio"] = sounds[0]
    if images:
        message["images"] = images
    message["parts"] = parts
    return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}
