"""The chat page in a real browser: what a test does with it."""

from browsing import api

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


def opened(page, name, text):
    page.locator("#file").set_input_files(
        {"name": name, "mimeType": "application/json", "buffer": text.encode()}
    )


def writing(page, text):
    """Ask, and go on while the answer is being written."""
    connected(page)
    page.locator("#text").fill(text)
    page.keyboard.press("Enter")
    api.expect(page.locator(".words").last).to_contain_text("5")
