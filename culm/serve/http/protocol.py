"""What clients send, as OpenAI's API reference and vLLM's extensions name it.

Fields without effect here (user, metadata, store, ...) and unknown ones are ignored. Unsupported
fields that would change the answer are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from culm.engine.sampling import Sampling
from culm.serve.query import Dialogue, Prompt, Query

COMPLETION_TOKENS = 16  # default of plain completions, as in OpenAI's API
# Fields of a query that have another name in this API.
NAMES = {"choices": "n", "bias": "logit_bias", "stop_ids": "stop_token_ids"}

Stop = Annotated[str, Field(min_length=1, max_length=256)]
Stops = Annotated[
    list[Stop],
    Field(max_length=16),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]
TokenIds = Annotated[list[StrictInt], Field(min_length=1)]
Prompts = str | TokenIds | Annotated[list[str] | list[TokenIds], Field(min_length=1, max_length=64)]


class Wire(BaseModel):
    """Base of all requests: unknown fields are ignored, NaN and infinity refused."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, hide_input_in_errors=True)


class StreamOptions(Wire):
    include_usage: bool = False


class GenerationRequest(Wire):
    """Fields that chats and plain completions share."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16)
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=300
    )
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stops | None = None
    top_k: int | None = Field(None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0.01, le=100)
    stop_token_ids: list[StrictInt] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _supported(cls, given: Any) -> Any:
        for name, harmless in UNSUPPORTED.items():
            value = given.get(name) if isinstance(given, dict) else None
            if value is not None and value not in harmless:
                raise PydanticCustomError("unsupported", "{name} is not supported", {"name": name})
        return given

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def _query(self, prompts: Sequence[Prompt], max_tokens: int | None) -> Query:
        """The shared fields as a query to the service."""
        sampling = Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=self.min_p or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            bias=tuple((self.logit_bias or {}).items()),
            seed=self.seed,
        )
        return Query(
            self.model, prompts, max_tokens, sampling, self.n or 1, self.stop or (),
            self.stop_token_ids or (), ignore_end=bool(self.ignore_eos),
        )  # fmt: skip


# Unsupported fields, with the values that have no effect.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"],),
    "prediction": (),
    "web_search_options": (),
    "min_tokens": (0,),
    "suffix": ("",),
    "best_of": (1,),
}


class Part(Wire):
    type: Literal["text"]
    text: str


class ChatMessage(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    tool_calls: None = None  # refused, because the turn would seem empty
    function_call: None = None

    @property
    def plain(self) -> dict[str, str]:
        """The message in the form of chat templates."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(GenerationRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _logprobs_asked(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    def query(self) -> Query:
        """The next turn of the dialogue, up to the end of the context unless a limit is given."""
        dialogue = Dialogue([message.plain for message in self.messages])
        query = self._query([dialogue], self.max_completion_tokens or self.max_tokens)
        return replace(query, logprobs=(self.top_logprobs or 0) if self.logprobs else None)


class CompletionRequest(GenerationRequest):
    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)

    def query(self) -> Query:
        """One or several prompts, each a text or token ids."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        prompts: Any = [self.prompt] if single else self.prompt
        limit = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        return replace(self._query(prompts, limit), logprobs=self.logprobs, echo=bool(self.echo))


class TokenizeRequest(Wire):
    prompt: str


class DetokenizeRequest(Wire):
    tokens: list[StrictInt]


REQUESTS = (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest)
FIELDS = {name for kind in (*REQUESTS, ChatMessage, Part) for name in kind.model_fields}
