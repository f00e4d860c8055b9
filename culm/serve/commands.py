"""Culm's own commands as tools of the Model Context Protocol: an assistant trains models here.

Each call is a process of its own, `culm VERB ARGUMENTS`, in one folder that its arguments cannot
leave. What only reads runs at once; for the rest the client asks a person, who sees the whole line.
Options make a command write that else reads (`plan --budget` trains), so with one it asks too.
"""

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.resolve import Elicit, Resolve
from mcp.types import ToolAnnotations
from pydantic import BaseModel, Field

from culm.agent.approval import Approvals, Policy

READS = frozenset({"plan", "inspect", "lineage", "doctor"})
WORKS = frozenset({"prepare", "train", "eval", "quantize", "export"})
RUNNING, KEPT = 4, 64  # processes at once, and jobs that are remembered
OUTPUT = 16_000  # bytes of a job's last output, or of a line of metrics
GRACE = 60.0  # seconds in which a training run saves its state
# A path from the root, of a home, with a drive or up, anywhere in an argument; or a URL.
OUTSIDE = re.compile(r"""(^|[\s=,:'"\[{(])([/\\~]|[A-Za-z]:[/\\])|(^|[^\w.])\.\.($|[^\w.])|://""")

Word = Annotated[str, Field(max_length=4096)]
Arguments = Annotated[
    list[Word], Field(max_length=256, description="The words after the command's name.")
]
Wait = Annotated[float, Field(ge=0, le=600, description="Seconds to wait for its end.")]


class Approval(BaseModel):
    """What the person answers."""

    allow: bool = Field(description="Run this command?")


class Job(BaseModel):
    """A command that was started."""

    job: int
    command: str
    state: Literal["running", "finished", "failed"]
    exit_code: int | None = None
    output: str = Field(description="The last lines that it wrote.")


class Run(BaseModel):
    """A training run in the folder."""

    run: str
    status: dict[str, Any] = Field(description="Its status.json.")
    metrics: dict[str, Any] = Field(description="The last line of its metrics.jsonl.")


class State(BaseModel):
    jobs: list[Job]
    runs: list[Run]


class Process:
    """A command that runs or has run."""

    def __init__(self, number: int, words: Sequence[str], process: asyncio.subprocess.Process):
        self.number, self.words, self.process = number, words, process
        self._output = b""
        self.ended = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        assert self.process.stdout is not None
        while part := await self.process.stdout.read(4096):
            self._output = (self._output + part)[-OUTPUT:]
        await self.process.wait()

    async def stop(self) -> None:
        """A training run saves its state first."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        await asyncio.wait([self.ended], timeout=GRACE)
        if self.ended.done():  # nothing of its number need be left, or it is another's by now
            return
        with suppress(ProcessLookupError):  # its children too, which keep its output open
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.ended

    @property
    def job(self) -> Job:
        code = self.process.returncode if self.ended.done() else None
        return Job(
            job=self.number, command=shlex.join(["culm", *self.words]),
            state="running" if code is None else "failed" if code else "finished",
            exit_code=code, output=self._output.decode(errors="replace"),
        )  # fmt: skip


class Commands:
    """Culm's commands in a folder.

    descriptions: of each command, for the assistant. rules: which commands a person is asked about,
    as `culm agent --approve`; by default those that write.
    """

    def __init__(
        self, folder: Path, descriptions: Mapping[str, str],
        rules: Sequence[tuple[str, Policy]] = (),
    ) -> None:  # fmt: skip
        self.folder = folder.resolve()
        self._descriptions = descriptions
        self._rules = rules
        self._jobs: dict[int, Process] = {}
        self._count = 0

    def add_to(self, server: MCPServer[Any]) -> None:
        for name in sorted(READS | WORKS):
            hints = ToolAnnotations(destructive_hint=name in WORKS, open_world_hint=False)
            tool = server.tool(name, description=self._descriptions[name], annotations=hints)
            tool(self._tool(name))
        only_reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
        server.tool("status", annotations=only_reads)(self.status)
        server.tool("stop", annotations=ToolAnnotations(open_world_hint=False))(self.stop)

    def _tool(self, name: str) -> Any:
        def ask(arguments: Arguments) -> Approval | Elicit[Approval]:
            policy = self._policy(name, arguments)
            if policy == "never":
                raise ToolError(f"culm {name} is not allowed here.")
            line = shlex.join(["culm", name, *checked(arguments)])
            if policy == "auto":
                return Approval(allow=True)
            return Elicit(f"In {self.folder}: {line}", Approval)

        async def run(
            arguments: Arguments, approval: Annotated[Approval, Resolve(ask)], wait: Wait = 20
        ) -> Job:
            if not approval.allow:
                raise ToolError("The person refused this command.")
            return await self._run([name, *checked(arguments)], wait)

        return run

    def _policy(self, name: str, arguments: Sequence[str]) -> Policy:
        """Whether a person is asked; rules that were given come before what is usual."""
        reads = name in READS and not any(word.startswith("-") for word in arguments)
        usual: list[tuple[str, Policy]] = [("*", "auto" if reads else "ask")]
        return Approvals([*usual, *self._rules]).policy(name)

    async def status(self) -> State:
        """The commands that were started here, and the training runs in the folder."""
        runs = [_run_of(path.parent, self.folder) for path in _statuses(self.folder)]
        return State(jobs=[one.job for one in self._jobs.values()], runs=runs)

    async def stop(self, job: int) -> Job:
        """End a command. A training run saves its state, and the same command resumes it."""
        if job not in self._jobs:
            raise ToolError(f"There is no job {job}; `status` names all.")
        await self._jobs[job].stop()
        return self._jobs[job].job

    async def close(self) -> None:
        """End what still runs."""
        await asyncio.gather(*(one.stop() for one in self._jobs.values() if not one.ended.done()))

    async def _run(self, words: list[str], wait: float) -> Job:
        running = [one for one in self._jobs.values() if not one.ended.done()]
        if len(running) >= RUNNING:
            raise ToolError(f"{RUNNING} commands run already; wait for one, or stop it.")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "culm", *words, cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._count += 1
        one = self._jobs[self._count] = Process(self._count, words, process)
        for number in [n for n, old in self._jobs.items() if old.ended.done()][:-KEPT]:
            del self._jobs[number]
        await asyncio.wait([one.ended], timeout=wait)
        return one.job


def checked(arguments: Sequence[str]) -> Sequence[str]:
    """The same words.

    Raises:
        ToolError: one names something outside of the folder.
    """
    for word in arguments:
        if OUTSIDE.search(word):
            raise ToolError(
                f"{word!r}: paths are relative and stay in the folder; URLs are refused."
            )
    return arguments


def _statuses(folder: Path) -> list[Path]:
    depths = ("*", "*/*", "*/*/*")
    return sorted(path for depth in depths for path in folder.glob(f"{depth}/status.json"))


def _run_of(run: Path, folder: Path) -> Run:
    status, last = _json(run / "status.json"), ""
    with suppress(OSError), (run / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, (run / "metrics.jsonl").stat().st_size - OUTPUT))
        last = file.read().decode(errors="replace").rstrip("\n").rpartition("\n")[2]
    metrics = {}
    with suppress(ValueError):  # a line that is being written
        metrics = json.loads(last or "{}")
    return Run(run=run.relative_to(folder).as_posix(), status=status, metrics=metrics)


def _json(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        if isinstance(found, dict):
            return found
    return {}
