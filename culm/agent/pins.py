"""Definitions of server tools at their first use, stored so that a change is noticed.

A server may change what a tool says or takes after it was approved. So the hash of each definition
is in a file next to that of the servers, and a change stops until a person has agreed to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from culm.agent.approval import Ask
from culm.agent.servers import ServerTool
from culm.agent.trace import digest
from culm.config import SettingError
from culm.files import read_json, write_json


def pins_file(servers: Path) -> Path:
    """Next to the file of the servers."""
    return servers.with_name(f"{servers.stem}.pins.json")


def check_pins(path: Path, tools: Sequence[ServerTool], ask: Ask | None) -> None:
    """Compare definitions with the file, and write what is new. A person reads each definition that
    was never used before, in full. ask: whether a change is right; None: there is nobody.

    Raises:
        SettingError: a definition has changed, or a known server has another tool, and nobody has
            agreed.
    """
    pins: dict[str, dict[str, str]] = read_json(path) if path.exists() else {}
    for server in dict.fromkeys(tool.server for tool in tools):
        own = [tool for tool in tools if tool.server == server]
        found = {tool.own: digest(definition(tool)) for tool in own}
        known = pins.get(server, {})
        fresh = [tool for tool in own if known.get(tool.own) != found[tool.own]]
        for tool in fresh:
            sys.stderr.write(f"{json.dumps(definition(tool), ensure_ascii=False, indent=1)}\n")
        changed = fresh if server in pins else []
        if changed and not _agreed(server, [tool.own for tool in changed], ask):
            raise SettingError(
                f"{path}: the definition of {changed[0].own} on the server {server} is new or has "
                "changed; start it in a terminal to agree, or remove the server from this file"
            )
        pins[server] = found
    write_json(path, pins)


def definition(tool: ServerTool) -> dict[str, object]:
    return {
        "name": tool.own, "description": tool.description, "parameters": dict(tool.parameters)
    }  # fmt: skip


def _agreed(server: str, changed: Sequence[str], ask: Ask | None) -> bool:
    if ask is None:
        return False
    said = ask(f"{', '.join(changed)} on the server {server} changed. Use it? [y]es, [n]o: ")
    return said.strip().lower() in ("y", "yes")
