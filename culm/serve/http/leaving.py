"""Clients that leave before their answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


async def unless_gone(http: Request, work: Awaitable[Response]) -> Response:
    """The answer, unless the client disconnects first: cancelling the work then frees its slot.

    A stream is cancelled by its response; this covers only the wait for a complete answer.
    """
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        return JSONResponse(None, 499)  # the client is gone
    finally:
        for task in (answer, gone):
            task.cancel()


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
