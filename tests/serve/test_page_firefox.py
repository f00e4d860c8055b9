"""The chat page in Firefox, without a window, by puppeteer over WebDriver BiDi."""

import json
import shutil

import noded
import pytest
from scripted import scripted

FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
ANSWERS = (
    {"when": "table$", "say": "| a | b |\n|---|---|\n| 1 | 2 |"},
    {"when": "user: .*count", "say": " ".join(map(str, range(2000)))},
    {"say": "Hello!"},
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(FIREFOX is None, reason="Firefox is not installed")
@pytest.mark.skipif(bool(noded.missing("puppeteer-core")), reason="puppeteer is not installed")
def test_an_answer_streams_stops_and_can_be_asked_again():
    with scripted(*ANSWERS, seconds_per_token=0.01) as server:
        done = noded.run("../firefox.mjs", server.url, FIREFOX)
        assert server.worker.idle  # stopping has freed the slot
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["version"].lower().startswith("firefox")
    assert seen["first"] == ["hi", "Hello!"]
    early, later = seen["streamed"]
    assert 20 < early < later
    at_once, after = seen["stopped"]
    assert at_once == after
    assert "stopped" in seen["note"].lower()
    assert seen["edited"][:3] == ["hi", "Hello!", "count; table"]
    assert seen["table"] == ["1", "2"]
    assert seen["later"] == seen["edited"]
    assert seen["wide"] == 0
    assert seen["errors"] == []
