"""Answers as they are written: `generation.proto`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import grpc

from culm.engine.sampling import Sampling
from culm.serve.clients import Client, Clients
from culm.serve.grpc.calls import caller, protocol
from culm.serve.query import ChatPrompt, Prompt, Query
from culm.serve.refusal import InvalidRequest
from culm.serve.service import Service
from culm.text.grammar import of_json

messages, services = protocol("generation")

NAME = str(messages.DESCRIPTOR.services_by_name["Generation"].full_name)
Base: Any = services.GenerationServicer


class Generation(Base):
    """`culm.v1.Generation`."""

    def __init__(self, service: Service, clients: Clients) -> None:
        self._service, self._clients = service, clients

    async def Generate(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        """Pieces of all choices; the last reply has the usage."""
        client = caller(context, self._clients)
        answer = await self._service.ask(_query(request, client))
        try:
            async for piece in answer.pieces():
                if piece is not None and (piece.text or piece.finish):
                    yield messages.GenerateReply(
                        choice=piece.choice, text=piece.text, finish_reason=piece.finish or ""
                    )
            yield messages.GenerateReply(usage=messages.Usage(
                prompt_tokens=answer.account.prompt_tokens,
                generated_tokens=answer.account.generated_tokens,
                cached_tokens=answer.account.cached_tokens,
            ))  # fmt: skip
        finally:
            answer.leave()


def _query(request: Any, client: Client) -> Query:
    """Raises InvalidRequest where a field cannot be used."""

    def given(name: str, default: Any) -> Any:
        return getattr(request, name) if request.HasField(name) else default

    try:
        sampling = Sampling(
            temperature=given("temperature", 1.0), top_p=given("top_p", 1.0),
            top_k=given("top_k", 0), min_p=given("min_p", 0.0), seed=given("seed", None),
        )  # fmt: skip
        schema = json.loads(request.json_schema) if request.json_schema else None
        form = None if schema is None else of_json(schema)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(str(error)) from None
    return Query(
        request.model, [_prompt(request)], given("max_tokens", None), sampling,
        request.choices or 1, list(request.stop), form=form, client=client,
    )  # fmt: skip


def _prompt(request: Any) -> Prompt:
    match request.WhichOneof("prompt"):
        case "text":
            return str(request.text)
        case "tokens":
            return list(request.tokens.ids)
        case "dialogue":
            turns = request.dialogue.turns
            return ChatPrompt([{"role": one.role, "content": one.content} for one in turns])
    raise InvalidRequest("prompt: give a text, tokens or a dialogue", "prompt")


def add(server: grpc.aio.Server, service: Service, clients: Clients) -> None:
    """Add the service."""
    services.add_GenerationServicer_to_server(Generation(service, clients), server)
