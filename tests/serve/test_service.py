"""The service asked directly, without HTTP: what any transport builds on."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from reciter import CONTEXT, TEXT, reciter

from culm.engine.request import Event, Request
from culm.engine.sampling import Sampling
from culm.serve import refusal
from culm.serve.answer import AnswerStream, TextPiece
from culm.serve.query import Dialogue, Query
from culm.serve.service import Service
from culm.serve.worker import Job, Task

HI = Dialogue([{"role": "user", "content": "hi"}])
GREEDY = Sampling(temperature=0)
BIASED = Sampling(bias=((-1, 1.0),))
ENDLESS = Query("reciter", [HI], CONTEXT - 100, GREEDY, ignore_end=True)


@asynccontextmanager
async def started(slots: int = 3, waiting: int = 8) -> AsyncIterator[Service]:
    service = Service(reciter(), "reciter", slots, waiting)
    service.start()
    try:
        yield service
    finally:
        await service.stop()


def run(story: Callable[[Service], Awaitable[None]], **settings: int) -> None:
    """Tell a story of one service in an event loop of its own."""

    async def whole() -> None:
        async with started(**settings) as service:
            await asyncio.wait_for(story(service), 30)

    asyncio.run(whole())


async def collected(answer: AnswerStream) -> dict[int, list[TextPiece]]:
    """Pieces by choice."""
    found: dict[int, list[TextPiece]] = {}
    async for piece in answer.pieces():
        if piece is not None:
            found.setdefault(piece.choice, []).append(piece)
    return found


async def texts(service: Service, query: Query) -> list[str]:
    found = await collected(await service.ask(query))
    return ["".join(piece.text for piece in found[choice]) for choice in sorted(found)]


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.01)


def test_an_answer_comes_in_pieces() -> None:
    async def story(service: Service) -> None:
        answer = await service.ask(Query("reciter", [HI], sampling=GREEDY))
        pieces = [piece async for piece in answer.pieces() if piece]
        assert "".join(piece.text for piece in pieces) == TEXT
        assert len(pieces) > 20
        assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
        prompt = service.model.tokenizer.chat.prompt(HI.messages)
        assert answer.prompt_tokens == len(prompt)
        assert answer.generated_tokens == len(TEXT.encode()) + 1  # the end of the turn too
        assert service.idle

    run(story)


def test_stop_strings_limits_and_stop_ids_end_a_text() -> None:
    async def story(service: Service) -> None:
        for change, text, finish in (
            ({"stop": ("nothing", TEXT[5:8])}, TEXT[:5], "stop"),
            ({"max_tokens": 4}, TEXT[:4], "length"),
            ({"stop_ids": (ord("G"),)}, TEXT[:6], "stop"),
        ):
            found = await collected(
                await service.ask(Query("reciter", [HI], sampling=GREEDY, **change))
            )
            assert "".join(piece.text for piece in found[0]) == text
            assert found[0][-1].finish == finish

    run(story)


def test_choices_of_several_prompts_stand_in_order() -> None:
    async def story(service: Service) -> None:
        query = Query("reciter", ["A", [75]], 2, GREEDY, choices=2)
        assert await texts(service, query) == ["BC", "BC", "LM", "LM"]
        hot = Query("reciter", [HI], 20, Sampling(temperature=3.0, seed=5), choices=3)
        several = await texts(service, hot)
        assert len(set(several)) == 3
        alone = Query("reciter", [HI], 20, Sampling(temperature=3.0, seed=6))
        assert await texts(service, alone) == several[1:2]  # choice j samples with seed + j

    run(story)


def test_tokens_come_with_their_scores() -> None:
    async def story(service: Service) -> None:
        found = await collected(await service.ask(Query("reciter", ["A"], 3, GREEDY, logprobs=2)))
        scores = [score for piece in found[0] for score in piece.scores]
        assert bytes(score.token for score in scores) == b"BCD"
        for score in scores:
            assert -0.2 < score.logprob < 0
            assert len(score.top) == 2
            assert score.top[0] == (score.token, pytest.approx(score.logprob))

    run(story)


@pytest.mark.parametrize("limit", [0, 1])
def test_a_prompt_is_scored_where_it_is_echoed(limit: int) -> None:
    async def story(service: Service) -> None:
        query = Query("reciter", [[65, 66, 67]], limit, GREEDY, logprobs=1, echo=True)
        found = await collected(await service.ask(query))
        assert "".join(piece.text for piece in found[0]) == "ABCD"[: 3 + limit]
        assert found[0][-1].finish == "length"
        scores = found[0][0].scores
        assert [score.token for score in scores] == [65, 66, 67]
        assert scores[0].logprob is None
        exact = service.model.logprobs([65, 66, 67]).tolist()
        assert [score.logprob for score in scores[1:]] == pytest.approx(exact, abs=1e-5)
        assert await service.score([65, 66, 67], ranks=1) == scores

    run(story)


def test_every_generated_token_has_a_score() -> None:
    """The one that ends the turn too; tokens that a stop string removed have none."""

    async def story(service: Service) -> None:
        everything = Query("reciter", [HI], sampling=GREEDY, logprobs=0)
        answer = await service.ask(everything)
        found = await collected(answer)
        scores = [score for piece in found[0] for score in piece.scores]
        assert len(scores) == answer.generated_tokens == len(TEXT.encode()) + 1
        assert scores[-1].token == service.model.tokenizer.end_of_turn
        stopped = replace(everything, stop=(TEXT[5:8],))
        found = await collected(await service.ask(stopped))
        assert bytes(s.token for piece in found[0] for s in piece.scores) == TEXT[:5].encode()

    run(story)


def test_a_stop_token_of_an_evaluation_has_a_score() -> None:
    """A client cuts its scores at the end: one entry too few would shift all."""

    async def story(service: Service) -> None:
        ids = [*TEXT[-3:].encode()]  # the end of the turn follows
        query = Query("reciter", [ids], 1, GREEDY, logprobs=1, echo=True)
        found = await collected(await service.ask(query))
        scores = [score for piece in found[0] for score in piece.scores]
        assert len(scores) == len(ids) + 1
        exact = service.worker._engine.score([ids])[0].tolist()
        assert [s.logprob for s in scores[1:-1]] == pytest.approx(exact, abs=1e-5)
        assert scores[-1].token == service.model.tokenizer.end_of_turn
        assert found[0][-1].finish == "stop"

    run(story)


def test_long_prompts_are_scored_in_steps_between_those_of_the_others() -> None:
    """Scoring counts as a request, shares the engine, and ends with its client."""

    async def story(service: Service) -> None:
        ids = tuple(b"ABC" * 600)
        score = Query("reciter", [ids], 0, GREEDY, logprobs=0, echo=True)
        answers = [await service.ask(score) for _ in range(service.worker.capacity - 1)]
        stream = await service.ask(ENDLESS)
        assert service.worker.open == service.worker.capacity
        for query in (score, ENDLESS):
            with pytest.raises(refusal.Overloaded):
                await service.ask(query)
        with pytest.raises(refusal.Overloaded):
            await service.score(ids)
        pieces = stream.pieces()
        for _ in range(5):
            await anext(pieces)
        assert service.worker.open == service.worker.capacity  # none has been read to its end
        for answer in answers[1:]:
            answer.leave()
        await pieces.aclose()
        (piece,) = (await collected(answers[0]))[0]
        exact = service.model.logprobs(ids).tolist()
        assert [s.logprob for s in piece.scores[1:]] == pytest.approx(exact, abs=1e-4)
        await until(lambda: not service.worker._readings)
        assert service.idle

    run(story)


def test_choices_of_an_echoed_prompt_wait_for_its_scores() -> None:
    async def story(service: Service) -> None:
        query = Query("reciter", ["AB", "KLM"], 2, GREEDY, choices=2, logprobs=0, echo=True)
        found = await collected(await service.ask(query))
        texts = ["ABCD", "ABCD", "KLMNO", "KLMNO"]
        for choice, text in enumerate(texts):
            assert "".join(piece.text for piece in found[choice]) == text
            assert len([s for piece in found[choice] for s in piece.scores]) == len(text)
            assert found[choice][-1].finish == "length"

    run(story)


def test_what_cannot_be_scored_disturbs_nobody() -> None:
    async def story(service: Service) -> None:
        for ids, adapter in (([], None), ([9999], None), ([65], "nobody")):
            with pytest.raises(refusal.InvalidRequest):
                await service.score(ids, adapter=adapter)
        assert service.idle

    run(story)


def test_a_limit_above_the_context_ends_with_the_context() -> None:
    async def story(service: Service) -> None:
        prompt = "A" * (CONTEXT - 3)
        query = Query("reciter", [prompt], 100_000, GREEDY, ignore_end=True)
        found = await collected(await service.ask(query))
        assert "".join(piece.text for piece in found[0]) == "BCD"
        assert found[0][-1].finish == "length"

    run(story)


def test_names_of_special_tokens_in_a_prompt() -> None:
    """Letters, unless the query asks for the tokens."""

    async def story(service: Service) -> None:
        text = "<|user|>hi<|end|><|assistant|>"
        query = Query("reciter", [text], sampling=GREEDY, max_tokens=4)
        plain, special = (
            await service.ask(query),
            await service.ask(replace(query, parse_special=True)),
        )
        assert (plain.prompt_tokens, special.prompt_tokens) == (len(text), 5)
        found = await collected(special)
        assert "".join(piece.text for piece in found[0]) == TEXT[:4]

    run(story)


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content"])
def test_what_a_template_would_drop_is_refused(key: str) -> None:
    async def story(service: Service) -> None:
        said = {"role": "assistant", "content": "", key: [{"function": {"name": "clock"}}]}
        if key in (service.model.tokenizer.template or ""):
            return
        with pytest.raises(refusal.InvalidRequest, match=rf"messages\[0\]: .*{key}"):
            await service.ask(Query("reciter", [Dialogue([said])]))
        said[key] = []
        (await service.ask(Query("reciter", [Dialogue([said])]))).leave()

    run(story)


@pytest.mark.parametrize("ticks", range(6))
def test_a_reader_is_cancelled_though_a_token_arrives_at_the_same_time(ticks: int) -> None:
    async def story(service: Service) -> None:
        job = Job([Task(request=Request((65,), CONTEXT - 100))])
        answer = AnswerStream(service.worker, job, service.model.tokenizer)
        task = asyncio.ensure_future(collected(answer))
        await asyncio.sleep(0.01)  # it waits for the first token
        job.queue.put_nowait((0, Event(0, 65, 0.0)))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 2)
        assert not job.open

    run(story)


def test_leaving_early_frees_the_slot() -> None:
    async def story(service: Service) -> None:
        pieces = (await service.ask(ENDLESS)).pieces()
        await anext(pieces)
        assert not service.idle
        await pieces.aclose()
        assert service.idle
        await until(lambda: not service.worker._engine.busy)
        unread = await service.ask(ENDLESS)
        unread.leave()
        assert service.idle
        assert await texts(service, Query("reciter", [HI], sampling=GREEDY)) == [TEXT]

    run(story, slots=1)


def test_a_full_queue_refuses_and_recovers() -> None:
    async def story(service: Service) -> None:
        answers = [await service.ask(ENDLESS) for _ in range(3)]
        with pytest.raises(refusal.Overloaded) as caught:
            await service.ask(ENDLESS)
        assert caught.value.retry_seconds == 2
        answers[0].leave()
        service.check_open(1)
        with pytest.raises(refusal.Overloaded):
            service.check_open(2)

    run(story, slots=1, waiting=2)


def test_shutting_down_lets_answers_finish_and_then_ends_them() -> None:
    async def story(service: Service) -> None:
        short = (await service.ask(Query("reciter", [HI], sampling=GREEDY))).pieces()
        endless = (await service.ask(ENDLESS)).pieces()
        first = await anext(short)
        await anext(endless)
        service.drain()
        with pytest.raises(refusal.ShuttingDown):
            await service.ask(ENDLESS)
        rest = [piece.text async for piece in short if piece]
        assert first.text + "".join(rest) == TEXT
        assert not service.idle
        service.end_all()
        with pytest.raises(refusal.ShuttingDown):
            async for _ in endless:
                pass
        assert service.idle

    run(story)


def test_an_error_of_the_engine_ends_its_requests_only(monkeypatch, caplog) -> None:
    async def story(service: Service) -> None:
        pieces = (await service.ask(ENDLESS)).pieces()
        await anext(pieces)
        with monkeypatch.context() as patch:
            patch.setattr(service.worker._engine, "step", lambda: 1 / 0)
            with pytest.raises(refusal.EngineFailed):
                async for _ in pieces:
                    pass
        assert await texts(service, Query("reciter", [HI], sampling=GREEDY)) == [TEXT]

    run(story)


@pytest.mark.parametrize(
    ("query", "kind", "field"),
    [
        (Query("gpt-5", [HI]), refusal.UnknownModel, None),
        (Query("reciter", ["x" * CONTEXT], 1), refusal.ContextTooShort, None),
        (Query("reciter", ["x" * CONTEXT]), refusal.ContextTooShort, None),
        (Query("reciter", [HI], choices=99), refusal.InvalidRequest, "choices"),
        (Query("reciter", []), refusal.InvalidRequest, "choices"),
        (Query("reciter", ["x"], 0), refusal.InvalidRequest, "max_tokens"),
        (Query("reciter", ["x"], -1), refusal.InvalidRequest, None),
        (Query("reciter", [[9999]]), refusal.InvalidRequest, "prompt"),
        (Query("reciter", [HI], stop=("",)), refusal.InvalidRequest, "stop"),
        (Query("reciter", [HI], stop_ids=(9999,)), refusal.InvalidRequest, "stop_ids"),
        (Query("reciter", [HI], sampling=BIASED), refusal.InvalidRequest, "bias"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused(query: Query, kind: type, field: str | None) -> None:
    async def story(service: Service) -> None:
        with pytest.raises(kind) as caught:
            await service.ask(query)
        assert type(caught.value) is kind
        assert str(caught.value)
        if field:
            assert caught.value.field == field
        assert service.idle

    run(story)


def test_the_service_needs_no_web_framework() -> None:
    code = (
        "import sys, culm.serve.service, culm.serve.terminal;"
        "print([m for m in ('fastapi', 'starlette', 'uvicorn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
