"""Faults below the service: the engine fails, its thread ends, the model gives NaN."""

import asyncio
import json

import httpx2 as httpx
import openai
import pytest
import torch
from asking import ENDLESS, GREEDY, HI, collected, run, texts, until
from reciter import CONTEXT, TEXT, Running, reciter
from reciter import until as soon

from culm.serve import refusal
from culm.serve.clients import Client, Limits
from culm.serve.query import Query
from culm.serve.service import Service
from culm.serve.worker import FAULTS

ASK = {"model": "reciter", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
SCORED = {"model": "reciter", "prompt": "AB", "echo": True, "logprobs": 1, "max_tokens": 0}


@pytest.fixture
def server():
    running = Running(slots=2)
    yield running
    running.stop()


def fails_with(engine, error: type[BaseException]):
    """A step that fails where there is something to do."""

    def step() -> list:
        if engine.busy:
            raise error("no luck")
        return []

    return step


def status(server: Running, path: str) -> tuple[int, str]:
    answer = httpx.get(server.url + path)
    return answer.status_code, answer.json().get("error", {}).get("code", "")


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, torch.OutOfMemoryError])
def test_the_engine_goes_on_after_an_error(error, monkeypatch) -> None:
    async def story(service: Service) -> None:
        pieces = (await service.ask(ENDLESS)).pieces()
        await anext(pieces)
        with monkeypatch.context() as patch:
            engine = service.worker._engine
            patch.setattr(engine, "step", fails_with(engine, error))
            with pytest.raises(refusal.EngineFailed):
                async for _ in pieces:
                    pass
        assert service.ready
        assert await texts(service, Query("reciter", [HI], sampling=GREEDY)) == [TEXT]

    run(story)


def test_an_engine_that_fails_again_and_again_is_not_ready_until_it_works(server, monkeypatch):
    client = server.client()
    with monkeypatch.context() as patch:
        engine = server.worker._engine
        patch.setattr(engine, "step", fails_with(engine, RuntimeError))
        for _ in range(FAULTS):
            assert status(server, "/health/ready") == (200, "")
            with pytest.raises(openai.InternalServerError, match="its log says why"):
                client.chat.completions.create(**ASK)
        assert status(server, "/health/ready") == (503, "not_ready")
        assert status(server, "/health/live") == (200, "")
    assert client.chat.completions.create(**ASK).choices[0].message.content == TEXT
    assert status(server, "/health/ready") == (200, "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_is_seen_by_all(server, monkeypatch):
    client = server.client()
    stream = client.chat.completions.create(
        **ASK, stream=True, max_tokens=CONTEXT - 100, extra_body={"ignore_eos": True}
    )
    chunks = iter(stream)
    next(chunks)
    engine = server.worker._engine
    monkeypatch.setattr(engine, "step", fails_with(engine, SystemExit))
    with pytest.raises(openai.APIError, match="its log says why"):
        for _ in chunks:
            pass
    soon(lambda: not server.worker.thread.running)
    for path in ("/health", "/health/ready", "/health/live"):
        assert status(server, path) == (503, "engine_stopped")
    for ask in (
        lambda: client.chat.completions.create(**ASK),
        lambda: client.embeddings.create(model="reciter", input="x"),
        lambda: client.completions.create(**SCORED),
    ):
        with pytest.raises(openai.InternalServerError, match="must be restarted") as caught:
            ask()
        assert caught.value.code == "engine_stopped"
    assert server.worker.idle


def test_work_that_waits_for_a_thread_that_ends_is_told(monkeypatch) -> None:
    async def story(service: Service) -> None:
        def die() -> None:
            raise SystemExit

        with pytest.raises(refusal.EngineFailed):
            await service.worker.alone(die)
        with pytest.raises(refusal.EngineStopped):
            await service.worker.alone(die)

    run(story)


# -- NaN ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broken():
    """One row of the head is NaN, so that all probabilities are."""
    running = Running(slots=2)
    with torch.no_grad():
        running.app.state.service.model.model.head.weight[7] = float("nan")
    yield running
    running.stop()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", ASK),
        ("chat/completions", {**ASK, "temperature": 1, "logprobs": True, "top_logprobs": 5}),
        ("completions", {**SCORED, "max_tokens": 3}),
        ("completions", SCORED),
        ("responses", {"model": "reciter", "input": "x"}),
    ],
)
def test_nan_is_an_error_and_no_text(broken, path, body, stream):
    url = f"{broken.url}/v1/{path}"
    answer = httpx.post(url, json={**body, "stream": stream})
    assert "NaN" not in answer.text
    if stream:
        (*_, last) = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
        error = json.loads(last)["error"]
    else:
        assert answer.status_code == 500
        assert answer.headers["x-should-retry"] == "false"
        error = answer.json()["error"]
    assert error["code"] == "invalid_numbers"
    soon(lambda: broken.worker.idle and not broken.worker._engine.busy)


def test_nan_in_the_weights_shows_in_health(broken):
    for _ in range(FAULTS):
        httpx.post(f"{broken.url}/v1/chat/completions", json=ASK)
    assert status(broken, "/health/ready") == (503, "not_ready")


def test_vectors_of_nan_are_an_error():
    model = reciter()
    with torch.no_grad():
        model.model.embed.weight[65] = float("nan")

    async def story(service: Service) -> None:
        with pytest.raises(refusal.NotFinite):
            await service.embed(["xAx"], "reciter")
        assert (await service.embed(["xyz"], "reciter")).tokens == 3

    async def whole() -> None:
        service = Service(model, "reciter")
        service.start()
        try:
            await asyncio.wait_for(story(service), 30)
        finally:
            await service.stop()

    asyncio.run(whole())


def test_nan_in_one_row_leaves_the_others_alone() -> None:
    """The rows share a step; only what reads the broken id ends."""

    async def story(service: Service) -> None:
        with torch.no_grad():
            service.model.model.embed.weight[200] = float("nan")
        good = asyncio.ensure_future(texts(service, Query("reciter", [HI], sampling=GREEDY)))
        with pytest.raises(refusal.NotFinite):
            await texts(service, Query("reciter", [[200]], 5, GREEDY))
        assert await good == [TEXT]
        assert service.ready
        text = service.metrics.text().decode()
        assert 'failed_requests_total{model_name="reciter",reason="NotFinite"} 1.0' in text

    run(story)


# -- vectors wait in the queue of the engine ------------------------------------------------------


def test_vectors_count_as_a_request_and_end_with_their_client() -> None:
    async def story(service: Service) -> None:
        client = Client("a", Limits(parallel=1))
        long = asyncio.ensure_future(service.embed([[65] * 2000] * 2000, "reciter", client))
        await until(lambda: service.worker.open == 1)
        with pytest.raises(refusal.RateLimited):
            await service.embed(["x"], "reciter", client)
        assert await texts(service, Query("reciter", [HI], sampling=GREEDY)) == [TEXT]
        assert not long.done()  # answers do not wait for it
        long.cancel()
        await asyncio.wait([long])
        await until(lambda: service.idle and not service.worker.thread.readings)
        assert client.open == 0

    run(story)


def test_texts_that_become_tokens_have_a_place(monkeypatch) -> None:
    """Otherwise many clients at once would all be encoded, and then most of them refused."""

    async def story(service: Service) -> None:
        encoded, encode = [], service.model.prompt_ids
        counted = lambda text, specials: encoded.append(text) or encode(text, specials)  # noqa: E731
        monkeypatch.setattr(service.model, "prompt_ids", counted)
        many = [texts(service, Query("reciter", ["A"], 1, GREEDY)) for _ in range(5)]
        done = await asyncio.gather(*many, return_exceptions=True)
        assert [type(one) for one in done] == [list, list, *[refusal.Overloaded] * 3]
        assert len(encoded) == 2
        assert service.worker.open == 0
        assert (await service.embed(["xyz"], "reciter")).tokens == 3
        assert (await service.score([65, 66])) != ()
        assert (
            'vllm:prompt_tokens_total{model_name="reciter"} 7.0' in service.metrics.text().decode()
        )

    run(story, slots=1, waiting=1)


def test_too_many_vectors_are_refused_and_counted() -> None:
    async def story(service: Service) -> None:
        many = [service.embed([[65] * 2000] * 50, "reciter") for _ in range(3)]
        waiting = [asyncio.ensure_future(one) for one in many]
        await until(lambda: service.worker.open == 2)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [type(one.exception()) for one in done] == [refusal.Overloaded]
        for name, kind in (("gpt-5", "UnknownModel"), ("reciter", "Overloaded")):
            with pytest.raises(getattr(refusal, kind)):
                await service.embed(["x"], name)
        with pytest.raises(refusal.Overloaded):
            await service.score([65, 66])
        text = service.metrics.text().decode()
        assert 'refused_requests_total{model_name="reciter",reason="Overloaded"} 3.0' in text
        assert 'refused_requests_total{model_name="reciter",reason="UnknownModel"} 1.0' in text
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)

    run(story, slots=1, waiting=1)


def test_a_client_that_leaves_its_vectors_frees_its_place(server):
    body = json.dumps({"model": "reciter", "input": [[65] * 2000] * 400}).encode()
    with server.sent("/v1/embeddings", body):
        soon(lambda: server.worker.open == 1)
    soon(lambda: server.worker.idle, 3)


def test_preemptions_are_counted() -> None:
    async def story(service: Service) -> None:
        slow = (await service.ask(ENDLESS)).pieces()
        await anext(slow)
        first = Client("first", Limits(priority=1))
        await collected(await service.ask(Query("reciter", [HI], 5, GREEDY, client=first)))
        text = service.metrics.text().decode()
        assert 'vllm:num_preemptions_total{model_name="reciter"} 1.0' in text
        await slow.aclose()

    run(story, slots=1)


def test_a_short_text_does_not_wait_for_all_of_many() -> None:
    async def story(service: Service) -> None:
        many = asyncio.ensure_future(service.embed([[65] * 200] * 2000, "reciter"))
        await until(lambda: service.worker.open == 1)
        await service.embed(["x"], "reciter")
        assert not many.done()
        many.cancel()
        await asyncio.wait([many])

    run(story)
