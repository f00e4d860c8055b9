"""What clients send, as OpenAI's API reference and vLLM's extensions name it.

Fields that no class here has are harmless or refused (`culm.serve.http.wire`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from culm.engine.sampling import Sampling
from culm.serve.http.forms import (
    ResponseFormat,
    StructuredOutputs,
    ToolChoice,
    ToolParameter,
    tool_use,
)
from culm.serve.http.messages import ChatMessage
from culm.serve.http.wire import UNSUPPORTED, Body, Neutral, Wire
from culm.serve.query import (
    MAX_BIAS,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_PROMPTS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_IDS,
    MAX_STOPS,
    ChatPrompt,
    Prompt,
    Query,
)
from culm.text.tools import ToolUse

COMPLETION_TOKENS = 16  # default of plain completions, as in OpenAI's API
# Fields of a query that have another name in this API.
NAMES = {
    "choices": "n", "bias": "logit_bias", "stop_ids": "stop_token_ids", "form": "response_format",
}  # fmt: skip

Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    list[Stop],
    Field(max_length=MAX_STOPS),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
]
TokenIds = Annotated[list[StrictInt], Field(min_length=1)]
Prompts = (
    str
    | TokenIds
    | Annotated[list[str] | list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class StreamOptions(Wire):
    neutral: ClassVar[Neutral] = {"continuous_usage_stats": (False,)}

    include_usage: bool = False


class GenerationRequest(Body):
    """Fields that chats and plain completions share."""

    neutral: ClassVar[Neutral] = UNSUPPORTED

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MAX_BIAS
    )
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stops | None = None
    top_k: int | None = Field(None, ge=-1, lt=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0.01, le=100)
    stop_token_ids: list[StrictInt] | None = Field(None, max_length=MAX_STOP_IDS)
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _one_form(self) -> GenerationRequest:
        if self.form() and self.structured_outputs and self.response_format:
            raise ValueError("structured_outputs: it contradicts response_format; give one of them")
        return self

    def form(self) -> str | None:
        """Of the answer, for `culm.text.grammar`."""
        given = self.structured_outputs or self.response_format
        return given.form() if given else None

    @classmethod
    def _is_off(cls, name: str, given: dict[str, Any]) -> bool:
        """Functions that the model must not use, and several answers that are all returned."""
        if name == "best_of":
            return bool(given[name] == given.get("n"))
        return name == "functions" and given.get("function_call") == "none"

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
            typical_p=1.0 if self.typical_p is None else self.typical_p,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            bias=tuple((self.logit_bias or {}).items()),
            seed=self.seed,
        )
        return Query(
            self.model, prompts, max_tokens, sampling, self.n or 1, self.stop or (),
            self.stop_token_ids or (), ignore_end=bool(self.ignore_eos), form=self.form(),
        )  # fmt: skip


class ChatRequest(GenerationRequest):
    neutral: ClassVar[Neutral] = {**UNSUPPORTED, "echo": (False,)}

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[ToolParameter] = Field([], max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def tool_use(self) -> ToolUse | None:
        """What the answer may do with tools; None: there are none, or it must not use them."""
        return tool_use(self.tools, self.tool_choice, self.parallel_tool_calls is not False)

    @model_validator(mode="after")
    def _callable(self) -> ChatRequest:
        use, form = self.tool_use, super().form()
        if form and use and use.called == "required":
            raise ValueError("tool_choice: a call that is required contradicts the form of a text")
        return self

    def form(self) -> str | None:
        use, form = self.tool_use, super().form()
        return use.form(form) if use else form

    @model_validator(mode="after")
    def _logprobs_asked(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @model_validator(mode="after")
    def _one_limit(self) -> ChatRequest:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise ValueError("max_completion_tokens: it contradicts max_tokens; give one of them")
        return self

    def query(self) -> Query:
        """The next turn of the dialogue, up to the end of the context unless a limit is given."""
        tools = [given.tool for given in self.tools] if self.tool_use else []
        dialogue = ChatPrompt([message.plain for message in self.messages], tools)
        query = self._query([dialogue], self.max_completion_tokens or self.max_tokens)
        return replace(query, logprobs=(self.top_logprobs or 0) if self.logprobs else None)


class CompletionRequest(GenerationRequest):
    """best_of: answers of each prompt that are generated, of which the `n` best are returned."""

    neutral: ClassVar[Neutral] = {
        **{name: values for name, values in UNSUPPORTED.items() if name != "best_of"},
        "add_special_tokens": (True,), "tools": ([],),
        "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False),
    }  # fmt: skip

    prompt: Prompts
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    parse_special: bool = False
    echo: bool | None = None
    logprobs: StrictInt | None = Field(None, ge=0, le=MAX_LOGPROBS)  # false is not 0
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    @model_validator(mode="after")
    def _best_answers(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of: it is less than n, the number of answers to return")
        if self.selects and self.stream:
            raise ValueError("best_of: the best answers are known at the end; use stream=false")
        return self

    @property
    def selects(self) -> bool:
        """Whether more answers are generated than returned."""
        return self.best_of is not None and self.best_of > (self.n or 1)

    @model_validator(mode="after")
    def _ids_of_answers(self) -> CompletionRequest:
        if self.return_token_ids and self.echo:
            raise ValueError("return_token_ids: it cannot be combined with echo")
        return self

    def query(self) -> Query:
        """One or several prompts, each a text or token ids."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        prompts: Any = [self.prompt] if single else self.prompt
        limit = COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens
        query = self._query(prompts, limit)
        # Ids and the best answers need scores, which are shown only if they were asked for.
        scored = self.return_token_ids or self.selects
        return replace(
            query,
            choices=self.best_of or query.choices,
            logprobs=0 if self.logprobs is None and scored else self.logprobs,
            echo=bool(self.echo),
            parse_special=self.parse_special,
        )


class TokenizeRequest(Body):
    prompt: str
    model: str | None = None
    parse_special: bool = False
    add_special_tokens: bool = False


class DetokenizeRequest(Body):
    tokens: list[StrictInt]
    model: str | None = None
