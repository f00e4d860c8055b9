"""Culm's commands as MCP tools: by the official client, in memory and over pipes."""

import asyncio
import json
import os
import sys

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ElicitResult

from culm.agent.approval import rules_of
from culm.serve import commands as module
from culm.serve.commands import READS, WORKS, Commands, checked
from culm.serve.mcp import server_of

TINY = [
    "pretrain", "data.path=texts", "tokenizer.kind=bytes", "model.width=32", "model.layers=1",
    "model.attention.heads=2", "model.attention.kv_heads=2", "model.context=32",
    "train.batch_size=2", "device=cpu", "folder=runs/a",
]  # fmt: skip
MODES = ["auto", pytest.param("legacy", marks=pytest.mark.slow)]


def asking(answers, asked):
    """A person: notes each question, and gives the next answer."""

    async def answer(context, parameters):
        asked.append(parameters.message)
        return answers.pop(0)

    return answer


YES = ElicitResult(action="accept", content={"allow": True})
NO = ElicitResult(action="accept", content={"allow": False})
AWAY = ElicitResult(action="decline")


def write_texts(folder):
    (folder / "texts").mkdir()
    for n in range(9):
        text = f"the quick brown fox number {n} jumps over the lazy dog. "
        (folder / "texts" / f"{n}.txt").write_text(text * 40)


def told(folder, story, answers=(), rules=(), mode="auto"):
    """A story of a client in memory; gives what the person was asked."""
    asked = []
    write_texts(folder)

    async def whole():
        commands = Commands(folder, dict.fromkeys(READS | WORKS, "text"), rules_of(rules))
        person = asking(list(answers), asked) if answers is not None else None
        async with Client(
            server_of(None, commands), elicitation_callback=person, mode=mode
        ) as client:
            try:
                await asyncio.wait_for(story(client), 200)
            finally:
                await commands.close()

    asyncio.run(whole())
    return asked


async def call(client, name, *arguments, wait=150):
    return await client.call_tool(name, {"arguments": list(arguments), "wait": wait})


@pytest.mark.parametrize("mode", MODES)
def test_a_run_is_planned_approved_trained_and_seen(tmp_path, mode):
    async def story(client):
        planned = await call(client, "plan", *TINY, "train.steps=4")
        assert "parameters" in planned.structured_content["output"]
        found = await call(client, "train", *TINY, "train.steps=4")
        assert found.structured_content["state"] == "finished", found.structured_content
        state = (await client.call_tool("status", {})).structured_content
        assert [job["state"] for job in state["jobs"]] == ["finished", "finished"]
        (run,) = state["runs"]
        assert run["run"] == "runs/a"
        assert run["status"]["state"] == "finished"
        assert run["metrics"]["step"] == 4

    (asked,) = told(tmp_path, story, [YES], mode=mode)  # planning asks nobody
    assert asked.startswith(f"In {tmp_path}: culm train pretrain data.path=texts ")


@pytest.mark.parametrize("answer", [NO, AWAY])
@pytest.mark.parametrize("mode", MODES)
def test_what_the_person_refuses_is_not_run(tmp_path, mode, answer):
    async def story(client):
        found = await call(client, "train", *TINY, "train.steps=1")
        assert found.is_error
        assert not (await client.call_tool("status", {})).structured_content["jobs"]

    assert len(told(tmp_path, story, [answer], mode=mode)) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("plan", ["--budget", "1h"]), ("plan", ["--budget=1h"]),
                        ("inspect", ["runs/a", "--attention", "x", "--overwrite"])],
)  # fmt: skip
def test_options_that_make_a_command_write_are_asked_about(tmp_path, name, words):
    async def story(client):
        assert (await call(client, name, *words)).is_error

    assert len(told(tmp_path, story, [NO])) == 1


def test_rules_replace_the_question(tmp_path):
    async def story(client):
        assert "not allowed" in (await call(client, "export", "a", "b")).content[0].text
        found = await call(client, "prepare", "none.txt", "--tokenizer", "none", "--out", "o")
        assert found.structured_content["state"] == "failed"
        assert found.structured_content["exit_code"] == 1
        assert "none" in found.structured_content["output"]

    assert told(tmp_path, story, None, ["export=never", "prepare=auto"]) == []


def test_a_client_that_cannot_ask_runs_nothing(tmp_path):
    async def story(client):
        with pytest.raises(Exception, match=r"(?i)elicitation"):
            assert not (await call(client, "train", *TINY)).is_error

    told(tmp_path, story, None)
    assert not (tmp_path / "runs").exists()


def test_a_long_run_is_stopped_and_can_go_on(tmp_path):
    async def story(client):
        found = await call(client, "train", *TINY, "train.steps=1000000", wait=0)
        job = found.structured_content
        assert job["state"] == "running"
        while not (tmp_path / "runs/a/metrics.jsonl").exists():
            await asyncio.sleep(0.1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "RUNNING", 1)
            assert "run already" in (await call(client, "doctor")).content[0].text
        await client.call_tool("stop", {"job": job["job"]})
        (run,) = (await client.call_tool("status", {})).structured_content["runs"]
        assert run["status"]["state"] == "interrupted"
        assert "no job 7" in (await client.call_tool("stop", {"job": 7})).content[0].text

    told(tmp_path, story, [YES])


def test_children_of_a_command_end_with_it(monkeypatch):
    """They hold its output open, so that its end would not be seen."""
    monkeypatch.setattr(module, "GRACE", 1.0)

    async def whole():
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", "trap '' TERM; sleep 300 & wait; sleep 300", start_new_session=True,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        one = module.Process(1, ["train"], process)
        await asyncio.wait_for(one.stop(), 60)
        assert one.job.state == "failed"
        monkeypatch.setattr(os, "killpg", None)  # its number may be another's now
        await one.stop()

    asyncio.run(whole())


@pytest.mark.parametrize(
    "word",
    [
        "/etc/passwd", "data.path=/etc", "~/x", "data.path=~root", "../x", "a/../../b", "runs/..",
        "data={path: /etc/passwd}", 'data.path="/etc"', "data.path=[a, ../b]",
        "C:\\x", "data.path=c:/x", "s3://bucket/x", "judge=http://127.0.0.1",
        "--out=/tmp", "..", "a\\..\\b", "file:///x",
    ],
)  # fmt: skip
def test_words_that_leave_the_folder(word):
    with pytest.raises(ToolError, match="stay in the folder"):
        checked(["runs/a", word])


def test_words_that_stay():
    words = [
        "runs/a", "data.path=texts/a.txt", "model={kind: gqa, heads: 2}", "train.rate=1e-3",
        "--out", "a..b", "model.norm.eps=1e-5", "x...", "data.pattern=*.txt",
        "1/2", "a~b", "--from=runs/a",
    ]  # fmt: skip
    assert checked(words) == words


def test_the_command_ends_what_it_started(tmp_path):
    write_texts(tmp_path)
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "culm", "mcp", "--commands", str(tmp_path), "--approve", "train=auto"],
        env={**os.environ},
    )

    async def whole():
        async with Client(stdio_client(parameters)) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == READS | WORKS | {"status", "stop"}
            assert "--ranks" in tools["plan"].description
            found = await call(client, "train", *TINY, "train.steps=1000000", wait=0)
            assert found.structured_content["state"] == "running"
            while not (tmp_path / "runs/a/metrics.jsonl").exists():
                await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(whole(), 200))
    status = json.loads((tmp_path / "runs/a/status.json").read_text())
    assert status["state"] == "interrupted"  # it saved its state
