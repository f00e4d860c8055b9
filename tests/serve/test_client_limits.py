"""Keys, limits of clients, limits on time, and the metrics that tell of them."""

import httpx2 as httpx
import openai
import pytest
from reciter import CONTEXT, TEXT, Running, reciter
from scripted import scripted

from culm.config import SettingError
from culm.serve.clients import Bucket, Client, Clients, Limits, clients_of
from culm.serve.http.app import build
from culm.serve.http.server import check_packages
from culm.serve.refusal import RateLimited
from culm.serve.settings import ServeConfig, read_settings

HI = [{"role": "user", "content": "hi"}]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_fills_at_a_constant_rate():
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.use(60)
    assert bucket.wait(1) == pytest.approx(1)
    clock.now += 10.5
    assert bucket.left == pytest.approx(10.5)
    bucket.use(20.5)  # tokens are counted after they were generated
    assert bucket.wait(1) == pytest.approx(11)
    clock.now -= 5  # a clock that jumps back takes nothing away and gives nothing
    assert bucket.left == pytest.approx(-10)
    clock.now += 10_000
    assert bucket.left == 60


def test_a_client_is_held_to_its_share():
    clock = Clock()
    limits = Limits(requests_per_minute=6, tokens_per_minute=100, parallel=2)
    client = Client("a", limits, clock=clock)
    client.admit(2)
    with pytest.raises(RateLimited, match="2 requests at once"):
        client.admit(1)
    client.leave(2, tokens=150)
    with pytest.raises(RateLimited, match="100 tokens a minute") as caught:
        client.admit(1)
    assert caught.value.retry_seconds == 31
    clock.now += 31
    client.admit(2), client.leave(2, 0)
    client.admit(2), client.leave(2, 0)
    client.admit(2), client.leave(2, 0)
    with pytest.raises(RateLimited, match="6 requests a minute"):
        client.admit(2)
    assert client.open == 0
    assert client.headers()["x-ratelimit-limit-requests"] == "6"


@pytest.fixture(scope="module")
def limited():
    clients = Clients([
        ("alpha", Client("a", Limits(requests_per_minute=2), salt="a")),
        ("beta", Client("b", salt="b")),
    ])  # fmt: skip
    server = Running(build(reciter(), "reciter", ServeConfig(slots=2), clients))
    yield server
    server.stop()


def ask(server, key, **options):
    chat = server.client(key).chat.completions.with_raw_response
    return chat.create(model="reciter", messages=HI, temperature=0, **options)


def test_each_key_has_limits_of_its_own(limited):
    for left in ("1", "0"):
        assert ask(limited, "alpha").headers["x-ratelimit-remaining-requests"] == left
    with pytest.raises(openai.RateLimitError) as caught:
        ask(limited, "alpha")
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.type == "rate_limit_error"
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 30
    answer = ask(limited, "beta")
    assert answer.parse().choices[0].message.content == TEXT
    assert "x-ratelimit-limit-requests" not in answer.headers
    with pytest.raises(openai.AuthenticationError):
        ask(limited, "gamma")
    assert httpx.get(f"{limited.url}/metrics").status_code == 401  # deny by default
    assert httpx.get(f"{limited.url}/health").status_code == 200


def test_metrics_count_what_happened(limited):
    def read() -> dict[str, float]:
        text = httpx.get(f"{limited.url}/metrics", headers={"authorization": "Bearer beta"}).text
        lines = (line for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def of(name: str, **labels: str) -> float:
        more = "".join(f',{key}="{value}"' for key, value in labels.items())
        return after.get(f'vllm:{name}{{{more[1:]}{"," if more else ""}model_name="reciter"}}', 0.0)

    after = read()
    start = {name: of(name) for name in ("prompt_tokens_total", "generation_tokens_total")}
    stopped = of("request_success_total", finished_reason="stop")
    usage = ask(limited, "beta", n=2).parse().usage
    after = read()
    assert of("prompt_tokens_total") - start["prompt_tokens_total"] == usage.prompt_tokens
    made = of("generation_tokens_total") - start["generation_tokens_total"]
    assert made == usage.completion_tokens
    assert of("request_success_total", finished_reason="stop") == stopped + 2
    assert of("num_requests_running") == of("num_requests_waiting") == 0
    assert of("time_to_first_token_seconds_count") >= 2
    assert of("inter_token_latency_seconds_count") >= 2 * len(TEXT)


def test_limits_on_time_end_an_answer():
    slow = {"seconds_per_token": 0.05}
    with scripted("x" * 400, **slow) as server:
        service = server.app.state.service
        service.settings = ServeConfig(queue_seconds=30, answer_seconds=0.4)
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().chat.completions.create(model="fixture", messages=HI, temperature=0)
        assert caught.value.code == "timeout"
        assert caught.value.response.headers["x-should-retry"] == "false"
        service.settings = ServeConfig(queue_seconds=0.01)
        with pytest.raises(openai.InternalServerError) as caught:
            server.client().chat.completions.create(model="fixture", messages=HI, temperature=0)
        assert caught.value.code == "queue_timeout"
        assert int(caught.value.response.headers["retry-after"]) > 0
        assert service.idle  # the slots are free again


def test_a_second_question_reads_the_same_start_once():
    server = Running(build(reciter(), "reciter", ServeConfig(prefix_tokens=CONTEXT)))
    try:
        system = {"role": "system", "content": "s" * 1000}
        chat = server.client().chat.completions
        used = [
            chat.create(model="reciter", messages=[system, *HI], max_tokens=1).usage
            for _ in range(2)
        ]
    finally:
        server.stop()
    assert [one.prompt_tokens_details.cached_tokens for one in used] == [0, 31 * 32]


def test_a_missing_package_is_named_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("culm.serve.http.server.find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"culm\[grpc\]"):
        check_packages(ServeConfig(grpc_port=0))
    check_packages(ServeConfig())


def test_settings_come_from_a_file_and_the_command_line_has_the_last_word(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("secret\n")
    file = tmp_path / "serve.yaml"
    file.write_text(
        "port: 9000\nslots: 3\nkeys:\n"
        f"  - {{name: a, file: {tmp_path / 'key'}, limits: {{requests_per_minute: 5}}}}\n"
        "  - {name: b, env: KEY_OF_B}\n"
    )
    settings = read_settings(str(file), port=9001, slots=None)
    assert (settings.port, settings.slots) == (9001, 3)
    with pytest.raises(SettingError, match="no variable KEY_OF_B"):
        clients_of(settings.keys)
    monkeypatch.setenv("KEY_OF_B", "other")
    clients = clients_of(settings.keys, "third")
    assert clients.find(b"secret").limits.requests_per_minute == 5
    assert [clients.find(key) and clients.find(key).name for key in (b"other", b"third", b"")] == [
        "b", "api-key", None,
    ]  # fmt: skip
    assert len({clients.find(key).salt for key in (b"secret", b"other", b"third")}) == 3
    monkeypatch.setenv("KEY_OF_B", "secret")
    with pytest.raises(SettingError, match="the same key"):
        clients_of(settings.keys)
    for text, wrong in (("prot: 1", "port"), ("- 1", "mapping"), ("keys: [{name: a}]", "file")):
        file.write_text(text)
        with pytest.raises(SettingError, match=wrong):
            read_settings(str(file))
