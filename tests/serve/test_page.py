"""The script of the chat page, run by node; and what its style must say to fit narrow windows."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from culm.serve.http.page import page

HTML = bytes(page().body).decode()
node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


def shown(stream: list[str], frames: bool = True) -> dict[str, Any]:
    """What the page shows after a question whose answer is this stream."""
    script = re.search("<script>(.*?)</script>", HTML, re.DOTALL)
    given = json.dumps({"script": script[1], "stream": stream, "frames": frames})
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("page.js"))],
        input=given, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


DONE = "data: [DONE]\n\n"


@node
def test_an_answer_is_shown():
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\n'
    found = shown([chunk("Hel"), ": waiting\n\n", chunk("lo"), chunk("", "stop"), usage, DONE])
    assert found["text"] == "Hello"
    ((kind, note),) = found["notes"]
    assert kind == "note"
    assert note.startswith("2 tokens")


@node
@pytest.mark.parametrize(
    ("end", "words"),
    [
        ([], "connection ended before"),
        ([chunk("", "stop")], "connection ended before"),
        ([DONE], "has no end"),
        (['data: {"error": {"message": "It failed."}}\n\n'], "It failed."),
    ],
)
def test_an_answer_without_its_end_is_reported(end, words):
    found = shown([chunk("Hel"), chunk("lo"), *end])
    assert found["text"] == "Hello"
    ((kind, note),) = found["notes"]
    assert kind == "note wrong"
    assert words in note


@node
@pytest.mark.parametrize("frames", [True, False])
def test_long_answers_take_linear_time(frames):
    """Each character is put into the page once, in paragraphs of bounded length, and rarely."""
    lines = [f"line {number} of a long answer\n" for number in range(4000)]
    found = shown([*map(chunk, lines), chunk("", "stop"), DONE], frames)
    text = "".join(lines)
    assert found["text"] == text
    assert found["written"] < 1.1 * len(text)
    assert found["longest"] < 2100
    assert found["drawn"] < 1000


def test_the_page_fits_a_narrow_window():
    """A grid column and flexible boxes are as wide as their longest word unless told otherwise."""
    style = re.search("<style>(.*?)</style>", HTML, re.DOTALL)
    rules = dict(re.findall(r"^([^\n{}@]+?)\s*{(.*?)}", style[1], re.DOTALL | re.MULTILINE))
    assert "minmax(0, 1fr)" in rules["body"]
    for name in ("#model", "#text"):
        assert "min-width: 0" in rules[name]
    assert "ellipsis" in rules["#model"]
    for name in (".turn p", ".note"):
        assert "overflow-wrap: anywhere" in rules[name]
    widths = [float(found) for found in re.findall(r"(?<!max-)width: ([\d.]+)px", style[1])]
    assert all(width < 320 for width in widths)


def test_the_scrollable_part_can_be_reached_by_keyboard():
    main = re.search("<main[^>]*>", HTML)[0]
    assert 'tabindex="0"' in main
    assert "aria-label=" in main
