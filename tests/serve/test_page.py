"""The scripts of the chat page that need no browser, run by node: Markdown, chats, streams."""

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from culm.agent.answer import ModelAnswer, ToolCall
from culm.agent.loop import AgentOutcome, Budget, QuestionAsked, StepAnswered, ToolCalled
from culm.agent.trace import TraceFile
from culm.serve.http.page import page as module
from culm.serve.http.page.page import SCRIPTS, page
from culm.tools.function import Result

FOLDER = Path(module.__file__).parent
HTML = bytes(page().body).decode()
node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def value(expression: str, given: Any = None) -> Any:
    """Of an expression of JavaScript over the scripts of the page; `given` is a name in it."""
    script = "\n".join((FOLDER / f"{name}.js").read_text() for name in SCRIPTS[:3])
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("page.js"))],
        input=json.dumps({"script": script, "expression": expression, "given": given}),
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


# -- one file, and no way from text to HTML


def test_the_page_is_one_file_under_a_strict_policy():
    policy = page().headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "trusted-types 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", HTML)
    assert len(HTML) < 90_000


def test_no_script_makes_html_of_text():
    for name in SCRIPTS:
        script = (FOLDER / f"{name}.js").read_text()
        for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "DOMParser",
                    "eval(", "Function(", "setHTML", "createContextualFragment"):  # fmt: skip
            assert way not in script, f"{name}.js: {way}"


# -- Markdown

MARKDOWN = {
    "plain": [["p", "plain"]],
    "a **b** *c* ~~d~~ `e*f*`": [
        ["p", "a ", ["strong", "b"], " ", ["em", "c"], " ", ["s", "d"], " ", ["code", "e*f*"]]
    ],
    "***both***": [["p", ["strong", ["em", "both"]]]],
    "2*3*4 snake_case_name __init__x": [["p", "2*3*4 snake_case_name __init__x"]],
    "これは**「重点」**です": [["p", "これは", ["strong", "「重点」"], "です"]],
    "# One\n## Two ##\ntext": [["h1", "One"], ["h2", "Two"], ["p", "text"]],
    "```js\na <b>\n\n```\nafter": [["pre", "js", "a <b>\n"], ["p", "after"]],
    "````\n```\ninner\n```\n````": [["pre", "", "```\ninner\n```"]],
    "```py\nopen": [["pre", "py", "open"]],
    "- a\n  - b\n- c": [["ul", [["p", "a"], ["ul", [["p", "b"]]]], [["p", "c"]]]],
    "3. a\n\n   more\n4. b": [["ol", 3, [["p", "a"], ["p", "more"]], 4, [["p", "b"]]]],
    "1. run\n   ```sh\n   ls\n   ```\n2. x": [
        ["ol", 1, [["p", "run"], ["pre", "sh", "ls"]], 2, [["p", "x"]]]
    ],
    "- a\n  - b:\n    ```yaml\n    on:\n      - x  # y\n    ```\n- c": [
        ["ul", [["p", "a"], ["ul", [["p", "b:"], ["pre", "yaml", "on:\n  - x  # y"]]]],
         [["p", "c"]]]
    ],
    "1. a\n```\n- x\n```\n2. b": [
        ["ol", 1, [["p", "a"]]], ["pre", "", "- x"], ["ol", 2, [["p", "b"]]]
    ],
    "> q\n> > r": [["quote", [["p", "q"], ["quote", [["p", "r"]]]]]],
    "a | b\n-|-:\n`1 \\| 2` | `(1 | g)`\nLON:DGE|": [
        ["table", ["start", "end"], [["a"], ["b"]], [[["code", "1 | 2"]], [["code", "(1 | g)"]]],
         [["LON:DGE"]]]
    ],
    "| a | b |\n|---|": [["p", "| a | b |\n|---|"]],
    "[x](https://e.org/a_(b)) ![y](http://i.net/p.png)": [
        ["p", ["a", "https://e.org/a_(b)", "x"], " ", ["a", "http://i.net/p.png", "image: ", "y"]]
    ],
    "[x](javascript:alert(1)) [y](/reload)": [["p", "[x](javascript:alert(1)) [y](/reload)"]],
    "(see https://e.org/x).": [["p", "(see ", ["a", "https://e.org/x", "https://e.org/x"], ")."]],
    r"\(a_b * c_d\) and $$x_1 * x_2$$ cost $5 or $6": [
        ["p", ["math", r"\(a_b * c_d\)"], " and ", ["math", "$$x_1 * x_2$$"], " cost $5 or $6"]
    ],
    "one<br>two <b>three</b> \\*four\\*": [["p", "one\ntwo <b>three</b> *four*"]],
    "`\\(x\\)` $7M, $40M": [["p", ["code", "\\(x\\)"], " $7M, $40M"]],
    "---\n* * *": [["hr"], ["hr"]],
}  # fmt: skip

SHORT = """(function short(all) {
  const inner = (parts) => parts.map((one) => typeof one === "string" ? one
    : one.kind === "link" ? ["a", one.href, ...inner(one.parts)]
    : "text" in one ? [one.kind, one.text]
    : [{ strong: "strong", emphasis: "em", strike: "s" }[one.kind], ...inner(one.parts)]);
  return all.map((one) => ({
    paragraph: () => ["p", ...inner(one.parts)],
    heading: () => ["h" + one.level, ...inner(one.parts)],
    rule: () => ["hr"],
    code: () => ["pre", one.language, one.text],
    quote: () => ["quote", short(one.blocks)],
    list: () => [one.ordered ? "ol" : "ul", ...one.items.flatMap((item) =>
      one.ordered ? [item.number, short(item.blocks)] : [short(item.blocks)])],
    table: () => ["table", one.align, ...one.rows.map((row) => row.map(inner))],
  })[one.kind]());
})"""


@node
def test_markdown():
    found = value(f"given.map((text) => {SHORT}(blocks(text)))", list(MARKDOWN))
    for text, shown in zip(MARKDOWN, found, strict=True):
        assert shown == MARKDOWN[text], text


@node
def test_every_word_of_a_text_is_shown():
    """Whatever the marks around it."""
    marks = ["*", "**", "_", "`", "```", "~~", "[", "](", ")", "|", "|-|\n", "#", "> ", "- ",
             "1. ", "\n", "\n\n", " ", "<", ">", "$$", "\\(", "\\)", "\\", "!", "https://", "  ",
             "\t"]  # fmt: skip
    some = random.Random(0)
    texts = [
        "".join(
            some.choice(marks) if some.random() < 0.6 else f"w{number}"
            for number in range(some.randrange(1, 40))
        )
        for _ in range(3000)
    ]
    found = value("given.map((text) => JSON.stringify(blocks(text)))", texts)
    for text, shown in zip(texts, found, strict=True):
        words = set(re.findall(r"w\d+", text))
        assert words <= set(re.findall(r"w\d+", shown)), text


@node
def test_hostile_markdown_takes_linear_time():
    units = [
        "*", "*a ", "**a", "_a ", "[", "[a](", "![", "`a``", "`" * 9 + "a", "~~a", "$$a", "\\(",
        "<", "> ", "- ", "1. a\n", "|", "a|b\n-|-\n", "# ", " ", "x", "https://a.b/)", "***a_ ",
        "(((", "\n", "```\n",
    ]  # fmt: skip
    slow = value(
        """given.map((unit) => {
          const text = unit.repeat(200000 / unit.length), begun = performance.now();
          blocks(text);
          blocks(text + "x`");
          return [unit, performance.now() - begun];
        }).filter(([, time]) => time > 4000)""",
        units,
    )
    assert slow == []


# -- streams


def chunk(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"


DONE = "data: [DONE]\n\n"
READ = """(async () => {
  const { stream, size } = given, bytes = new TextEncoder().encode(stream), parts = [];
  for (let at = 0; at < bytes.length; at += size) parts.push(bytes.slice(at, at + size));
  const body = new ReadableStream({
    pull(to) { parts.length ? to.enqueue(parts.shift()) : to.close(); },
  });
  globalThis.sessionStorage = { getItem: () => null };
  globalThis.fetch = async () => ({ ok: true, body });
  const message = { role: "assistant", content: "" };
  const facts = await answer({ model: "m" }, message, null, () => {})
    .catch((error) => error.message);
  return { message, facts };
})()"""


def answered(*stream: str, size: int = 1000) -> dict[str, Any]:
    return value(READ, {"stream": "".join(stream), "size": size})


@node
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_is_read(size):
    usage = 'data: {"choices": [], "usage": {"completion_tokens": 2, "total_tokens": 9}}\r\n\r\n'
    end = chunk("", "stop")
    found = answered(chunk("Héll"), ": waiting\n\n", chunk("🙂o"), end, usage, DONE, size=size)
    assert found["message"]["content"] == "Héll🙂o"
    assert found["facts"]["finish"] == "stop"
    assert (found["facts"]["tokens"], found["facts"]["context"]) == (2, 9)


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
    found = answered(chunk("Hel"), chunk("lo"), *end)
    assert found["message"]["content"] == "Hello"
    assert words in found["facts"]


# -- chats

FORKED = """const chat = newChat("Be brief.");
  addNode(chat, { role: "user", content: "one" });
  const first = addNode(chat, { role: "assistant", content: "1" });
  addNode(chat, { role: "user", content: "two" });
  addNode(chat, { role: "assistant", content: "I" }, 0);
  const said = () => messagesOf(chat).map((message) => message.content);"""


@node
def test_branches():
    found = value(
        f"""{{ {FORKED} const seen = [said()]; turnTo(chat, first); seen.push(said());
          return [seen, siblingsOf(chat, first), chat.title]; }}""".join(("(() => ", ")()"))
    )
    assert found == [
        [["Be brief.", "one", "I"], ["Be brief.", "one", "1", "two"]], [1, 3], "one",
    ]  # fmt: skip


@node
def test_an_exported_chat_comes_back():
    found = value(
        f"""(() => {{ {FORKED} const text = exported([chat]);
          const [same] = imported(text), [many] = imported(exported([chat, chat]));
          return [JSON.parse(text).messages, same.nodes, chat.nodes, same.leaf, many.system,
                  same.id === chat.id]; }})()"""
    )
    messages, nodes, original, leaf, system, same = found
    assert messages == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "I"},
    ]  # fmt: skip
    assert (nodes, leaf, system, same) == (original, 3, "Be brief.", False)


@node
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "Line 1 of the file is no JSON"),
        ('{"a": 1}\nx', "Line 2"),
        ('{"a": 1}', "no chats"),
        ('{"messages": [{"role": "user", "content": 3}]}', "form of OpenAI"),
        ('{"messages": [{"role": "user", "content": [null]}]}', "form of OpenAI"),
        ('{"messages": [{"role": "assistant", "tool_calls": [{}]}]}', "form of OpenAI"),
        ('{"messages": [null]}', "form of OpenAI"),
        ('{"tree": {"nodes": [{"parent": 0, "message": {"role": "user"}}], "leaf": 0}}', "broken"),
        ('{"tree": {"nodes": [], "leaf": 4}}', "broken"),
    ],
)
def test_files_that_hold_no_chat_are_refused(text, words):
    assert words in value("imported(given)", text)["error"]


@node
def test_messages_of_other_programs_are_read():
    said = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    lines = json.dumps(said) + "\n" + json.dumps({**said, "title": "other"}) + "\n"
    whole = "imported(given).map(({ title, system, nodes }) => [title, system, nodes.length])"
    assert value(whole, lines) == [["u", "s", 1], ["other", "s", 1]]
    assert value(whole, json.dumps(said["messages"])) == [["u", "s", 1]]


@node
def test_the_trace_of_an_agent_is_a_chat(tmp_path):
    trace = TraceFile(tmp_path / "trace.jsonl")
    calls = (ToolCall("add", '{"a": 1}'), ToolCall("add", '{"a": 2}'))
    for event in (
        QuestionAsked("How many?", [], Budget()),
        StepAnswered(1, ModelAnswer("I add.", calls, "hm", 9), 0.5),
        ToolCalled(1, calls[0], Result("3"), 0.1),
        ToolCalled(1, calls[1], Result("error: no", failed=True), 0.1),
        StepAnswered(2, ModelAnswer("3", (), "", 4), 0.2),
        AgentOutcome("3", "steps", 2, 13, 0.9),
    ):
        trace(event)
    trace.close()
    chat = value("imported(given)[0]", (tmp_path / "trace.jsonl").read_text())
    roles = [one["message"]["role"] for one in chat["nodes"]]
    assert roles == ["user", "assistant", "tool", "tool", "assistant"]
    _, first, good, bad, last = chat["nodes"]
    ids = [call["id"] for call in first["message"]["tool_calls"]]
    assert [one["message"]["tool_call_id"] for one in (good, bad)] == ids
    assert first["message"]["reasoning_content"] == "hm"
    assert (good["facts"]["failed"], bad["facts"]["failed"]) == (False, True)
    assert (first["facts"]["step"], last["facts"]["step"]) == (1, 2)
    assert last["facts"]["end"]["ended"] == "steps"


@node
def test_streamed_calls_are_put_together_and_wait_for_results():
    deltas = [
        {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "add", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"x":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "sub", "arguments": "{}"}}]},
    ]
    message, *waiting = value(
        """(() => { const message = { role: "assistant", content: "" }, chat = newChat(), open = [];
          given.forEach((delta) => takeDelta(message, delta));
          addNode(chat, message);
          for (const id of ["a", "b"]) {
            open.push(openCall(chat).id);
            addNode(chat, { role: "tool", tool_call_id: id, content: "" });
          }
          return [message, ...open, openCall(chat) ?? null]; })()""",
        deltas,
    )
    assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"x":1}'}
    assert waiting == ["a", "b", None]
