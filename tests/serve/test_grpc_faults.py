"""gRPC under attack: TLS, what is no message, clients that vanish or do not read, limits."""

import asyncio
import subprocess
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from reciter import Running, reciter, until

from culm.config import SettingError
from culm.serve.clients import Client, Clients
from culm.serve.grpc import calls
from culm.serve.grpc.calls import protocol
from culm.serve.http.app import build
from culm.serve.service import Service
from culm.serve.settings import ServeConfig
from culm.serve.worker import FAULTS

streams, stream_stubs = protocol("generation")
infer, infer_stubs = protocol("open_inference")
KEY = (("authorization", "Bearer secret"),)
LONG = {"model": "reciter", "text": "A", "max_tokens": 1900, "choices": 2}
METHODS = ("/culm.v1.Generation/Generate", "/inference.GRPCInferenceService/ModelInfer")


@pytest.fixture(scope="module")
def running():
    server = Running(build(reciter(), "reciter", ServeConfig(slots=2, grpc_port=0)))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def channel(running):
    options = [("grpc.max_send_message_length", 64 << 20)]
    address = f"127.0.0.1:{running.app.state.grpc_port}"
    with grpc.insecure_channel(address, options) as channel:
        yield channel


def generate(channel, metadata=None, timeout=20, **fields):
    request = streams.GenerateRequest(**{"model": "reciter", "max_tokens": 3, **fields})
    return stream_stubs.GenerationStub(channel).Generate(
        request, metadata=metadata, timeout=timeout
    )


def status(call) -> tuple[str, str]:
    """Status and details of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call()) if callable(call) else list(call)
    return caught.value.code().name, caught.value.details()


# -- what clients send --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x12\xff", b"\x0a\x02\xff\xfe"])
def test_what_is_no_message(channel, method, data):
    streaming = method == METHODS[0]
    call = channel.unary_stream(method) if streaming else channel.unary_unary(method)
    ask = (lambda: call(data)) if streaming else (lambda: [call(data)])
    assert status(ask) == ("INVALID_ARGUMENT", "The message cannot be read.")


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": "[" * 5000 + "]" * 5000},
        {"json_schema": '{"a":' * 900 + "1" + "}" * 900},
        {"json_schema": "NaN"},
        {"json_schema": "3"},
        {"stop": ["ab"] * 17},
        {"stop": ["a" * 257]},
        {"stop": [""]},
        {"choices": 17},
        {"choices": -3},
        {"choices": 1 << 40},
        {"temperature": float("nan")},
        {"top_k": -5},
    ],
)
def test_limits_are_those_of_http(channel, fields):
    assert status(generate(channel, text="x", **fields))[0] == "INVALID_ARGUMENT"


def test_a_message_that_is_too_large(channel):
    code, _ = status(generate(channel, text="x" * (5 << 20)))
    assert code == "RESOURCE_EXHAUSTED"
    assert [one.text for one in generate(channel, text="A", temperature=0)][:3] == ["B", "C", "D"]


def inference(change) -> object:
    tensor = infer.ModelInferRequest.InferInputTensor(
        name="text_input", datatype="BYTES", shape=[1]
    )
    tensor.contents.bytes_contents.append(b"A")
    request = infer.ModelInferRequest(model_name="reciter", inputs=[tensor])
    change(request)
    return request


def twice(request) -> None:
    output = infer.ModelInferRequest.InferRequestedOutputTensor
    request.outputs.extend([output(name="text_output")] * 2)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda r: r.inputs[0].shape.__setitem__(slice(None), [-1, -1]), "INVALID_ARGUMENT"),
        (lambda r: r.inputs[0].contents.int_contents.append(3), "INVALID_ARGUMENT"),
        (lambda r: r.raw_input_contents.append(b"\1\0\0\0A"), "INVALID_ARGUMENT"),
        (lambda r: setattr(r.inputs[0].parameters["x"], "bool_param", True), "INVALID_ARGUMENT"),
        (lambda r: setattr(r, "model_version", "99"), "NOT_FOUND"),
        (lambda r: setattr(r, "model_name", "../etc"), "NOT_FOUND"),
        (lambda r: r.inputs.append(r.inputs[0]), "INVALID_ARGUMENT"),
        (lambda r: r.inputs.pop(), "INVALID_ARGUMENT"),
        (twice, "INVALID_ARGUMENT"),
    ],
)
def test_no_part_of_a_tensor_is_ignored(channel, change, code):
    stub = infer_stubs.GRPCInferenceServiceStub(channel)
    assert status(lambda: [stub.ModelInfer(inference(change))])[0] == code


# -- faults of the server -----------------------------------------------------------------------


def test_an_error_of_the_server_says_nothing_of_it(running, channel, monkeypatch):
    async def ask(query) -> None:
        raise KeyError("/home/me/secret")

    monkeypatch.setattr(running.app.state.service, "ask", ask)
    stub = infer_stubs.GRPCInferenceServiceStub(channel)
    said = ("INTERNAL", "The server failed; its log says why.")
    assert status(generate(channel, text="x")) == said
    assert status(lambda: [stub.ModelInfer(inference(lambda request: None))]) == said


def test_health_follows_the_engine(running, channel, monkeypatch):
    health = health_pb2_grpc.HealthStub(channel)
    stub = infer_stubs.GRPCInferenceServiceStub(channel)
    kinds = health_pb2.HealthCheckResponse

    def found() -> int:
        return health.Check(health_pb2.HealthCheckRequest()).status

    def ready() -> bool:
        return stub.ServerReady(infer.ServerReadyRequest()).ready

    monkeypatch.setattr(running.worker, "_faults", FAULTS)
    until(lambda: found() == kinds.NOT_SERVING)
    assert not ready()
    list(generate(channel, text="A"))
    until(lambda: found() == kinds.SERVING)
    assert ready()


# -- clients that vanish or do not read ---------------------------------------------------------


@pytest.mark.parametrize("end", ["cancel", "deadline", "close"])
def test_a_call_that_ends_frees_its_slot_at_once(running, end):
    address = f"127.0.0.1:{running.app.state.grpc_port}"
    for moment in (0.0, 0.02, 0.1):
        channel = grpc.insecure_channel(address)
        call = generate(channel, **LONG, timeout=0.15 if end == "deadline" else 20)
        until(lambda: running.worker.open > 0)
        time.sleep(moment)
        if end == "cancel":
            call.cancel()
        elif end == "close":
            channel.close()
        until(lambda: running.worker.idle and not running.worker._engine.busy, 2)
        channel.close()


def test_a_client_that_reads_nothing_is_left(monkeypatch):
    """Its connection stays open, and what it does not read fills the buffers on the way."""
    monkeypatch.setattr(calls, "READ_SECONDS", 0.5)
    server = Running(build(reciter(), "reciter", ServeConfig(slots=4, grpc_port=0)))
    address = f"127.0.0.1:{server.app.state.grpc_port}"
    share = Client("a")
    monkeypatch.setattr(calls.Clients, "find", lambda self, key: share)
    try:
        narrow = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024)]
        with grpc.insecure_channel(address, narrow) as channel:
            call = generate(channel, **{**LONG, "choices": 8}, timeout=60)
            until(lambda: share.open == 8)
            until(lambda: share.open == 0, 30)
            call.cancel()
    finally:
        server.stop()


# -- TLS and keys -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    paths = folder / "certificate.pem", folder / "key.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
        "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", str(paths[0]),
        "-keyout", str(paths[1]),
    ]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    return paths


def test_tls_encrypts_and_keys_are_checked_behind_it(certificate):
    clients = Clients([("secret", Client("a", salt="a"))])
    settings = ServeConfig(
        grpc_port=0, tls_certificate=str(certificate[0]), tls_key=str(certificate[1])
    )
    server = Running(build(reciter(), "reciter", settings, clients))
    address = f"localhost:{server.app.state.grpc_port}"
    trusted = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    try:
        with grpc.secure_channel(address, trusted) as channel:
            texts = [one.text for one in generate(channel, KEY, text="A", temperature=0)]
            assert "".join(texts) == "BCD"
            for wrong in ((), (("authorization", "Bearer wrong"),), (("authorization", ""),)):
                assert status(generate(channel, wrong, text="A"))[0] == "UNAUTHENTICATED"
        for other in (
            grpc.insecure_channel(address),
            grpc.secure_channel(address, grpc.ssl_channel_credentials()),
        ):
            with other as channel:
                code, _ = status(generate(channel, KEY, timeout=3, text="A"))
                assert code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        assert server.worker.idle
    finally:
        server.stop()


@pytest.mark.parametrize("broken", ["missing", "no certificate"])
def test_a_certificate_that_cannot_be_used_is_one_sentence(broken, tmp_path):
    from culm.serve.grpc.server import running as serving

    path = tmp_path / "x.pem"
    if broken == "no certificate":
        path.write_text("x")

    async def story() -> None:
        settings = ServeConfig(grpc_port=0, tls_certificate=str(path), tls_key=str(path))
        service = Service(reciter(), "reciter")
        async with serving(service, settings, Clients()):
            pass

    with pytest.raises(SettingError, match="tls_certificate: "):
        asyncio.run(story())
