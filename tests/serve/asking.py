"""A service of the reciter that tests ask directly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from reciter import CONTEXT, reciter

from culm.engine.sampling import Sampling
from culm.serve.answer import AnswerStream, TextPiece
from culm.serve.query import ChatPrompt, Query
from culm.serve.service import Service
from culm.serve.settings import ServeConfig

HI = ChatPrompt([{"role": "user", "content": "hi"}])
GREEDY = Sampling(temperature=0)
BIASED = Sampling(bias=((-1, 1.0),))
ENDLESS = Query("reciter", [HI], CONTEXT - 100, GREEDY, ignore_end=True)


@asynccontextmanager
async def started(
    slots: int = 3, waiting: int = 8, prefix_tokens: int = 0
) -> AsyncIterator[Service]:
    service = Service(
        reciter(), "reciter", ServeConfig(slots=slots, waiting=waiting, prefix_tokens=prefix_tokens)
    )
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
