"""A small MCP server over pipes, for tests. argv: the description of its first tool."""

import asyncio
import os
import sys
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver import Elicit, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import BaseModel

server = MCPServer("notes", version="1")


@server.tool(description=sys.argv[1])
def double(number: int) -> int:
    return 2 * number


@server.tool(name="bad.name")
def variables() -> list[str]:
    """Names of environment variables."""
    return sorted(os.environ)


@server.tool()
async def sleep() -> str:
    """Takes too long."""
    await asyncio.sleep(60)
    return "done"


@server.tool()
def fail() -> str:
    """Fails."""
    raise ToolError("it is broken")


class Table(BaseModel):
    people: int
    smoking: bool = False
    name: str


def table() -> Elicit[Table]:
    return Elicit("Which\x1b table?", Table)


@server.tool()
def book(chosen: Annotated[Table, Resolve(table)]) -> str:
    """Asks for a name and a number of people."""
    return chosen.model_dump_json()


if __name__ == "__main__":
    server.run("stdio")
