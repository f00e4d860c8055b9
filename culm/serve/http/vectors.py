"""Embeddings, and how similar texts are: OpenAI's /v1/embeddings and vLLM's /v1/score."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from fastapi.responses import JSONResponse, Response
from pydantic import Field
from torch import Tensor

from culm.serve.clients import Client
from culm.serve.http.error import invalid
from culm.serve.http.wire import Body, Neutral
from culm.serve.query import Prompt
from culm.serve.service import Embedded, Service

Text = Annotated[str, Field(min_length=1)]
Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]


class EmbeddingRequest(Body):
    neutral: ClassVar[Neutral] = {"truncate_prompt_tokens": ()}

    model: str
    input: Texts | Annotated[list[int] | list[list[int]], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)

    @property
    def texts(self) -> list[Prompt]:
        given: Any = self.input
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class ScoreRequest(Body):
    """Similarity of pairs; a single first text goes with each of the second ones."""

    model: str
    text_1: Texts
    text_2: Texts


async def embeddings(service: Service, body: EmbeddingRequest, client: Client) -> Response:
    """A vector for each input."""
    width = service.model.model.config.width
    if body.dimensions not in (None, width):
        raise invalid(f"dimensions: this model gives {width}", "dimensions")
    found = await service.embed(body.texts, body.model, client)
    encode = _base64 if body.encoding_format == "base64" else Tensor.tolist
    # In a thread: thousands of vectors take seconds to write, in which other answers go on.
    return await asyncio.to_thread(_listed, "embedding", map(encode, found.vectors), body, found)


async def similarities(service: Service, body: ScoreRequest, client: Client) -> Response:
    """Cosines of the vectors of pairs of texts."""
    first, second = ([one] if isinstance(one, str) else one for one in (body.text_1, body.text_2))
    if len(first) not in (1, len(second)):
        raise invalid(f"text_1: {len(first)} texts for {len(second)} in text_2", "text_1")
    found = await service.embed([*first, *second], body.model, client)
    cosines = (found.vectors[: len(first)] * found.vectors[len(first) :]).sum(-1)
    return _listed("score", cosines.tolist(), body, found)


def _base64(vector: Tensor) -> str:
    """fp32, the lowest byte first."""
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


def _listed(
    name: str, values: Iterable[Any], body: EmbeddingRequest | ScoreRequest, found: Embedded
) -> Response:
    data = [{"object": name, "index": index, name: value} for index, value in enumerate(values)]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})
