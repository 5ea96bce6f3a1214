"""From a request's messages to what the engine is asked: segments, a plan and a prompt."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from anygpt_jax.errors import UserError
from anygpt_jax.generation.automaton import ANY
from anygpt_jax.generation.dialogue import Dialogue
from anygpt_jax.generation.pipeline import Pipeline
from anygpt_jax.generation.request import MAX_SEED, Request
from anygpt_jax.generation.sampling import Sampling
from anygpt_jax.modalities.base import Audio
from anygpt_jax.serving import handles, uploads, voices
from anygpt_jax.serving.limits import Limits
from anygpt_jax.serving.refusal import Refusal
from anygpt_jax.serving.schema import ChatRequest, ImagePart, InputAudio, MediumPart, Message, Part, TextPart
from anygpt_jax.templates import TEXT, Segment

HUMAN = "human"
ROLES = {"user": HUMAN, "system": HUMAN, "developer": HUMAN, "assistant": "assistant"}
AUDIO = "audio"  # OpenAI's name of speech


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked request, ready for the engine. `requests` differ in their seeds."""

    requests: tuple[Request, ...]
    voice: Audio | None
    format: str  # of sound

    @property
    def prompt_tokens(self) -> int:
        """Of the one prompt that all `requests` share, counted once."""
        return len(self.requests[0].prompt)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads requests for one model. `longest` are the tokens of a prompt at most. Slow: not for the event loop."""

    pipeline: Pipeline
    limits: Limits
    voices: Mapping[str, Audio]
    longest: int

    def prepare(self, chat: ChatRequest) -> Prepared:
        """Refusal for what cannot be answered."""
        self._check_sizes(chat)
        history, said = self._turns(chat.messages)
        plan = self._plan(chat.modalities, said)
        try:
            prompt = Dialogue(self.pipeline, self.longest, history).prompt(said, plan)
        except UserError as e:
            raise Refusal(400, str(e), "messages", "context_length_exceeded") from e
        budget = min(chat.budget or self.limits.new_tokens, self.limits.new_tokens)
        seed = secrets.randbelow(MAX_SEED) if chat.seed is None else chat.seed
        requests = tuple(
            Request(prompt, plan, (seed + i) % MAX_SEED, budget, self._sampling(chat)) for i in range(chat.n or 1)
        )
        voice, kind = self._sound(chat, plan)
        return Prepared(requests, voice, kind)

    def _check_sizes(self, chat: ChatRequest) -> None:
        limits = self.limits
        if len(chat.messages) > limits.messages:
            raise Refusal(400, f"There are {len(chat.messages)} messages and at most {limits.messages} are read.")
        if (chat.n or 1) > limits.choices:
            raise Refusal(400, f"'n' may be at most {limits.choices}, not {chat.n}.", "n")
        parts = [part for m in chat.messages for part in _parts(m)]
        chars = sum(len(part.text) for part in parts if isinstance(part, TextPart))
        if chars > limits.text_chars:
            raise Refusal(400, f"The texts have {chars} characters and at most {limits.text_chars} are read.")
        media = sum(not isinstance(part, TextPart) for part in parts)
        if media > limits.media:
            raise Refusal(400, f"There are {media} media and at most {limits.media} are read; leave old ones out.")

    def _turns(self, messages: Sequence[Message]) -> tuple[list[Segment], list[Segment]]:
        """What was said before, and the human turn that is to be answered."""
        if messages[-1].role == "assistant":
            raise Refusal(400, "The last message must be the user's: an answer cannot be begun for the model.")
        segments = [
            self._segment(part, ROLES[m.role], f"messages.{i}.content.{j}")
            for i, m in enumerate(messages)
            for j, part in enumerate(_parts(m))
            if not (isinstance(part, TextPart) and not part.text.strip())
        ]
        if not segments or segments[-1].role != HUMAN:
            raise Refusal(400, "The last message says nothing; give it a text or a medium.", "messages")
        start = len(segments)
        while start and segments[start - 1].role == HUMAN:
            start -= 1
        return segments[:start], segments[start:]

    def _segment(self, part: Part, role: str, where: str) -> Segment:
        if isinstance(part, TextPart):
            return Segment(TEXT, part.text.strip(), role)
        if isinstance(part, MediumPart):
            return Segment(*handles.read(part.id, self.pipeline.tokenizers, where), role)
        if isinstance(part, ImagePart):
            modality, data = "image", uploads.from_data_url(part.image_url.url, where)
        else:
            modality = "speech" if part.modality == AUDIO else part.modality
            if modality not in ("speech", "music"):
                raise Refusal(400, f"'{where}.modality' must be speech or music.", f"{where}.modality")
            data = uploads.from_base64(part.input_audio.data, where)
        return Segment(modality, self._encode(modality, data, where), role)

    def _encode(self, modality: str, data: bytes, where: str) -> np.ndarray:
        tokenizer = self.pipeline.tokenizers.get(modality)
        if tokenizer is None:
            raise Refusal(400, f"This model reads no {modality}.", where)
        medium = uploads.load(tokenizer, data, self.limits, where)
        try:
            return tokenizer.encode([medium])[0]
        except UserError as e:
            raise Refusal(400, str(e), where, "bad_media") from e

    def _plan(self, modalities: Sequence[str] | None, said: Sequence[Segment]) -> tuple[str, ...] | str:
        """The answer's modalities, in the order asked for.

        A medium alone that is asked for with another medium comes by way of text, as the model learned it. So does
        speech that OpenAI's clients ask for, who must say ["text", "audio"] for it.
        """
        known = (TEXT, *self.pipeline.tokenizers)
        steps = tuple("speech" if m == AUDIO else m for m in (modalities or (TEXT,)))
        if set(modalities or ()) == {TEXT, AUDIO}:
            steps = ("speech",)
        if steps == (ANY,):
            return ANY
        for step in steps:
            if step not in known:
                listed = ", ".join((*known, AUDIO, ANY))
                raise Refusal(400, f"An answer cannot be of '{step[:40]}'; modalities are {listed}.", "modalities")
        if len(set(steps)) < len(steps):  # of each at most one, so that there are few plans: each takes memory
            raise Refusal(400, "An answer has a modality once; name each once, or say any.", "modalities")
        if len(steps) == 1 and steps != (TEXT,) and any(s.modality != TEXT for s in said):
            return (TEXT, *steps)
        return steps

    def _sampling(self, chat: ChatRequest) -> Mapping[str, Sampling] | None:
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: getattr(chat, name) for name in names if getattr(chat, name) is not None}
        if not given:
            return None
        own = self.pipeline.engine.settings.sampling
        return {m: dataclasses.replace(own.get(m, Sampling()), **given) for m in (TEXT, *self.pipeline.tokenizers)}

    def _sound(self, chat: ChatRequest, plan: tuple[str, ...] | str) -> tuple[Audio | None, str]:
        """The voice and the format of an answer's sound."""
        options = chat.audio
        kind = options.format if options and options.format else ("pcm16" if chat.stream else "wav")
        voice = options.voice if options else None
        if isinstance(voice, InputAudio):
            param = "audio.voice.data"
            sound = uploads.recording(uploads.from_base64(voice.data, param), self.limits, param)
            if sound.seconds < 0.5:
                raise Refusal(400, "The recording of a voice must be half a second long or more.", param, "bad_media")
            return sound, kind
        if voice is None or voice == voices.DEFAULT or voice in self.voices:
            return self.voices.get(voice or ""), kind
        listed = ", ".join((voices.DEFAULT, *self.voices))
        raise Refusal(400, f"There is no voice '{voice[:40]}'; voices are {listed}.", "audio.voice")


def _parts(message: Message) -> list[Part]:
    """A message's content as parts, an answer's sound that it refers to included."""
    content = message.content or []
    parts: list[Part] = [TextPart(type="text", text=content)] if isinstance(content, str) else [*content]
    if message.audio is not None:
        parts.append(MediumPart(type="media", id=message.audio.id))
    return parts
