"""The way of a dialogue on the chat page, in a real browser."""

import json
from pathlib import Path

from browsing import api, marks, shown
from chat_page import answered, ask, connected, opened, turns

pytestmark = marks


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
