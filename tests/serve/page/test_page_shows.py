"""What the chat page shows, in a real browser."""

import re

import pytest
from browsing import api, faults_in, marks, shown
from chat_page import ANSWERS, ask, connected, turns, writing
from scripted import scripted

pytestmark = marks


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
