"""MCP by the official programs: the conformance suite and the Inspector's command line.

Scenarios about the protocol alone must pass as the server is. Others call tools, prompts and
resources of the suite's own, which `mcp_fixtures` adds behind the same checks and the same router.
"""

import json
import re
import sys
from pathlib import Path

import noded
import pytest
from mcp_fixtures import fixtures
from scripted import scripted
from test_router import Front

CONFORMANCE = "@modelcontextprotocol/conformance/dist/index.js"
INSPECTOR = "@modelcontextprotocol/inspector/clients/launcher/build/index.js"
NOW = """tools-list tools-call-error server-sse-multiple-streams resources-list prompts-list caching
    sep-2164-resource-not-found dns-rebinding-protection http-header-validation
    input-required-result-unsupported-methods input-required-result-validate-input
    input-required-result-ignore-extra-params""".split()
BEFORE = """server-initialize server-session-lifecycle ping tools-list tools-call-error
    server-sse-multiple-streams resources-list prompts-list dns-rebinding-protection""".split()
FIXTURES = """completion-complete tools-call-simple-text tools-call-image tools-call-audio
    tools-call-embedded-resource tools-call-mixed-content tools-call-error tools-call-with-progress
    resources-read-text resources-read-binary resources-templates-read prompts-get-simple
    prompts-get-with-args prompts-get-embedded-resource prompts-get-with-image""".split()
ASKING = """input-required-result-basic-sampling input-required-result-basic-list-roots
    input-required-result-missing-input-response input-required-result-result-type""".split()
# Of the scenario server-stateless; the suite looks for a tool of this name.
NEEDS_TOOL = {
    "sep-2575-server-rejects-undeclared-capability",
    "sep-2575-missing-capability-http-400",
}
NAMES = {"chat", "detokenize", "embed", "generate", "score", "tokenize"}

pytestmark = [pytest.mark.slow]
needs_suite = pytest.mark.skipif(
    bool(noded.missing(CONFORMANCE.rpartition("/dist")[0])), reason="needs the conformance suite"
)
needs_inspector = pytest.mark.skipif(
    bool(noded.missing("@modelcontextprotocol/inspector")), reason="needs the Inspector"
)


@pytest.fixture(scope="module", params=["server", "router"])
def url(request):
    """Of a server, and of a router before it."""
    with scripted("Hello!") as server:
        if request.param == "server":
            yield server.url + "/mcp"
            return
        front = Front([server.url])
        yield front.url + "/mcp"
        front.stop()


@pytest.fixture(scope="module", params=["server", "router"])
def with_fixtures(request):
    """The same, with the tools that the suite calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("culm.serve.mcp.server_of", lambda service, commands=None: fixtures())
        with scripted("Hello!") as server:
            front = Front([server.url])
            yield (server if request.param == "server" else front).url + "/mcp"
            front.stop()


def conforming(url, folder: Path, *which: str) -> dict[str, tuple[int, list[str]]]:
    """Of each scenario, how many checks succeeded, and the names of those that failed."""
    noded.run(CONFORMANCE, "server", "--url", url.replace("127.0.0.1", "localhost"), *which,
              "-o", str(folder))  # fmt: skip
    found = {}
    for path in folder.glob("server-*/checks.json"):
        name = re.sub(r"-\d{4}-\d\d-\d\dT.*", "", path.parent.name.removeprefix("server-"))
        checks = json.loads(path.read_text())
        states = [check["status"] for check in checks]
        found[name] = (
            states.count("SUCCESS"),
            [check["id"] for check in checks if check["status"] == "FAILURE"],
        )
    return found


@needs_suite
def test_the_protocol_of_2026(url, tmp_path):
    found = conforming(url, tmp_path, "--requirements", "2026-07-28")
    for name in NOW:
        passed, failed = found[name]
        assert (passed > 0, failed) == (True, []), name
    passed, failed = found["server-stateless"]
    assert passed >= 26
    assert set(failed) <= NEEDS_TOOL
    # A control: the suite does fail a server, where a tool of its own is missing.
    assert found["tools-call-image"][1]


@needs_suite
def test_the_protocol_of_2025(url, tmp_path):
    found = conforming(url, tmp_path, "--spec-version", "2025-11-25")
    for name in BEFORE:
        passed, failed = found[name]
        assert (passed > 0, failed) == (True, []), name
    assert found["tools-call-image"][1]


@needs_suite
@pytest.mark.parametrize(
    ("which", "names"),
    [(("--requirements", "2026-07-28"), FIXTURES + ASKING),
     (("--spec-version", "2025-11-25"), FIXTURES)],
)  # fmt: skip
def test_contents_prompts_and_progress_of_tools(with_fixtures, which, names, tmp_path):
    found = conforming(with_fixtures, tmp_path, *which)
    for name in names:
        passed, failed = found[name]
        assert (passed >= 2, failed) == (True, []), name


def inspected(*arguments: str):
    """What the Inspector prints, as JSON."""
    done = noded.run(INSPECTOR, "--cli", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@needs_inspector
@pytest.mark.parametrize("era", ["modern", "legacy"])
def test_the_inspector_over_http(url, era):
    where = (url, "--transport", "http", "--protocol-era", era)
    tools = inspected(*where, "--method", "tools/list", "--strict")["tools"]
    assert {tool["name"] for tool in tools} == NAMES
    call = ("--method", "tools/call", "--tool-name")
    found = inspected(*where, *call, "generate", "--tool-arg", "prompt=abc")
    assert (found["structuredContent"]["text"], found["isError"]) == ("Hello!", False)
    told = 'messages=[{"role": "user", "content": "hi"}]'
    assert inspected(*where, *call, "chat", "--tool-arg", told)["structuredContent"]["text"]
    card = inspected(*where, "--method", "resources/read", "--uri", "model://card")
    assert json.loads(card["contents"][0]["text"])["name"] == "fixture"
    refused = noded.run(INSPECTOR, "--cli", *where, *call, "generate",
                        "--tool-arg", "prompt=a", "max_tokens=-1")  # fmt: skip
    assert "max_tokens" in refused.stdout
    assert '"isError": true' in refused.stdout


@needs_inspector
def test_many_calls_of_the_inspector_at_once(url):
    found = inspected(
        url, "--transport", "http", "--load", "--load-concurrency", "8", "--load-requests", "100",
        "--method", "tools/call", "--tool-name", "tokenize", "--tool-arg", "text=abc",
    )  # fmt: skip
    assert (found["ok"], found["toolErrors"], found["errors"]) == (100, 0, 0)


@needs_inspector
def test_the_inspector_over_pipes(tmp_path):
    script = tmp_path / "script.yaml"
    script.write_text("answers:\n  - say: Hello!\n")
    where = (sys.executable, "-m", "culm", "mcp", "--fixture", str(script))
    tools = inspected(*where, "--method", "tools/list", "--strict")["tools"]
    assert {tool["name"] for tool in tools} == NAMES
    found = inspected(
        *where, "--method", "tools/call", "--tool-name", "generate", "--tool-arg", "prompt=abc"
    )
    assert found["structuredContent"]["text"] == "Hello!"
