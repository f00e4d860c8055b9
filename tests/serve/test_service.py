"""The service asked directly, without HTTP: what any transport builds on."""

import asyncio
import subprocess
import sys
from dataclasses import replace

import pytest
from asking import BIASED, ENDLESS, GREEDY, HI, collected, run, texts, until
from reciter import CONTEXT, TEXT

from culm.engine.request import Event, Request
from culm.engine.sampling import Sampling
from culm.serve import refusal
from culm.serve.account import Account
from culm.serve.answer import AnswerStream
from culm.serve.clients import Client, Clients, Share
from culm.serve.query import ChatPrompt, Query
from culm.serve.service import Service
from culm.serve.worker import Job, WorkerTask


def test_an_answer_comes_in_pieces() -> None:
    async def story(service: Service) -> None:
        answer = await service.ask(Query("reciter", [HI], sampling=GREEDY))
        pieces = [piece async for piece in answer.pieces() if piece]
        assert "".join(piece.text for piece in pieces) == TEXT
        assert len(pieces) > 20
        assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
        prompt = service.model.tokenizer.chat.prompt(HI.messages)
        assert answer.account.prompt_tokens == len(prompt)
        assert answer.account.generated_tokens == len(TEXT.encode()) + 1  # the end of the turn too
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
        assert (plain.account.prompt_tokens, special.account.prompt_tokens) == (len(text), 5)
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
            await service.ask(Query("reciter", [ChatPrompt([said])]))
        said[key] = []
        (await service.ask(Query("reciter", [ChatPrompt([said])]))).leave()

    run(story)


@pytest.mark.parametrize("ticks", range(6))
def test_a_reader_is_cancelled_though_a_token_arrives_at_the_same_time(ticks: int) -> None:
    async def story(service: Service) -> None:
        job = Job([WorkerTask(request=Request((65,), CONTEXT - 100))])
        account = Account(service.metrics, Share(Client(), 1), service.settings, [[65]], 1)
        answer = AnswerStream(service.worker, job, service.model.tokenizer, (), (), account)
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


def test_an_answer_that_nobody_reads_does_not_fill_the_memory(monkeypatch) -> None:
    """Of any transport: gRPC waits for its client longer than tokens take."""
    monkeypatch.setattr("culm.serve.worker.UNREAD", 50)

    async def story(service: Service) -> None:
        answer = await service.ask(ENDLESS)
        await until(lambda: service.idle and not service.worker._engine.busy)
        read = []

        async def rest() -> None:
            async for piece in answer.pieces():
                read.append(piece)

        with pytest.raises(refusal.NotRead):
            await rest()
        assert 0 < len(read) <= 50
        assert await texts(service, Query("reciter", [HI], sampling=GREEDY)) == [TEXT]

    run(story)


def test_services_share_no_client() -> None:
    asked = Query("reciter", [HI]), Query("reciter", [HI])
    assert asked[0].client is not asked[1].client
    assert Clients().anyone is not Clients().anyone


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


def test_work_of_the_engine_alone_is_done_although_the_service_stops() -> None:
    async def story(service: Service) -> None:
        done: list[bool] = []
        waiting = asyncio.ensure_future(service.worker.alone(lambda: done.append(True)))
        await asyncio.sleep(0)
        await service.worker.stop()
        await asyncio.wait_for(waiting, 10)
        assert done

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
