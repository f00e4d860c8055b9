"""The routes: an OpenAI-compatible API, health, and the chat page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

import culm
from culm.config import SettingError
from culm.model.transformer import Transformer
from culm.serve.clients import Clients
from culm.serve.http import error, generation, vectors
from culm.serve.http.guard import Guard
from culm.serve.http.leaving import unless_gone
from culm.serve.http.mcp import mcp_routes
from culm.serve.http.page.page import page
from culm.serve.http.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from culm.serve.http.responses import ResponseRequest
from culm.serve.refusal import EngineStopped, NotReady
from culm.serve.service import Service
from culm.serve.settings import ServeConfig
from culm.text.ids import text_ids
from culm.text.language_model import LanguageModel
from culm.tokenizer.tokenizer import Tokenizer


def build(
    model: LanguageModel,
    name: str,
    settings: ServeConfig = ServeConfig(),
    clients: Clients | None = None,
    local: bool = True,
    reload: Callable[[], tuple[Transformer, Tokenizer]] | None = None,
) -> FastAPI:
    """The application; `app.state.service` runs the model while the application lives.

    local: the server listens on this machine only. reload: reads the weights again, for POST
    /reload; without it there is no such path. Adapters that were loaded with the model are models
    of the API under their own names.

    Raises:
        SettingError: an adapter has the model's name.
    """
    service, clients = Service(model, name, settings), clients or Clients()
    tools = mcp_routes(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        async with tools.running(), _grpc(service, settings, clients) as port:
            app.state.grpc_port = port
            yield
        await service.stop()

    # Pages of FastAPI load scripts from elsewhere; redirects would repeat the header `Host`.
    app = FastAPI(
        title="Culm", version=culm.__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None, redirect_slashes=False,
        responses={"default": {"model": error.ErrorBody, "description": "An error."}},
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(
        Guard, clients=clients, local=local, max_bytes=settings.body_bytes,
        hosts=settings.allowed_hosts,
    )  # fmt: skip
    error.install(app)
    _add_health(app, service)
    _add_models(app, service)
    _add_generation(app, service)
    _add_vectors(app, service)
    _add_tokens(app, model)
    app.router.routes += tools.routes
    if reload is not None:
        _add_reload(app, service, reload)
    app.add_api_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    return app


def _grpc(
    service: Service, settings: ServeConfig, clients: Clients
) -> AbstractAsyncContextManager[int | None]:
    """The gRPC server, if there is a port for it."""
    if settings.grpc_port is None:
        return nullcontext()
    from culm.serve.grpc.server import running

    return running(service, settings, clients)


def _add_health(app: FastAPI, service: Service) -> None:
    """HEAD too, as probes ask; the schema has one operation of a name."""

    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live")
    async def live() -> dict[str, str]:
        if not service.alive:
            raise EngineStopped()
        return {"status": "ok"}

    @app.head("/health/ready", include_in_schema=False)
    @app.head("/health", include_in_schema=False)
    @app.get("/health/ready")
    @app.get("/health")
    async def ready() -> dict[str, str]:
        service.check_open()
        if not service.ready:
            raise NotReady()
        return {"status": "ok"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": culm.__version__}


def _add_models(app: FastAPI, service: Service) -> None:
    card = {
        "object": "model",
        "created": int(time.time()),
        "owned_by": "culm",
        "max_model_len": service.model.context,
    }
    base, *adapters = service.models
    cards = {base: {"id": base, **card, "parent": None}}
    cards |= {adapter: {"id": adapter, **card, "parent": base} for adapter in adapters}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": list(cards.values())}

    @app.get("/v1/models/{id:path}")
    async def one(id: str) -> dict[str, Any]:
        if id not in cards:
            raise error.ApiError(404, f"There is no model {id!r} here.", "model_not_found", "model")
        return cards[id]


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        return await unless_gone(http, generation.chat(service, body, http.state.client))

    @app.post("/v1/responses")
    async def respond(body: ResponseRequest, http: Request) -> Response:
        return await unless_gone(http, generation.respond(service, body, http.state.client))

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, http: Request) -> Response:
        return await unless_gone(http, generation.complete(service, body, http.state.client))


def _add_vectors(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(body: vectors.EmbeddingRequest, http: Request) -> Response:
        return await unless_gone(http, vectors.embeddings(service, body, http.state.client))

    @app.post("/v1/score")
    async def score(body: vectors.ScoreRequest, http: Request) -> Response:
        return await unless_gone(http, vectors.similarities(service, body, http.state.client))


def _add_tokens(app: FastAPI, model: LanguageModel) -> None:
    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        tokenizer = model.tokenizer
        encode = partial(text_ids, tokenizer) if body.add_special_tokens else tokenizer.encode
        ids = await asyncio.to_thread(encode, body.prompt, body.parse_special)
        return {"count": len(ids), "max_model_len": model.context, "tokens": ids}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, str]:
        try:
            return {"prompt": await asyncio.to_thread(model.decode, body.tokens)}
        except (ValueError, OverflowError) as problem:
            raise error.invalid(str(problem), "tokens") from None


def _add_reload(
    app: FastAPI, service: Service, read: Callable[[], tuple[Transformer, Tokenizer]]
) -> None:
    @app.post("/reload")
    async def reload() -> dict[str, str]:
        try:
            await service.reload(read)
        except (SettingError, OSError) as problem:
            raise error.invalid(str(problem)) from None
        return {"status": "ok"}
