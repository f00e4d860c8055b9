"""`culm mcp`: a model as tools of the Model Context Protocol, over standard input and output."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from culm.agent.approval import rules_of
from culm.config import SettingError
from culm.serve.service import Service
from culm.verbs.serve import Options, check_source, loaded_model


def serve_tools(
    model: str,
    fixture: str | None,
    options: Options,
    folder: str | None = None,
    approve: Sequence[str] = (),
    descriptions: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Serve until standard input ends. Nothing but messages of the protocol is written to standard
    output.

    folder: where Culm's own commands are tools too. approve: who is asked about them, as rules of
    `culm agent`. descriptions: of the commands.

    Raises:
        SettingError: there is neither a model nor a script nor a folder, or both of the first two,
            or one cannot be used; or the package `mcp` is not installed.
    """
    rules = rules_of(approve)
    if folder is None or model or fixture:
        check_source(model, fixture)
    if folder is not None and not Path(folder).is_dir():
        raise SettingError(f"commands: {folder} is not a folder")
    try:
        from culm.serve.commands import Commands
        from culm.serve.mcp import server_of
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "mcp":
            raise
        raise SettingError("culm mcp: it needs mcp: pip install 'culm[mcp]'") from None
    commands = None if folder is None else Commands(Path(folder), descriptions, rules)
    service = None
    if model or fixture:
        loaded, name, _ = loaded_model(model, fixture, options)
        service = Service(loaded, name)

    async def serve() -> None:
        if service is not None:
            service.start()
        try:
            await server_of(service, commands).run_stdio_async()
        finally:
            if commands is not None:
                await commands.close()
            if service is not None:
                await service.stop()

    asyncio.run(serve())


def usage_of(command: Any) -> str:
    """What a command does and takes, as text for a language model. command: of click."""
    lines = [command.help.strip()]
    for one in command.params:
        option = one.param_type_name == "option"
        name = "/".join(one.opts) if option else one.name
        lines.append(f"{name}: {getattr(one, 'help', None) or ''}")
    return "\n".join(lines)
