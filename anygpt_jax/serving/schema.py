"""What a request may say: OpenAI's chat completions with a few fields of our own, as pydantic models.

Fields that we do not know are ignored, as other servers of this API do; those that we know and cannot honour are
refused, because the answer would silently be another one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from anygpt_jax.serving.refusal import Refusal

FORMATS = ("wav", "flac", "mp3", "opus", "pcm16")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class TextPart(_Model):
    """One of several texts, or a text beside media."""

    type: Literal["text"]
    text: str


class ImageUrl(_Model):
    """A data URL of base64; any other is refused when it is read (uploads.py)."""

    url: str


class ImagePart(_Model):
    """A picture, as OpenAI's clients send it."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(_Model):
    """`format` is what OpenAI's clients must say; the file itself tells what it is."""

    data: str
    format: str | None = None


class AudioPart(_Model):
    """`modality` tells speech, which is the default, from music."""

    type: Literal["input_audio"]
    input_audio: InputAudio
    modality: str = "speech"


class MediumPart(_Model):
    """A medium that the model made in an earlier answer, by the id it had there."""

    type: Literal["media"]
    id: str


Part = Annotated[TextPart | ImagePart | AudioPart | MediumPart, Field(discriminator="type")]


class AudioReference(_Model):
    """By the id that the answer's `audio` had."""

    id: str


class Message(_Model):
    """`system` and `developer` are read as the human's words: the model knows no third role."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    audio: AudioReference | None = None  # of an earlier answer


class AudioOptions(_Model):
    """How sound is delivered. A voice is a name of `/v1/models`, or a recording."""

    voice: str | InputAudio | None = None
    format: Literal["wav", "flac", "mp3", "opus", "pcm16"] | None = None


class StreamOptions(_Model):
    """Read only with `stream`; `include_usage` asks for a last event with the counts of tokens."""

    include_usage: bool = False


class ResponseFormat(_Model):
    """A `type` other than "text" is refused by `parse`."""

    type: str


class ChatRequest(_Model):
    """None was not said and is the server's to choose: the config's sampling, a drawn seed, `Limits.new_tokens`."""

    messages: list[Message] = Field(min_length=1)
    model: str | None = None
    modalities: list[str] | None = Field(None, max_length=16)
    audio: AudioOptions | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1)
    seed: int | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: Finite | None = Field(None, ge=0, le=2)
    top_p: Finite | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    min_p: Finite | None = Field(None, ge=0, le=1)
    repetition_penalty: Finite | None = Field(None, gt=0, le=10)
    # Known, and not to be had.
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    stop: Any = None
    logprobs: bool | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    response_format: ResponseFormat | None = None

    @property
    def budget(self) -> int | None:
        """Tokens of an answer at most, by either of the API's names."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


UNSUPPORTED = (
    "tools", "functions", "stop", "logprobs", "logit_bias", "presence_penalty", "frequency_penalty",
)  # fmt: skip


def parse(body: bytes) -> ChatRequest:
    """The request in a body; Refusal (400) with one sentence."""
    try:
        chat = ChatRequest.model_validate_json(body)
    except pydantic.ValidationError as e:
        raise _explained(e) from None
    except RecursionError:
        raise Refusal(400, "The JSON is nested too deeply.") from None
    for name in UNSUPPORTED:
        if getattr(chat, name):
            raise Refusal(400, f"'{name}' is not supported by this model; leave it out.", name, "unsupported_parameter")
    if chat.response_format is not None and chat.response_format.type != "text":
        raise Refusal(
            400, "Only response_format {'type': 'text'} is supported.", "response_format", "unsupported_parameter"
        )
    return chat


def _explained(error: pydantic.ValidationError) -> Refusal:
    """The first thing that is wrong, and where."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removesuffix(".")
    if first["type"] == "json_invalid":
        return Refusal(400, f"The body is not JSON: {message.removeprefix('Invalid JSON: ')}.", None, "invalid_json")
    if not where:
        return Refusal(400, f"The body must be a JSON object with 'messages': {message}.")
    return Refusal(400, f"'{where}': {message}.", where)
