"""Text never becomes HTML of the chat page, in a real browser."""

import json

from browsing import api, marks
from chat_page import opened

pytestmark = marks


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
