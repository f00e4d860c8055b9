"""What the service passes on of who asks: whose prompts are found, and who is served first."""

import asyncio
import copy
from dataclasses import replace

import pytest
import torch
from asking import ENDLESS, GREEDY, HI, collected, run, texts
from reciter import TEXT

from culm.serve.clients import Client, Limits
from culm.serve.query import Query
from culm.serve.refusal import RateLimited
from culm.serve.service import Service

A = Client("a", salt="a")
LONG = Query(
    "reciter",
    [[65] * 100, [66] * 70, [65] * 99 + [67]],
    3,
    GREEDY,
    choices=2,
    client=Client("a", salt="a"),
)


def test_a_client_finds_its_own_prompts() -> None:
    async def story(service: Service) -> None:
        counts = []
        for query in (LONG, LONG, replace(LONG, client=Client("b", salt="b"))):
            answer = await service.ask(query)
            await collected(answer)
            counts.append(answer.account.cached_tokens)
        assert counts[1] == 96 + 64 + 96  # the choices of a prompt count once
        assert counts[2] == counts[0] in (0, 96)  # the third prompt begins like the first

    run(story, prefix_tokens=1024)


def test_new_weights_read_prompts_again() -> None:
    async def story(service: Service) -> None:
        assert await texts(service, LONG) == ["BCD", "BCD", "CDE", "CDE", "DEF", "DEF"]
        model = copy.deepcopy(service.model.model)
        with torch.no_grad():
            model.head.weight.copy_(model.head.weight.roll(1, 0))
        await service.reload(lambda: (model, service.model.tokenizer))
        answer = await service.ask(replace(LONG, prompts=LONG.prompts[:1]))
        found = await collected(answer)
        assert "".join(piece.text for piece in found[0]) == "CEG"
        assert answer.account.cached_tokens == 0

    run(story, prefix_tokens=1024)


def test_a_higher_priority_takes_the_slot() -> None:
    async def story(service: Service) -> None:
        first = Client("first", Limits(priority=1))
        endless = await service.ask(ENDLESS)
        pieces = endless.pieces()
        assert await anext(pieces)
        assert await texts(service, Query("reciter", [HI], 100, GREEDY, client=first)) == [TEXT]
        assert not service.idle  # the other goes on
        assert await anext(pieces)
        await pieces.aclose()

    run(story, slots=1)


def test_a_client_with_one_query_does_not_wait_for_all_of_another() -> None:
    async def story(service: Service) -> None:
        ended: list[str] = []

        async def ask(client: str) -> None:
            await texts(service, Query("reciter", [HI], 20, GREEDY, client=Client(client)))
            ended.append(client)

        async with asyncio.TaskGroup() as group:
            for client in "aaaaab":
                group.create_task(ask(client))
        assert ended.index("b") <= 2

    run(story, slots=1)


def test_scores_and_vectors_count_for_their_client_too() -> None:
    async def story(service: Service) -> None:
        for ask in (
            lambda client: service.score([65, 66], client=client),
            lambda client: service.embed(["AB"], "reciter", client),
        ):
            client = Client("a", Limits(requests_per_minute=1))
            await ask(client)
            with pytest.raises(RateLimited):
                await ask(client)
            assert client.open == 0

    run(story)
