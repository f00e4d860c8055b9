"""The model as tools of the Model Context Protocol (https://modelcontextprotocol.io).

Over HTTP the tools are at /mcp of the same server, with its keys and limits; `culm mcp` speaks over
standard input and output with one program. Needs the extra `mcp`.
"""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any, Literal, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver import Context
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

import culm
from culm.engine.sampling import Sampling
from culm.serve.answer import AnswerStream
from culm.serve.clients import Client
from culm.serve.commands import Commands
from culm.serve.query import MAX_STOP_CHARACTERS, MAX_STOPS, ChatPrompt, Prompt, Query
from culm.serve.refusal import Refusal
from culm.serve.service import Service
from culm.text.message import MessageReader, joined
from culm.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
READ_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
PROGRESS = 16  # tokens between two reports

Text = Annotated[str, Field(min_length=1, max_length=1 << 20)]
MaxTokens = Annotated[int, Field(ge=1, le=1 << 20, description="Maximum number of new tokens.")]
Temperature = Annotated[float, Field(ge=0, le=2, description="0: the most likely text.")]
TopP = Annotated[float, Field(gt=0, le=1)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    tuple[Stop, ...], Field(max_length=MAX_STOPS, description="Texts that end the answer.")
]
Seed = Annotated[int | None, Field(ge=0, lt=1 << 63)]
Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=1 << 20)]


class Turn(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class Generated(BaseModel):
    text: str
    finish_reason: str = Field(description="stop: it came to its end; length: it was cut.")
    prompt_tokens: int
    generated_tokens: int


class Answered(Generated):
    reasoning: str = ""


class Vectors(BaseModel):
    vectors: list[list[float]] = Field(description="Of unit length, one for each text.")


class Scored(BaseModel):
    logprob: float = Field(description="Natural logarithm of the probability of the text.")
    tokens: int
    perplexity: float


class Tokenized(BaseModel):
    tokens: list[int]
    texts: list[str] = Field(description="Each token as text.")


def server_of(service: Service | None, commands: Commands | None = None) -> MCPServer[Any]:
    """The tools of a service that runs in the same event loop, and Culm's commands if given."""
    about = []
    if service is not None:
        about.append(f"Tools of the language model {service.name!r}, which runs on this machine.")
    if commands is not None:
        about.append(f"Culm's commands, which train and measure models in {commands.folder}.")
    server: MCPServer[Any] = MCPServer(
        "culm", title="Culm" if service is None else f"Culm: {service.name}",
        version=culm.__version__, log_level="WARNING", instructions=" ".join(about),
    )  # fmt: skip
    if commands is not None:
        commands.add_to(server)
    if service is None:
        return server
    tools = Tools(service)
    for tool in (tools.generate, tools.chat, tools.embed, tools.score, tools.tokenize,
                 tools.detokenize):  # fmt: skip
        server.tool(annotations=READ_ONLY)(tool)

    @server.resource("model://card", mime_type="application/json")
    def card() -> dict[str, Any]:
        """Name, adapters, size and context of the model."""
        return tools.card()

    return server


class Tools:
    """What a client may ask of the model."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def card(self) -> dict[str, Any]:
        model = self._service.model
        return {
            "name": self._service.name,
            "adapters": list(model.adapters),
            "context": model.context,
            "vocabulary": model.tokenizer.vocabulary,
            "parameters": sum(one.numel() for one in model.model.parameters()),
        }

    async def generate(
        self,
        prompt: Text,
        context: Context[Any, Any],
        max_tokens: MaxTokens = 256,
        temperature: Temperature = 0.0,
        top_p: TopP = 1.0,
        stop: Stops = (),
        seed: Seed = None,
    ) -> Generated:
        """Continue a text, without a chat template."""
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        answer = await self._ask(prompt, max_tokens, sampling, stop, context)
        text, finish = await _read(answer, max_tokens, context)
        account = answer.account
        return Generated(
            text=text, finish_reason=finish, prompt_tokens=account.prompt_tokens,
            generated_tokens=account.generated_tokens,
        )  # fmt: skip

    async def chat(
        self,
        messages: Annotated[list[Turn], Field(min_length=1, max_length=4096)],
        context: Context[Any, Any],
        max_tokens: MaxTokens = 1024,
        temperature: Temperature = 0.0,
        top_p: TopP = 1.0,
        stop: Stops = (),
        seed: Seed = None,
    ) -> Answered:
        """The answer to a dialogue."""
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed)
        prompt = ChatPrompt([turn.model_dump() for turn in messages])
        answer = await self._ask(prompt, max_tokens, sampling, stop, context)
        text, finish = await _read(answer, max_tokens, context)
        message = joined(MessageReader(answer.thinking).read(text, last=True))
        account = answer.account
        return Answered(
            text=message.content, reasoning=message.reasoning, finish_reason=finish,
            prompt_tokens=account.prompt_tokens, generated_tokens=account.generated_tokens,
        )  # fmt: skip

    async def embed(
        self,
        texts: Annotated[list[Text], Field(min_length=1, max_length=64)],
        context: Context[Any, Any],
    ) -> Vectors:
        """A vector for each text; near texts have near vectors."""
        try:
            found = await self._service.embed(texts, self._service.name, _client(context))
        except Refusal as refusal:
            raise ToolError(str(refusal)) from None
        return Vectors(vectors=await asyncio.to_thread(found.vectors.tolist))

    async def score(self, text: Text, context: Context[Any, Any], prompt: str = "") -> Scored:
        """How likely a text is, after a prompt if one is given."""
        model = self._service.model
        start = await asyncio.to_thread(model.prompt_ids, prompt)
        ids = [*start, *await asyncio.to_thread(model.tokenizer.encode, text)]
        if len(ids) > model.context:
            raise ToolError(f"The text has {len(ids)} tokens; the context is {model.context}.")
        try:
            scores = await self._service.score(ids, client=_client(context))
        except Refusal as refusal:
            raise ToolError(str(refusal)) from None
        each = [one.logprob or 0.0 for one in scores[len(start) :]]
        total = sum(each)
        return Scored(
            logprob=total, tokens=len(each), perplexity=math.exp(-total / max(len(each), 1))
        )

    async def tokenize(self, text: str) -> Tokenized:
        """The tokens of a text."""
        return await asyncio.to_thread(_tokenized, self._service.model.tokenizer, text)

    async def detokenize(self, tokens: Ids) -> str:
        """The text of tokens."""
        try:
            return await asyncio.to_thread(self._service.model.decode, tokens)
        except (ValueError, OverflowError) as error:
            raise ToolError(str(error)) from None

    async def _ask(
        self, prompt: Prompt, max_tokens: int, sampling: Sampling, stop: tuple[str, ...],
        context: Context[Any, Any],
    ) -> AnswerStream:  # fmt: skip
        query = Query(
            self._service.name, [prompt], max_tokens, sampling, stop=stop, client=_client(context)
        )
        try:
            return await self._service.ask(query)
        except Refusal as refusal:
            raise ToolError(str(refusal)) from None


async def _read(answer: AnswerStream, limit: int, context: Context[Any, Any]) -> tuple[str, str]:
    """The whole text and why it ended; tells how many tokens there are. A client that cancels the
    call ends the generation."""
    text, finish, told = "", "stop", 0
    try:
        async for piece in answer.pieces():
            if piece is None:
                continue
            text, finish = text + piece.text, piece.finish or finish
            if answer.account.generated_tokens >= told + PROGRESS:
                told = answer.account.generated_tokens
                await context.report_progress(told, limit)
    except Refusal as refusal:
        raise ToolError(str(refusal)) from None
    finally:
        answer.leave()
    return text, finish


def _tokenized(tokenizer: Tokenizer, text: str) -> Tokenized:
    ids = tokenizer.encode(text)
    return Tokenized(tokens=ids, texts=[tokenizer.decode([one]) for one in ids])


def _client(context: Context[Any, Any]) -> Client:
    """Who asks: over HTTP, the client that the server has found."""
    request = context.request_context.request
    return Client() if request is None else request.state.client
