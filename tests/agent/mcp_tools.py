"""A small MCP server over pipes, for tests. argv: the description of its first tool."""

import asyncio
import os
import sys

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

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


if __name__ == "__main__":
    server.run("stdio")
