"""gRPC: health, reflection, the Open Inference Protocol and streams, by generated stubs."""

import asyncio
import struct
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from reciter import TEXT, Running, reciter, until

from culm.config import parse
from culm.serve.clients import Client, Clients, Limits
from culm.serve.fixture import Script, ScriptedModel
from culm.serve.grpc.calls import protocol
from culm.serve.http.app import build
from culm.serve.settings import ServeConfig

streams, stream_stubs = protocol("generation")
infer, infer_stubs = protocol("open_inference")
KEY = (("authorization", "Bearer secret"),)


@pytest.fixture(scope="module")
def running():
    clients = Clients([
        ("secret", Client("a", salt="a")),
        ("poor", Client("b", Limits(requests_per_minute=1), salt="b")),
    ])  # fmt: skip
    server = Running(build(reciter(), "reciter", ServeConfig(slots=2, grpc_port=0), clients))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def channel(running):
    with grpc.insecure_channel(f"127.0.0.1:{running.app.state.grpc_port}") as channel:
        yield channel


def dialogue(**options):
    turns = [streams.Turn(role="user", content="hi")]
    return streams.GenerateRequest(
        model="reciter", dialogue=streams.Dialogue(turns=turns), temperature=0, **options
    )


def test_answers_come_in_pieces_and_the_usage_at_the_end(channel):
    stub = stream_stubs.GenerationStub(channel)
    replies = list(stub.Generate(dialogue(choices=2), metadata=KEY))
    for choice in (0, 1):
        own = [one for one in replies[:-1] if one.choice == choice]
        assert "".join(one.text for one in own) == TEXT
        assert [one.finish_reason for one in own if one.finish_reason] == ["stop"]
    usage = replies[-1].usage
    assert usage.generated_tokens == 2 * (len(TEXT.encode()) + 1)
    ids = streams.TokenIds(ids=list(b"ABC"))
    request = streams.GenerateRequest(model="reciter", tokens=ids, temperature=0, max_tokens=3)
    assert "".join(one.text for one in stub.Generate(request, metadata=KEY)) == "DEF"


@pytest.mark.parametrize(
    ("request_", "metadata", "status"),
    [
        (dialogue(), (), "UNAUTHENTICATED"),
        (dialogue(), (("authorization", "Bearer wrong"),), "UNAUTHENTICATED"),
        (streams.GenerateRequest(model="other", text="x"), KEY, "NOT_FOUND"),
        (streams.GenerateRequest(model="reciter"), KEY, "INVALID_ARGUMENT"),
        (streams.GenerateRequest(model="reciter", text="x", max_tokens=-1), KEY,
         "INVALID_ARGUMENT"),
        (streams.GenerateRequest(model="reciter", text="x", temperature=-1), KEY,
         "INVALID_ARGUMENT"),
        (streams.GenerateRequest(model="reciter", text="x" * 5000), KEY, "INVALID_ARGUMENT"),
        (streams.GenerateRequest(model="reciter", text="x", choices=99), KEY, "INVALID_ARGUMENT"),
        (
            streams.GenerateRequest(model="reciter", text="x", json_schema="{"), KEY,
            "INVALID_ARGUMENT",
        ),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_served_has_its_status(channel, request_, metadata, status):
    with pytest.raises(grpc.RpcError) as caught:
        list(stream_stubs.GenerationStub(channel).Generate(request_, metadata=metadata))
    assert caught.value.code() == grpc.StatusCode[status]


def test_a_client_is_held_to_its_share(channel):
    stub, poor = stream_stubs.GenerationStub(channel), (("authorization", "Bearer poor"),)
    list(stub.Generate(dialogue(), metadata=poor))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(dialogue(), metadata=poor))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_cancelled_calls_and_deadlines_free_their_slots():
    script = parse(Script, {"answers": [{"say": "x" * 5000}], "seconds_per_token": 0.02}, "script")
    server = Running(build(ScriptedModel(script), "fixture", ServeConfig(grpc_port=0)))
    service = server.app.state.service
    request = streams.GenerateRequest(model="fixture", text="A", choices=2, max_tokens=4000)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.app.state.grpc_port}") as channel:
            stub = stream_stubs.GenerationStub(channel)
            call = stub.Generate(request)
            next(call)
            call.cancel()
            until(lambda: service.idle)
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Generate(request, timeout=0.5))
            assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            until(lambda: service.idle)
            asked = inference(["A"], max_tokens=4000)
            asked.model_name = "fixture"
            with pytest.raises(grpc.RpcError):
                infer_stubs.GRPCInferenceServiceStub(channel).ModelInfer(asked, timeout=0.5)
            until(lambda: service.idle)
    finally:
        server.stop()


def inference(texts, raw=False, **parameters):
    tensor = infer.ModelInferRequest.InferInputTensor(
        name="text_input", datatype="BYTES", shape=[len(texts)]
    )
    request = infer.ModelInferRequest(model_name="reciter", id="7")
    for name, value in parameters.items():
        kind = {int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        request.parameters[name].CopyFrom(infer.InferParameter(**{kind: value}))
    encoded = [text.encode() for text in texts]
    if raw:
        packed = b"".join(struct.pack("<I", len(one)) + one for one in encoded)
        request.raw_input_contents.append(packed)
    else:
        tensor.contents.bytes_contents.extend(encoded)
    request.inputs.append(tensor)
    return request


def test_texts_by_the_open_inference_protocol(channel):
    stub = infer_stubs.GRPCInferenceServiceStub(channel)
    asked = {"max_tokens": 3, "temperature": 0.0}
    plain = stub.ModelInfer(inference(["A", "X"], **asked), metadata=KEY)
    assert plain.outputs[0].contents.bytes_contents[0] == b"BCD"
    assert list(plain.outputs[1].contents.bytes_contents) == [b"length", b"length"]
    raw = stub.ModelInfer(inference(["A", "X"], raw=True, **asked), metadata=KEY)
    texts = plain.outputs[0].contents.bytes_contents
    assert raw.raw_output_contents[0] == b"".join(struct.pack("<I", len(t)) + t for t in texts)
    assert (raw.id, raw.model_name) == ("7", "reciter")
    meta = stub.ModelMetadata(infer.ModelMetadataRequest(name="reciter"), metadata=KEY)
    assert [one.name for one in meta.inputs] == ["text_input"]
    ready = stub.ModelReady(infer.ModelReadyRequest(name="other"), metadata=KEY)
    assert not ready.ready


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"temprature": 1}},
        {"parameters": {"max_tokens": "many"}},
        {"datatype": "FP32"},
        {"shape": [2]},
        {"raw": b"\xff\xff\xff\x7fx"},
        {"name": "x"},
        {"text": b"\xff"},
    ],
)
def test_tensors_that_cannot_be_read_are_refused(channel, change):
    request = inference(["A"], **change.get("parameters", {}))
    tensor = request.inputs[0]
    tensor.datatype = change.get("datatype", "BYTES")
    tensor.name = change.get("name", "text_input")
    if "shape" in change:
        tensor.shape[:] = change["shape"]
    if "text" in change:
        tensor.contents.bytes_contents[:] = [change["text"]]
    if "raw" in change:
        request.raw_input_contents.append(change["raw"])
    with pytest.raises(grpc.RpcError) as caught:
        infer_stubs.GRPCInferenceServiceStub(channel).ModelInfer(request, metadata=KEY)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_health_and_reflection(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", "culm.v1.Generation", "inference.GRPCInferenceService"):
        found = health.Check(health_pb2.HealthCheckRequest(service=name))  # needs no key
        assert found.status == health_pb2.HealthCheckResponse.SERVING
    allowed = grpc.intercept_channel(channel, WithKey())
    names = ProtoReflectionDescriptorDatabase(allowed).get_services()
    assert {"culm.v1.Generation", "inference.GRPCInferenceService"} <= set(names)


class WithKey(grpc.StreamStreamClientInterceptor):
    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=list(KEY)), requests)


def test_health_tells_that_a_server_drains():
    async def story():
        from asking import started

        from culm.serve.grpc.server import running as serving

        settings = ServeConfig(grpc_port=0, drain_seconds=1)
        async with (
            started() as service,
            serving(service, settings, Clients()) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            service.drain()
            for _ in range(100):
                found = await health.Check(health_pb2.HealthCheckRequest())
                if found.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    return True
                await asyncio.sleep(0.05)
        return False

    assert asyncio.run(story())


TRITON = """
import sys
import numpy as np
import tritonclient.grpc as client
triton = client.InferenceServerClient(sys.argv[1])
headers = {"authorization": "Bearer secret"}
assert triton.is_model_ready("reciter", headers=headers)
tensor = client.InferInput("text_input", [1], "BYTES")
tensor.set_data_from_numpy(np.array([b"A"], dtype=object))
asked = {"max_tokens": 3, "seed": 1, "top_k": 1}
found = triton.infer("reciter", [tensor], headers=headers, parameters=asked)
assert found.as_numpy("text_output").tolist() == [b"BCD"], found.as_numpy("text_output")
"""


def test_the_client_of_triton(running):
    """In a process of its own, because it has its own copy of the messages."""
    pytest.importorskip("tritonclient")
    address = f"127.0.0.1:{running.app.state.grpc_port}"
    done = subprocess.run([sys.executable, "-c", TRITON, address], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
