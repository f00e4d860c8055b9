"""`culm mcp`: a model as tools of the Model Context Protocol, over standard input and output."""

from __future__ import annotations

import asyncio

from culm.config import SettingError
from culm.serve.service import Service
from culm.verbs.serve import Options, check_source, loaded_model


def serve_tools(model: str, fixture: str | None, options: Options) -> None:
    """Serve until standard input ends. Nothing but messages of the protocol is written to standard
    output.

    Raises:
        SettingError: there is neither a model nor a script, or both, or one cannot be used; or the
            package `mcp` is not installed.
    """
    check_source(model, fixture)
    try:
        from culm.serve.mcp import server_of
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "mcp":
            raise
        raise SettingError("culm mcp: it needs mcp: pip install 'culm[mcp]'") from None
    loaded, name, _ = loaded_model(model, fixture, options)

    async def serve() -> None:
        service = Service(loaded, name)
        service.start()
        try:
            await server_of(service).run_stdio_async()
        finally:
            await service.stop()

    asyncio.run(serve())
