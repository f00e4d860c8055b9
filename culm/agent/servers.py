"""Tools of MCP servers (https://modelcontextprotocol.io): each has one client.

Commands come from this file alone, never from a model. Needs the extra `agent`.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from culm.agent.approval import Person
from culm.agent.questions import QUESTIONS, Questions
from culm.agent.server_settings import ServerConfig, filled
from culm.config import SettingError
from culm.tools.deadline import Deadline
from culm.tools.function import HIDDEN, ToolError

CLOSE = 10.0  # seconds for a server to end
CONNECT = 30.0  # seconds to start a server and list its tools
PAGES = 100  # of a list of tools
LONGEST = 64  # characters of a name, as OpenAI's API has it


@dataclass(frozen=True)
class ServerTool:
    """A `ToolFunction` on a server. own: its name there."""

    server: str
    own: str
    name: str
    description: str
    parameters: Mapping[str, Any]
    connection: ServerConnection

    def run(self, arguments: Mapping[str, Any], seconds: float) -> str:
        return self.connection.call(self.own, arguments, seconds)


class Servers:
    """The servers of a file as they run; a context manager. person: whom a server may ask in the
    middle of a call; None: nobody, and servers know it.

    Raises:
        SettingError: the package `mcp` is not installed; on entering: a server does not start.
    """

    def __init__(self, servers: Mapping[str, ServerConfig], person: Person | None = None) -> None:
        try:
            import anyio.from_thread
            import mcp  # noqa: F401
        except ImportError:
            raise SettingError("MCP servers need mcp: pip install 'culm[agent]'") from None
        self._portal = anyio.from_thread.start_blocking_portal()
        self._servers, self._person, self._stack = servers, person, ExitStack()
        self.functions: list[ServerTool] = []

    def __enter__(self) -> Servers:
        portal = self._stack.enter_context(self._portal)
        questions = None if self._person is None else Questions(self._person)
        try:
            for name, config in self._servers.items():
                connection = ServerConnection(name, config, portal, questions)
                self._stack.callback(connection.close)
                self.functions += connection.open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class ServerConnection:
    """One server. Its client lives in one task of the event loop of `portal`."""

    def __init__(
        self, name: str, config: ServerConfig, portal: Any, questions: Questions | None
    ) -> None:
        self._name, self._config, self._portal = name, config, portal
        self._paused = None if questions is None else questions.person.seconds
        self._questions, self._may_ask = questions, 0
        self._client: Any = None
        self._leave: Any = None
        self._task: Any = None

    def open(self) -> Sequence[ServerTool]:
        """Start it, and list its tools."""
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            try:
                self._task, tools = self._portal.start_task(self._serve, said)
            except BaseExceptionGroup as group:
                raise self._not_started(_first(group), said) from None
            except (Exception, CancelledError) as error:
                raise self._not_started(error, said) from None
        return [
            ServerTool(
                self._name, tool.name, _named(self._name, tool.name),
                _clean(tool.description or tool.title or ""), _clean(tool.input_schema), self,
            )
            for tool in tools
        ]  # fmt: skip

    def call(self, tool: str, arguments: Mapping[str, Any], seconds: float) -> str:
        """The text of a result. seconds: a limit; time in which a person answers does
        not count.

        Raises:
            ToolError: the server says so, or gives none in time.
        """
        self._may_ask = QUESTIONS
        future = self._portal.start_task_soon(self._client.call_tool, tool, dict(arguments))
        try:
            found = Deadline(seconds, self._paused).result(future)
        except TimeoutError:
            future.cancel()
            raise ToolError(f"{self._name} timed out: no result within {seconds:g} s") from None
        except (Exception, CancelledError) as error:
            raise ToolError(f"{self._name}: {str(error)[:500]}") from None
        finally:
            self._may_ask = 0
        text = _text_of(found)
        if found.is_error:
            raise ToolError(text)
        return text

    def _takes_question(self) -> bool:
        """Whether the server may ask: in a call, and not without end."""
        self._may_ask -= 1
        return self._may_ask >= 0

    def close(self) -> None:
        if self._task is not None:
            self._portal.call(self._leave.set)
            try:
                self._task.exception(CLOSE)
            except TimeoutError:
                self._task.cancel()

    async def _serve(self, said: Any, *, task_status: Any) -> None:
        import anyio

        self._leave = anyio.Event()
        async with anyio.create_task_group():
            with anyio.fail_after(CONNECT) as limit:
                async with self._http() as http, self._new_client(said, http) as client:
                    self._client = client
                    tools = await _listed(client)
                    limit.deadline = math.inf
                    task_status.started(tools)
                    await self._leave.wait()

    def _new_client(self, said: Any, http: Any) -> Any:
        from mcp import Client

        asks = self._questions
        answer = None if asks is None else asks.of(self._name, self._takes_question)
        return Client(self._transport(said, http), elicitation_callback=answer)

    def _http(self) -> Any:
        """The HTTP client of a server at a URL, with its headers."""
        from contextlib import nullcontext

        if self._config.url is None:
            return nullcontext()
        from mcp.shared._httpx_utils import create_mcp_http_client

        headers = filled(self._config.headers, f"{self._name}.headers")
        return create_mcp_http_client(headers=headers)

    def _transport(self, said: Any, http: Any) -> Any:
        from mcp import StdioServerParameters
        from mcp.client.stdio import get_default_environment, stdio_client
        from mcp.client.streamable_http import streamable_http_client

        config = self._config
        if config.url is not None:
            return streamable_http_client(config.url, http_client=http)
        env = {**get_default_environment(), **filled(config.env, f"{self._name}.env")}
        started = StdioServerParameters(
            command=str(config.command), args=list(config.args), env=env, cwd=config.cwd
        )
        return stdio_client(started, errlog=said)

    def _not_started(self, error: BaseException, said: Any) -> SettingError:
        if isinstance(error, SettingError):
            return error
        said.seek(0)
        lines = [line for line in said.read().splitlines() if line.strip()]
        what = lines[-1] if lines else str(error) or type(error).__name__
        return SettingError(f"mcp server {self._name}: it does not start: {what[:300]}")


async def _listed(client: Any) -> list[Any]:
    """All tools of a server."""
    found, cursor = [], None
    for _ in range(PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def _clean(value: Any) -> Any:
    """JSON without characters that hide or reorder text, which a person would not see."""
    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    return HIDDEN.sub("", value) if isinstance(value, str) else value


def _named(server: str, tool: str) -> str:
    """`server__tool`, in the characters that models and APIs know."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{server}__{tool}")[:LONGEST]


def _text_of(result: Any) -> str:
    """The texts of a result; what is no text is named."""
    parts = []
    for block in result.content:
        match block.type:
            case "text":
                parts.append(block.text)
            case "resource":
                parts.append(getattr(block.resource, "text", f"[{block.resource.uri}]"))
            case "resource_link":
                parts.append(f"[{block.name}: {block.uri}]")
            case kind:
                parts.append(f"[{kind}: {block.mime_type}, which is not shown]")
    return "\n".join(parts) or "(nothing)"


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    """The first error in a group of groups."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
