"""The host's client of MCP by the official conformance suite.

Not asked: authorization, which the host leaves to a header in its file.
"""

import sys
from pathlib import Path

import noded
import pytest

SUITE = "@modelcontextprotocol/conformance"
CLIENT = Path(__file__).with_name("conformance_client.py")
SCENARIOS = """tools_call request-metadata http-standard-headers http-custom-headers
    http-invalid-tool-headers json-schema-ref-no-deref sep-2322-client-request-state
    elicitation-sep1034-client-defaults""".split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(noded.missing(SUITE)), reason="needs the conformance suite"),
]


def conforms(scenario: str, folder: Path) -> str:
    done = noded.run(
        f"{SUITE}/dist/index.js", "client", "--command", f"{sys.executable} {CLIENT}",
        "--scenario", scenario, "-o", str(folder),
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_it_sends_is_what_the_protocol_asks_for(scenario: str, tmp_path: Path) -> None:
    found = conforms(scenario, tmp_path)
    assert "OVERALL: PASSED" in found, found[-2000:]
    assert "Passed: 0/" not in found


def test_the_suite_does_fail_a_client(tmp_path: Path) -> None:
    """The control: one that has no authorization of its own."""
    assert "OVERALL: FAILED" in conforms("auth/basic-cimd", tmp_path)
