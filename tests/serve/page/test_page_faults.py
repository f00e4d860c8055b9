"""What goes wrong on the chat page, in a real browser."""

import json

from browsing import api, marks, shown
from chat_page import ANSWERS, answered, ask, connected, turns, writing
from scripted import scripted

from culm.serve.clients import clients_of
from culm.serve.settings import ServeConfig

pytestmark = marks


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
