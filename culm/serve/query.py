"""What a client asks of the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from culm.engine.sampling import Sampling
from culm.serve.clients import Client
from culm.serve.refusal import InvalidRequest
from culm.text.tools import Tool
from culm.tokenizer.message import Message

# Maxima of a query: what is above them costs time outside of the engine.
MAX_PROMPTS, MAX_CHOICES, MAX_LOGPROBS, MAX_BIAS = 64, 16, 20, 300
MAX_STOPS, MAX_STOP_CHARACTERS, MAX_STOP_IDS = 16, 256, 64


@dataclass(frozen=True)
class ChatPrompt:
    """Messages; the assistant writes the next one. tools: that it may call."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()


Prompt = str | Sequence[int] | ChatPrompt  # a text, token ids, or a dialogue


@dataclass(frozen=True)
class Query:
    """Prompts to continue, each `choices` times; choice `choices * i + j` is the j-th of prompt i.

    model: the name of the model or of an adapter.
    max_tokens: of each choice; None: up to the context, which also ends a longer one. 0 is
        allowed with `echo`.
    sampling: choice j of a prompt samples with seed + j.
    stop: strings that end a choice and do not appear in it.
    stop_ids: tokens that end it, besides those of the tokenizer; ignore_end leaves the latter out.
    logprobs: score each token, and this many most likely ones in its place; None: do not.
    client: who asks; whoever checks its key sets it. By default one without limits.
    parse_special: names of special tokens in prompts that are texts become these tokens.
    form: of each answer, as `culm.text.grammar` writes it; None: any text.
    echo: each choice starts with its prompt, which is scored if `logprobs` is given.
    """

    model: str
    prompts: Sequence[Prompt]
    max_tokens: int | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    choices: int = 1
    stop: Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    ignore_end: bool = False
    logprobs: int | None = None
    form: str | None = None
    echo: bool = False
    parse_special: bool = False
    client: Client = field(default_factory=Client, compare=False)

    @property
    def answers(self) -> int:
        """Choices of all prompts."""
        return self.choices * len(self.prompts)

    def check_size(self) -> None:
        """Raises InvalidRequest where something is longer or more than its maximum."""
        for name, given, most in (
            ("prompts", len(self.prompts), MAX_PROMPTS),
            ("choices", self.choices, MAX_CHOICES),
            ("stop", len(self.stop), MAX_STOPS),
            ("stop", max(map(len, self.stop), default=0), MAX_STOP_CHARACTERS),
            ("stop_ids", len(self.stop_ids), MAX_STOP_IDS),
            ("bias", len(self.sampling.bias), MAX_BIAS),
            ("logprobs", self.logprobs or 0, MAX_LOGPROBS),
        ):
            if given > most:
                raise InvalidRequest(f"{name}: {given} is more than {most}", name)
