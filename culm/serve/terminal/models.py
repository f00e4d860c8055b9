"""The models that a chat can be with: one in this process, or one of a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

from pydantic import Field, PositiveInt

from culm.config import Config
from culm.endpoint import Endpoint, EndpointError
from culm.text.language_model import LanguageModel
from culm.text.message import Delta, MessageReader, thinks
from culm.text.options import CHAT_TEMPERATURE
from culm.tokenizer.message import Message


class ChatSettings(Config):
    """As in `LanguageModel.chat`; with a seed, the n-th answer uses seed + n.

    max_tokens: of one answer; None: up to the end of the context. seed: None: a new one each time.
    """

    max_tokens: PositiveInt | None = None
    temperature: float = Field(CHAT_TEMPERATURE, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=0)


class Responder(Protocol):
    """A model that answers."""

    @property
    def name(self) -> str:
        """The one that is chosen."""
        ...

    def names(self) -> list[str]:
        """The models that can be chosen.

        Raises:
            EndpointError: the server does not say.
        """
        ...

    def choose(self, name: str) -> None:
        """Take another model for the next answers; `name` is one of `names()`."""
        ...

    def answer(self, messages: Sequence[Message], settings: ChatSettings) -> Iterator[Delta]:
        """The next message, in pieces as they come.

        Raises:
            ValueError: the messages do not fit, or the template refuses them.
            EndpointError: no answer came, or not to its end.
        """
        ...

    def used(self, messages: Sequence[Message]) -> tuple[int | None, int | None]:
        """Tokens of the dialogue, and of the context; None where it is not known."""
        ...


class LoadedModel:
    """A model in this process, and its adapters by their names."""

    def __init__(self, model: LanguageModel, name: str) -> None:
        self._model, self._base = model, name
        self.name = name

    def names(self) -> list[str]:
        return [self._base, *self._model.adapters]

    def choose(self, name: str) -> None:
        self.name = name

    def answer(self, messages: Sequence[Message], settings: ChatSettings) -> Iterator[Delta]:
        tokenizer = self._model.tokenizer
        reader = MessageReader(thinks(tokenizer, tokenizer.chat.prompt(messages)))
        pieces = self._model.chat_stream(
            messages, settings.max_tokens, temperature=settings.temperature, top_p=settings.top_p,
            seed=settings.seed, adapter=None if self.name == self._base else self.name,
        )  # fmt: skip
        for piece in pieces:
            yield from reader.read(piece)
        yield from reader.read("", last=True)

    def used(self, messages: Sequence[Message]) -> tuple[int | None, int | None]:
        chat = self._model.tokenizer.chat
        return len(chat.prompt(messages)) if messages else 0, self._model.context


class ServedModel:
    """A model of a server with OpenAI's API."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._used: int | None = None

    @property
    def name(self) -> str:
        return self._endpoint.model

    def names(self) -> list[str]:
        return self._endpoint.names()

    def choose(self, name: str) -> None:
        self._endpoint = replace(self._endpoint, model=name)

    def answer(self, messages: Sequence[Message], settings: ChatSettings) -> Iterator[Delta]:
        asked = {
            "messages": list(messages), "stream_options": {"include_usage": True},
            **settings.model_dump(exclude_none=True),
        }  # fmt: skip
        finish = None
        for event in self._endpoint.events("chat/completions", asked):
            for choice in event.get("choices") or ():
                finish = choice.get("finish_reason") or finish
                yield from _deltas(choice.get("delta") or {})
            self._used = (event.get("usage") or {}).get("total_tokens", self._used)
        if finish is None:
            raise EndpointError(f"{self._endpoint.url} did not end its answer")

    def used(self, messages: Sequence[Message]) -> tuple[int | None, int | None]:
        return self._used if messages else 0, self._endpoint.contexts().get(self.name)


def _deltas(given: dict[str, Any]) -> Iterator[Delta]:
    if thought := given.get("reasoning_content") or given.get("reasoning"):
        yield Delta(reasoning=str(thought))
    if said := given.get("content"):
        yield Delta(content=str(said))
