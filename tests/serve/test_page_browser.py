"""The chat page in a real browser: Chromium, without a window."""

import json
import re
from pathlib import Path

import pytest
from browsing import api, faults_in, marks, shown, started
from scripted import scripted

from culm.serve.clients import clients_of
from culm.serve.settings import ServeConfig

pytestmark = marks

RICH = (
    """# Bamboo

A **culm** is a *stem*; see [this](https://example.org/a). Run `ls`.

1. first
   - inner
2. second

- [x] done

> said

| Name | Much |
|---|---:|
| """
    + "a wide cell " * 12
    + """ | 3 |

```python
print("a line of code that is much too long for a narrow window, however it may be shown")
```

---

{word}
""".format(word="unbreakable" * 20)
)
ARABIC = "## شجرة\n\nالخيزران `bamboo()` نبات.\n\n- أول\n- ثان"  # noqa: RUF001
ANSWERS = (
    {"when": "user: .*rich", "say": RICH},
    {"when": "user: .*arabic", "say": ARABIC},
    {"when": "user: .*weather", "say": 'So: <tool_call>{"name": "weather", "arguments": '
     '{"town": "Rome"}}</tool_call>'},
    {"when": "tool: ", "say": "It is sunny."},
    {"when": "user: .*nothing", "say": ""},
    {"when": "user: .*think", "say": "<think>Let me see.</think>\n\nIt is 42."},
    {"when": "user: .*count", "say": "\n\n".join(map(str, range(400)))},
    {"say": "Hello!"},
)  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with scripted(*ANSWERS) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with started() as chromium:
        yield chromium


@pytest.fixture
def page(browser, server):
    with shown(browser, server.url) as page:
        connected(page)
        yield page


def connected(page):
    api.expect(page.locator("#model")).not_to_contain_text("connecting")


def ask(page, text):
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")
    answered(page)


def answered(page):
    api.expect(page.locator("#send")).to_have_attribute("aria-label", "Send")
    api.expect(page.locator(".turn").last.locator(".note")).to_contain_text("tokens")


def turns(page):
    return [one.inner_text().strip() for one in page.locator(":is(.bubble, .words)").all()]


# -- what is shown


def test_markdown_becomes_elements(page):
    ask(page, "rich")
    words = page.locator(".words")
    for css in ("h3", "strong", "em", "a[rel~=noopener]", "ol > li > ul > li", "input:checked",
                "blockquote", "th", "td.end", "figure pre", "hr"):  # fmt: skip
        assert words.locator(css).count(), css
    page.locator(".copy").click()
    api.expect(page.locator("#said")).to_have_text("Copied.")
    assert "per second" in page.locator(".assistant .note").inner_text()
    assert re.search(r"\d+ of 32,768 tokens of context", page.locator("#used").inner_text())
    assert page.title() == "rich · Culm"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1440])
def test_it_fits_and_is_accessible(browser, server, theme, width):
    """No serious finding of axe in any state, and nothing is wider than the window."""
    with shown(browser, server.url, width, 640, color_scheme=theme) as page:
        connected(page)
        check(page, width)
        for question in ("rich", "arabic", "think"):
            ask(page, question)
        page.locator("summary").first.click()
        check(page, width)
        for name in ("settings", "chats"):
            page.locator(f"#show_{name}").click()
            api.expect(page.locator(f"#{name}")).to_be_visible()
            check(page, width)
            page.keyboard.press("Escape")


def check(page, width):
    assert page.evaluate("document.documentElement.scrollWidth") == width
    too_wide = """[...document.querySelectorAll(".turn, .turn p, .words > *, dialog[open] *")]
        .filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)
        .map((one) => one.outerHTML.slice(0, 80))"""
    assert page.evaluate(too_wide) == []
    assert faults_in(page) == []


def test_right_to_left_text(page):
    ask(page, "arabic")
    directions = "(all) => all.map((one) => getComputedStyle(one).direction)"
    found = page.locator(".words > *").evaluate_all(directions)
    assert found == ["rtl", "rtl", "rtl"]


def test_an_answer_without_words_says_so(page):
    ask(page, "nothing")
    assert "the model said nothing" in page.locator(".assistant .note").inner_text()
    ask(page, "again")
    assert turns(page) == ["nothing", "", "again", "Hello!"]


def test_an_answer_that_is_cut_by_leaving_the_page_is_there_later(browser):
    with scripted(*ANSWERS, seconds_per_token=0.01) as slow, shown(browser, slow.url) as page:
        writing(page, "count")
        api.expect(page.locator(".words").last).to_contain_text("80")
        page.reload()
        connected(page)
        page.locator("#show_chats").click()
        page.locator("#list .row").click()
        assert turns(page)[1].startswith("0\n\n1")


def test_reasoning_is_folded(page):
    ask(page, "think")
    assert turns(page) == ["think", "It is 42."]
    assert not page.get_by_text("Let me see.").is_visible()
    page.get_by_text("Reasoning").click()
    assert page.get_by_text("Let me see.").is_visible()
    ask(page, "again")  # earlier reasoning is not sent
    assert turns(page)[-1] == "Hello!"


# -- text never becomes HTML

XSS = [
    "<script>pwned = 1</script>", "<img src=x onerror=pwned=1>", "<svg/onload=pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>", "<b onclick=pwned=1>x</b>",
    "[x](javascript:pwned=1)", "[x](JaVaScRiPt:pwned=1)", "[x](java\tscript:pwned=1)",
    "[x](data:text/html,<script>pwned=1</script>)", "[x](vbscript:pwned)", "<javascript:pwned=1>",
    "![x](https://evil.example/leak.png)", "![x](javascript:pwned=1)", "[x](https://e.org\"onclick=p)",
    "```\"><img src=x onerror=pwned=1>\ncode</pre><script>pwned=1</script>\n```",
    "`</code><script>pwned=1</script>`", "| <img src=x onerror=pwned=1> | b |\n|--|--|\n| c | d |",
    "# <img src=x onerror=pwned=1>", "> <script>pwned=1</script>", "- <script>pwned=1</script>",
    "<style>*{display:none}</style>", "<meta http-equiv=refresh content=0;url=//evil.example>",
    "<base href=//evil.example>", "<form action=//evil.example><input>", "&lt;script&gt;pwned=1",
    "<a href=javascript:pwned=1>x</a>", "\u202e[x](https://e.org/\u202etxt.exe)", "<dialog open>x",
    "<math><mtext></p><style><!--</style><img title='--&gt;&lt;img src onerror=pwned=1&gt;'>",
    "](https://a.org)[<img src=x onerror=pwned=1>](https://b.org)", "<br onload=pwned=1>",
]  # fmt: skip
ALLOWED = set(
    "P H3 H4 H5 H6 HR FIGURE FIGCAPTION PRE CODE BUTTON BLOCKQUOTE UL OL LI INPUT DIV TABLE THEAD "
    "TBODY TR TH TD A STRONG EM S SPAN DETAILS SUMMARY".split()
)


def test_no_text_becomes_html(page):
    """Of messages, reasoning, calls, their results and titles, written by anyone."""
    messages = []
    for text in XSS:
        call = {"id": "c", "type": "function", "function": {"name": text, "arguments": text}}
        said = {"role": "assistant", "content": text, "reasoning_content": text}
        messages += [
            {"role": "user", "content": text}, {**said, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "name": text, "content": text},
        ]  # fmt: skip
    chats = [{"title": "all", "messages": messages}]
    chats += [{"title": text, "messages": messages[:1]} for text in XSS]
    opened(page, "chats.json", json.dumps(chats))
    api.expect(page.locator(".tool")).to_have_count(len(XSS))
    page.locator("#show_chats").click()
    api.expect(page.locator("#list .row")).to_have_count(len(chats))
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    assert page.evaluate("typeof pwned") == "undefined"
    names = page.locator(":is(.words, .calls, .fold, .bubble) *").evaluate_all(
        "(all) => [...new Set(all.map((one) => one.tagName))]"
    )
    assert set(names) <= ALLOWED
    links = page.locator(".turn a").evaluate_all("(all) => all.map((one) => one.href)")
    assert links
    assert all(link.startswith("https://") for link in links)
    shown_text = page.locator("#log").inner_text()
    for text in ("<script>pwned = 1</script>", "<svg/onload=pwned=1>", "[x](JaVaScRiPt:pwned=1)"):
        assert text in shown_text


def test_html_is_refused_by_the_browser_too(page):
    """Were a script to write HTML one day, the policy of the page would stop it."""
    refused = "(() => { try { document.body.innerHTML = '<b>'; } catch (e) { return e.name; } })()"
    assert page.evaluate(refused) == "TypeError"


def test_links_name_their_true_host(page):
    told = {"messages": [{"role": "assistant", "content": "[bank.com](https://evil.example/x)"}]}
    opened(page, "chat.json", json.dumps(told))
    assert page.locator(".words").inner_text() == "bank.com (evil.example)"


def test_code_shows_characters_that_reorder_it(page):
    hidden = {"messages": [{"role": "assistant", "content": "```\nif \u202e a \u200b\n```"}]}
    opened(page, "chat.json", json.dumps(hidden))
    assert page.locator("pre").inner_text() == "if [U+202E] a [U+200B]"


def opened(page, name, text):
    page.locator("#file").set_input_files(
        {"name": name, "mimeType": "application/json", "buffer": text.encode()}
    )


# -- the way of a dialogue


def test_everything_by_keyboard(page):
    page.keyboard.type("first")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    answered(page)
    assert turns(page) == ["first\nsecond line", "Hello!"]
    page.keyboard.press("ArrowUp")  # edits the last message, from its end
    page.keyboard.type("; think")
    page.keyboard.press("Enter")
    answered(page)
    assert turns(page) == ["first\nsecond line; think", "It is 42."]
    tab_to(page, "Earlier version")
    page.keyboard.press("Enter")
    assert turns(page) == ["first\nsecond line", "Hello!"]
    page.keyboard.press("ArrowRight")
    assert turns(page)[1] == "It is 42."
    tab_to(page, "Write again")
    page.keyboard.press("Enter")
    answered(page)
    assert "2 / 2" in page.locator(".assistant .branch").inner_text()
    tab_to(page, "Chats", "Shift+Tab")
    page.keyboard.press("Enter")
    api.expect(page.locator("#chats")).to_be_visible()
    page.keyboard.press("Escape")
    tab_to(page, "New chat")
    page.keyboard.press("Enter")
    api.expect(page.locator("#empty")).to_be_visible()
    assert page.evaluate("document.activeElement.id") == "text"


def tab_to(page, label, key="Tab"):
    for _ in range(40):
        page.keyboard.press(key)
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == label:
            return
    raise AssertionError(f"the keyboard does not reach {label!r}")


def test_enter_of_a_composition_does_not_send(page):
    page.locator("#text").fill("にほ")
    for how in ("isComposing: true", "keyCode: 229"):
        page.evaluate(f"""document.getElementById("text").dispatchEvent(
            new KeyboardEvent("keydown", {{ key: "Enter", bubbles: true, {how} }}))""")
    assert turns(page) == []


def test_enter_breaks_the_line_on_a_touch_screen(browser, server):
    with shown(browser, server.url, 400, has_touch=True, is_mobile=True) as page:
        connected(page)
        page.locator("#text").fill("one")
        page.keyboard.press("Enter")
        assert page.locator("#text").input_value() == "one\n"
        page.locator("#send").click()
        answered(page)


def test_chats_outlive_a_reload(page):
    ask(page, "hi")
    page.locator("#text").fill("a draft")
    page.reload()
    connected(page)
    assert page.locator("#text").input_value() == "a draft"
    page.locator("#show_chats").click()
    page.locator("#list .row").click()
    assert turns(page) == ["hi", "Hello!"]
    page.locator("#show_chats").click()
    page.get_by_label("Delete hi").click()
    api.expect(page.locator("#none")).to_be_visible()
    api.expect(page.locator("#empty")).to_be_attached()
    assert turns(page) == []


def test_settings_are_sent(page):
    bodies = []
    page.on("request", lambda one: bodies.append(one.post_data_json) if one.post_data else None)
    page.locator("#show_settings").click()
    for name, text in (("system", "Be brief."), ("max_tokens", "3"), ("seed", "7")):
        page.locator(f"#{name}").fill(text)
    page.locator("#temperature").evaluate(
        "(one) => { one.value = 0.5; one.dispatchEvent(new Event('input')); }"
    )
    page.locator("#theme").select_option("dark")
    page.keyboard.press("Escape")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 21)"
    ask(page, "hi")
    (body,) = bodies
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["max_tokens"], body["seed"], body["temperature"]) == (3, 7, 0.5)
    assert "cut off at the limit of tokens" in page.locator(".assistant .note").inner_text()


def test_a_call_is_shown_and_its_result_is_sent(page):
    page.locator("#show_settings").click()
    page.locator("#tools").fill("[")
    assert page.locator("#tools_fault").inner_text() == "They are no JSON."
    page.locator("#tools").fill('[{"type": "function", "function": {"name": "weather"}}]')
    page.keyboard.press("Escape")
    ask(page, "weather")
    call = page.locator(".call")
    assert "weather" in call.locator("summary").inner_text()
    assert json.loads(call.locator("pre").inner_text()) == {"town": "Rome"}
    assert page.locator("#text").get_attribute("placeholder") == "Result of weather"
    ask(page, "sun")
    assert turns(page)[-1] == "It is sunny."


def test_files(page):
    ask(page, "hi")
    page.locator("#show_chats").click()
    with page.expect_download() as saved:
        page.locator("#export").click()
    text = Path(saved.value.path()).read_text("utf-8")
    assert [one["role"] for one in json.loads(text)["messages"]] == ["user", "assistant"]
    page.keyboard.press("Escape")
    page.locator("#new").click()
    opened(page, "chat.json", text)
    api.expect(page.locator(".words")).to_have_text("Hello!")
    opened(page, "broken.json", "{")
    api.expect(page.locator("#banner")).to_contain_text("is no JSON")


def test_the_trace_of_an_agent_is_shown_step_by_step(page):
    events = [
        {"kind": "question", "question": "How many?", "tools": {}, "budget": {}},
        {"kind": "answer", "step": 1, "content": "", "calls": [{"name": "sql", "arguments": "{}"}],
         "reasoning": "", "tokens": 9, "complete": True, "seconds": 0.5},
        {"kind": "call", "step": 1, "name": "sql", "arguments": "{}", "result": "error: no table",
         "failed": True, "seconds": 0.1},
        {"kind": "answer", "step": 2, "content": "I do not **know**.", "calls": [],
         "reasoning": "", "tokens": 4, "complete": True, "seconds": 0.2},
        {"kind": "end", "answer": "", "ended": "steps", "steps": 2, "tokens": 13, "seconds": 0.9,
         "reason": ""},
    ]  # fmt: skip
    opened(page, "trace.jsonl", "\n".join(map(json.dumps, events)))
    api.expect(page.locator(".assistant")).to_have_count(2)
    notes = [one.inner_text() for one in page.locator(".assistant .note").all()]
    assert notes[0] == "step 1 · 9 tokens · 0.5 s"
    assert notes[1].endswith("All steps of the budget were used")
    assert "Failure of sql" in page.locator(".result summary").inner_text()


# -- what goes wrong


def test_an_answer_is_stopped_and_stays(browser):
    with scripted(*ANSWERS, seconds_per_token=0.01) as slow, shown(browser, slow.url) as page:
        connected(page)
        page.locator("#text").fill("count")
        page.keyboard.press("Enter")
        api.expect(page.locator(".words")).to_contain_text("5")
        page.keyboard.press("Escape")
        api.expect(page.locator(".assistant .note")).to_have_text("stopped")
        assert page.locator("#send").get_attribute("aria-label") == "Send"
        ask_now = page.locator("#text")
        ask_now.fill("again")
        page.keyboard.press("Enter")
        answered(page)
        assert turns(page)[-1] == "Hello!"


def writing(page, text):
    """Ask, and go on while the answer is being written."""
    connected(page)
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")
    api.expect(page.locator(".words").last).to_contain_text("5")


def test_what_is_done_while_an_answer_is_written_stops_it(browser):
    """A new chat, an edit, another version; nothing is lost or comes back."""
    with scripted(*ANSWERS, seconds_per_token=0.01) as slow, shown(browser, slow.url) as page:
        writing(page, "count")
        page.locator("#new").click()
        api.expect(page.locator("#empty")).to_be_visible()
        page.wait_for_timeout(300)
        assert turns(page) == []
        page.locator("#show_chats").click()
        page.locator("#list .row").click()
        assert turns(page)[0] == "count"
        assert turns(page)[1].startswith("0\n\n1")
        page.get_by_label("Write again").click()
        api.expect(page.locator(".words").last).to_contain_text("5")
        page.get_by_label("Edit").first.click()
        page.keyboard.type(" not; think")
        page.keyboard.press("Enter")
        answered(page)
        assert turns(page) == ["count not; think", "It is 42."]
        page.get_by_label("Earlier version").click()
        assert "2 / 2" in page.locator(".assistant .branch").inner_text()


def test_a_chat_that_is_deleted_while_it_is_written_stays_deleted(browser):
    with scripted(*ANSWERS, seconds_per_token=0.01) as slow, shown(browser, slow.url) as page:
        writing(page, "count")
        page.locator("#show_chats").click()
        page.get_by_label("Delete count").click()
        api.expect(page.locator("#none")).to_be_visible()
        page.wait_for_timeout(300)
        page.reload()
        connected(page)
        page.locator("#show_chats").click()
        api.expect(page.locator("#none")).to_be_visible()


def test_the_text_is_followed_until_the_reader_scrolls_up(browser):
    with scripted(*ANSWERS, seconds_per_token=0.003) as slow, shown(browser, slow.url) as page:
        connected(page)
        page.locator("#text").fill("count")
        page.keyboard.press("Enter")
        api.expect(page.locator(".words")).to_contain_text("60")
        left = "(() => { const s = document.getElementById('scroll');"
        left += " return s.scrollHeight - s.scrollTop - s.clientHeight; })()"
        assert page.evaluate(left) < 80
        page.mouse.move(400, 300)
        page.mouse.wheel(0, -300)
        api.expect(page.locator("#latest")).to_be_visible()
        top = page.evaluate("document.getElementById('scroll').scrollTop")
        page.wait_for_timeout(300)
        assert page.evaluate("document.getElementById('scroll').scrollTop") == top
        page.locator("#latest").click()
        assert page.evaluate(left) < 80
        page.keyboard.press("Escape")


def test_a_key_is_asked_for(browser):
    with (
        scripted("Hello!", clients=clients_of((), "secret")) as server,
        shown(browser, server.url) as page,
    ):
        api.expect(page.locator("#locked")).to_be_visible()
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        api.expect(page.locator("#refused")).to_have_text("The server refused this key.")
        page.locator("#key").fill("secret")
        page.keyboard.press("Enter")
        connected(page)
        ask(page, "hi")
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")


def test_it_works_over_http_from_another_machine(browser):
    """Where the browser has no clipboard and no `crypto.randomUUID`."""
    settings = ServeConfig(allowed_hosts=("culm.test",))
    with scripted("```\nls\n```", serving=settings) as server:
        url = server.url.replace("127.0.0.1", "culm.test")
        with shown(browser, url) as page:
            connected(page)
            assert not page.evaluate("isSecureContext")
            ask(page, "hi")
            page.locator(".copy").click()
            api.expect(page.locator("#said")).to_have_text("Copied.")
            page.locator("#text").focus()
            page.keyboard.press("Control+V")
            assert page.locator("#text").input_value() == "ls"


def test_errors_are_in_words_and_can_be_tried_again(page):
    refusal = {"error": {"message": "You may have 2 requests a minute."}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(
        status=429, json=refusal, headers={"Retry-After": "20", "x-request-id": "r1"}))  # fmt: skip
    page.locator("#text").fill("hi")
    page.keyboard.press("Enter")
    words = "You may have 2 requests a minute. Try again in 20 s. (request r1)"
    api.expect(page.locator("#problem")).to_contain_text(words)
    assert turns(page) == ["hi"]
    page.unroute("**/v1/chat/completions")
    page.locator("#problem button").click()
    answered(page)
    assert turns(page) == ["hi", "Hello!"]


def test_a_server_that_is_gone_is_waited_for(page):
    page.route("**/v1/**", lambda route: route.abort())
    page.locator("#text").fill("hi")
    page.keyboard.press("Enter")
    api.expect(page.locator("#problem")).to_contain_text("The server cannot be reached.")
    api.expect(page.locator("#banner")).to_contain_text("No connection")
    page.unroute("**/v1/**")
    api.expect(page.locator("#banner")).to_be_empty()
    page.locator("#problem button").click()
    answered(page)


def test_long_answers_stay_quick(page):
    """Complete blocks are made once, and a long block does not take the time of others."""
    lines = [f"line {number} of *many*\n\n" for number in range(3000)]
    lines += ["```\n", *(f"code {number}\n" for number in range(3000)), "```\n"]
    deltas = [{"choices": [{"index": 0, "delta": {"content": line}}]} for line in lines]
    deltas.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    deltas.append({"choices": [], "usage": {"completion_tokens": 6000, "total_tokens": 6001}})
    stream = "".join(f"data: {json.dumps(one)}\n\n" for one in deltas) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=stream))
    page.evaluate("""{ const make = document.createElement.bind(document); window.made = 0;
        document.createElement = (tag) => { window.made += 1; return make(tag); }; }""")
    ask(page, "hi")
    assert page.locator(".words p").count() == 3000
    assert "code 2999" in page.locator("pre").inner_text()
    assert page.evaluate("window.made") < 20_000
