"""Generators behind HTTP: text by OpenAI's chat/completions, images by images/generations, speech by audio/speech, music
by vLLM-Omni's audio/generate or Hugging Face's text-to-audio task. OpenAI itself has no endpoint for music.

What a server sends is not believed: it is bounded (metered.py), a picture must be a PNG or JPEG file that opens, speech
and music a WAV or FLAC file with sound in it. The key is read from the environment and written nowhere.
"""

from __future__ import annotations

import base64
import binascii
import concurrent.futures
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_collections

from anygpt_jax.errors import UserError
from anygpt_jax.modalities.audio import is_silent, load_audio
from anygpt_jax.modalities.pictures import load_picture
from anygpt_jax.synthesis.backends import Failure, Request
from anygpt_jax.synthesis.backends.http_settings import TASK, HttpSettings
from anygpt_jax.synthesis.backends.spending import Spending

if TYPE_CHECKING:
    import httpx2
    import openai

MAX_PIXELS = 1 << 24  # of a picture
LONGEST = 600.0  # s of speech or music
LONGEST_WAIT = 120  # s that the client waits because a server says so
LONGEST_TEXT = 20_000  # characters: what comes is parsed by patterns
LONGEST_REASON = 200  # characters of what a server says


class Http:
    """A Backend. Several may share `spending`, and with it one ceiling."""

    def __init__(self, settings: HttpSettings, spending: Spending):
        try:
            import openai

            from anygpt_jax.synthesis.backends.metered import MeteredClient
        except ImportError as e:
            raise UserError(f"{e.name} is not installed: pip install 'anygpt-jax[synthesize]'.") from e
        self.settings = settings
        self.name = settings.name
        self._key = settings.key()
        # The account's names, which the client takes from the environment, are for no other service.
        unsaid: Any = openai.Omit()
        headers = {"Accept-Encoding": "identity", "OpenAI-Organization": unsaid, "OpenAI-Project": unsaid}
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=self._key,
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=MeteredClient(
                spending,
                settings.prices,
                settings.timeout,
                settings.concurrency,
                settings.requests_per_minute,
                settings.tokens_per_minute,
            ),
            default_headers=headers,
        )

    @classmethod
    def from_config(cls, section: ml_collections.ConfigDict, modality: str, folder: str | pathlib.Path) -> Http:
        """With a ceiling of its own, and its ledger in `folder`/`modality`."""
        settings = HttpSettings.from_config(section, modality)
        return cls(settings, Spending(pathlib.Path(folder) / modality, settings.max_cost))

    def make(self, requests: Sequence[Request]) -> list[bytes | Failure]:
        """In the requests' order. At a UserError what has arrived is lost; `answers` gives it before."""
        answers = dict(self.answers(requests))
        return [answers[i] for i in range(len(requests))]

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, bytes | Failure]]:
        """(index of the request, answer) as they arrive. UserError after those that were under way have arrived."""
        stop: UserError | None = None
        pool = concurrent.futures.ThreadPoolExecutor(self.settings.concurrency)
        asked = {pool.submit(self._make, request): i for i, request in enumerate(requests)}
        try:
            for done in concurrent.futures.as_completed(asked):
                if done.cancelled():
                    continue
                try:
                    answer = done.result()
                except UserError as e:
                    stop = stop or e
                    for waiting in asked:
                        waiting.cancel()
                    continue
                yield asked[done], answer
        finally:
            pool.shutdown(cancel_futures=True)
        if stop is not None:
            raise stop

    def _make(self, request: Request) -> bytes | Failure:
        kinds: dict[str, Callable[[Request], bytes | Failure]]
        kinds = {"text": self._text, "image": self._image, "speech": self._speech, "music": self._music}
        answer = kinds[self.settings.modality](request)
        if isinstance(answer, bytes) and self.settings.key_variable and self._key.encode() in answer:
            return Failure("the answer holds the key it was asked with")
        return answer

    def _text(self, request: Request) -> bytes | Failure:
        body = {
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "seed": request.seed,
        }
        response = self._ask("/chat/completions", body)
        return response if isinstance(response, Failure) else self._written(response.json())

    def _written(self, said: Mapping[str, Any]) -> bytes | Failure:
        match said:
            case {"choices": [{"message": {**message}, **choice}, *_]}:
                pass
            case _:
                return Failure("the answer is no chat completion")
        if message.get("refusal"):
            return Failure(f"the model refused: {self._quoted(message['refusal'])}")
        if choice.get("finish_reason") == "content_filter":
            return Failure("the service's content filter stopped the answer")
        if choice.get("finish_reason") == "length":
            return Failure(f"cut off at max_tokens ({self.settings.limit})")
        content = message.get("content")
        if not isinstance(content, str) or not content.strip():
            return Failure("the answer is empty")
        if len(content) > LONGEST_TEXT:
            return Failure(f"the answer has {len(content):,} characters, more than {LONGEST_TEXT:,}")
        try:
            return content.encode()
        except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
            return Failure("the answer is no Unicode text")

    def _image(self, request: Request) -> bytes | Failure:
        body = {"prompt": request.content, "n": 1, "response_format": "b64_json", **self._seed(request)}
        response = self._ask("/images/generations", body)
        if isinstance(response, Failure):
            return response
        match response.json():
            case {"data": [{"b64_json": str(encoded)}, *_]}:
                pass
            case {"data": [{"url": str()}, *_]}:
                return Failure(
                    "a URL came instead of the picture, and none is fetched; see the service's response_format"
                )
            case _:
                return Failure("the answer holds no picture")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            return Failure("the picture is not base64")
        if not data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            return Failure("the picture is no PNG or JPEG file")
        try:
            load_picture(data, MAX_PIXELS)
        except UserError as e:
            return Failure(str(e))
        return data

    def _speech(self, request: Request) -> bytes | Failure:
        body = {
            "input": request.content,
            "voice": request.voice or self.settings.voice or None,
            "response_format": "wav",
            **self._seed(request),
        }
        return self._sound(self._ask("/audio/speech", body))

    def _music(self, request: Request) -> bytes | Failure:
        if self.settings.form == TASK:
            parameters = _said({**self._seed(request), **self.settings.extra})
            task = {"inputs": request.content, "parameters": parameters}
            return self._sound(self._post(self.settings.base_url, task, Accept="audio/flac, audio/wav"))
        body = {"input": request.content, "response_format": "wav", **self._seed(request)}
        return self._sound(self._ask("/audio/generate", body))

    def _seed(self, request: Request) -> dict[str, int]:
        return {self.settings.seed_field: request.seed} if self.settings.seed_field else {}

    def _sound(self, response: httpx2.Response | Failure) -> bytes | Failure:
        if isinstance(response, Failure):
            return response
        if not response.content.startswith((b"RIFF", b"fLaC")):
            return Failure(f"the {self.settings.modality} is no WAV or FLAC file")
        try:
            sound = load_audio(response.content, longest=LONGEST)
        except UserError as e:
            return Failure(str(e))
        return Failure(f"the {self.settings.modality} is silent") if is_silent(sound) else response.content

    def _ask(self, endpoint: str, body: Mapping[str, Any]) -> httpx2.Response | Failure:
        return self._post(endpoint, _said({"model": self.settings.model, **body, **self.settings.extra}))

    def _post(self, address: str, body: Mapping[str, Any], **headers: str) -> httpx2.Response | Failure:
        """The answer to what is sent, or why there is none. UserError if no other request would be answered either."""
        import httpx2
        import openai

        from anygpt_jax.synthesis.backends.metered import Oversized

        attempts = f"asked {self.settings.retries + 1} times"
        try:
            return self._client.post(address, cast_to=httpx2.Response, body=body, options={"headers": headers})
        except openai.APIStatusError as e:
            if stop := self._stops(e):
                raise UserError(stop) from None
            repeated = f", {attempts}" if e.status_code == 429 or e.status_code >= 500 else ""
            said = e.body.get("message") or e.body.get("detail") if isinstance(e.body, dict) else e.body
            return Failure(f"the server answered {e.status_code}{repeated}: {self._quoted(said or 'nothing')}")
        except openai.APITimeoutError:
            return Failure(f"no answer within {self.settings.timeout:g} s, {attempts}")
        except openai.APIConnectionError as e:
            if isinstance(e.__cause__, httpx2.ConnectError):
                raise UserError(
                    f"Nothing answers at {self.settings.base_url} ({self._quoted(e.__cause__)}); start the server, or "
                    "correct base_url, and run again."
                ) from None
            return Failure(f"no whole answer, {attempts}: {self._quoted(e.__cause__)}")
        except Oversized as e:
            return Failure(str(e))

    def _stops(self, e: openai.APIStatusError) -> str | None:
        """A sentence if the job cannot go on."""
        if e.status_code in (401, 403):
            name = self.settings.key_variable
            remedy = f"{name} must hold a key that may use it" if name else "name the key's variable in key_variable"
            return f"The server of {self.settings.model} refuses the key (HTTP {e.status_code}); {remedy}."
        if e.status_code == 402 or e.code == "insufficient_quota":
            return f"The account of {self.settings.model} has nothing left to spend; fill it up and run again."
        wait = e.response.headers.get("retry-after", "")
        if e.status_code == 429 and len(wait) < 9 and wait.isdecimal() and int(wait) > LONGEST_WAIT:
            return f"The server of {self.settings.model} answers no more for {int(wait):,} s; run again after that."
        return None

    def _quoted(self, said: Any) -> str:
        """What a server said, on one short line and without the key."""
        text = str(said) if isinstance(said, str | Exception) else f"(a {type(said).__name__})"
        if self.settings.key_variable:
            text = text.replace(self._key, "…")
        text = "".join(c if c.isprintable() else " " for c in text[: 10 * LONGEST_REASON])
        return " ".join(text.split())[:LONGEST_REASON]


def _said(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}
