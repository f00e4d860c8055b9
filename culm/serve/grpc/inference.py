"""Whole answers by the Open Inference Protocol, so that clients of Triton and KServe can ask.

Inputs: `text_input`, BYTES [N], texts to continue. Outputs: `text_output` and `finish_reason`,
BYTES [N]. Parameters: max_tokens, temperature, top_p, top_k, seed, and stop, a single text.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import grpc

import culm
from culm.engine.sampling import Sampling
from culm.serve.clients import Client, Clients
from culm.serve.grpc.calls import caller, protocol
from culm.serve.query import Query
from culm.serve.refusal import InvalidRequest, UnknownModel
from culm.serve.service import Service

messages, services = protocol("open_inference")
PARAMETERS: dict[str, type] = {
    "max_tokens": int, "temperature": float, "top_p": float, "top_k": int, "seed": int, "stop": str,
}  # fmt: skip
OUTPUTS = ("text_output", "finish_reason")
NAME = str(messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name)
Base: Any = services.GRPCInferenceServiceServicer


class Inference(Base):
    """`inference.GRPCInferenceService`."""

    def __init__(self, service: Service, clients: Clients) -> None:
        self._service, self._clients = service, clients

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return messages.ServerReadyResponse(ready=self._service.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        known = request.name in self._service.models
        return messages.ModelReadyResponse(ready=known and self._service.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return messages.ServerMetadataResponse(name="culm", version=culm.__version__)

    async def ModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        if request.name not in self._service.models:
            raise UnknownModel(f"There is no model {request.name!r} here.")
        tensor = messages.ModelMetadataResponse.TensorMetadata
        return messages.ModelMetadataResponse(
            name=request.name, platform="culm",
            inputs=[tensor(name="text_input", datatype="BYTES", shape=[-1])],
            outputs=[
                tensor(name=name, datatype="BYTES", shape=[-1])
                for name in OUTPUTS
            ],
        )  # fmt: skip

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        wanted = _outputs(request)
        client = caller(context, self._clients)
        texts, reasons = await self._answer(request, client)
        raw = bool(request.raw_input_contents)
        named = dict(zip(OUTPUTS, (texts, reasons), strict=True))
        output = messages.ModelInferResponse.InferOutputTensor
        return messages.ModelInferResponse(
            model_name=request.model_name, id=request.id,
            outputs=[
                output(
                    name=name, datatype="BYTES", shape=[len(texts)],
                    contents=None if raw else messages.InferTensorContents(
                        bytes_contents=named[name]
                    ),
                )
                for name in wanted
            ],
            raw_output_contents=[_packed(named[name]) for name in wanted] if raw else [],
        )  # fmt: skip

    async def _answer(self, request: Any, client: Client) -> tuple[list[bytes], list[bytes]]:
        query = _query(request, client)
        answer = await self._service.ask(query)
        texts, reasons = [""] * len(query.prompts), [""] * len(query.prompts)
        try:
            async for piece in answer.pieces():
                if piece is not None:
                    texts[piece.choice] += piece.text
                    reasons[piece.choice] = piece.finish or ""
        finally:
            answer.leave()
        return [one.encode() for one in texts], [one.encode() for one in reasons]


def _outputs(request: Any) -> list[str]:
    """Names of the outputs that are wanted."""
    names = [one.name for one in request.outputs]
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise InvalidRequest(f"outputs: there is no {unknown[0]!r}")
    if len({*names}) < len(names):
        raise InvalidRequest("outputs: one of them is named twice")
    return names or list(OUTPUTS)


def _query(request: Any, client: Client) -> Query:
    if request.model_version:
        raise UnknownModel(f"There is no version {request.model_version!r}; leave it out.")
    given: dict[str, Any] = {}
    for name, value in request.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found = getattr(value, kind) if kind else None
        expected = PARAMETERS.get(name)
        if expected is None:
            raise InvalidRequest(
                f"parameters: {name!r} is not one of {', '.join(PARAMETERS)}", name
            )
        if isinstance(found, bool) or not isinstance(found, expected | int):
            raise InvalidRequest(f"{name}: {found!r} is no {expected.__name__}", name)
        given[name] = expected(found)
    stop, max_tokens = given.pop("stop", None), given.pop("max_tokens", 16)
    try:
        sampling = Sampling(**{"temperature": 1.0, **given})
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    stops = [] if stop is None else [stop]
    texts = _texts(request)
    return Query(request.model_name, texts, max_tokens, sampling, stop=stops, client=client)


def _texts(request: Any) -> list[str]:
    if [one.name for one in request.inputs] != ["text_input"]:
        raise InvalidRequest("inputs: give one tensor, text_input", "inputs")
    tensor = request.inputs[0]
    if tensor.datatype != "BYTES":
        raise InvalidRequest(f"text_input: {tensor.datatype} is not BYTES", "inputs")
    if tensor.parameters:
        raise InvalidRequest("text_input: it has no parameters", "inputs")
    raw = request.raw_input_contents
    given = {field.name for field, _ in tensor.contents.ListFields()}
    if len(raw) > 1 or given - (set() if raw else {"bytes_contents"}):
        raise InvalidRequest("text_input: give bytes_contents or one raw content", "inputs")
    found = _unpacked(raw[0]) if raw else list(tensor.contents.bytes_contents)
    size = 1
    for length in tensor.shape:
        size *= length
    if len(found) != size or not found or min(tensor.shape, default=1) < 0:
        raise InvalidRequest(f"text_input: {len(found)} texts for {list(tensor.shape)}", "inputs")
    try:
        return [one.decode() for one in found]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"text_input: {error}", "inputs") from None


def _packed(texts: Sequence[bytes]) -> bytes:
    """Each text after its length in 4 bytes, the lowest first."""
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _unpacked(raw: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(raw):
        if place + 4 > len(raw):
            raise InvalidRequest("raw_input_contents: it is cut off", "inputs")
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4 + length
        if place > len(raw):
            raise InvalidRequest("raw_input_contents: it is cut off", "inputs")
        found.append(raw[place - length : place])
    return found


def add(server: grpc.aio.Server, service: Service, clients: Clients) -> None:
    """Add the service."""
    services.add_GRPCInferenceServiceServicer_to_server(Inference(service, clients), server)
