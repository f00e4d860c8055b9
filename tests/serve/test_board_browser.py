"""The board in a real browser: Chromium, without a window."""

import json
import threading
import time

import pytest
import uvicorn
from boarding import make_run, steps, write_lines
from browsing import api, faults_in, marks, shown, started

pytest.importorskip("uplot", reason="uplot-python is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")
from culm.serve.board.app import build
from culm.serve.board.runs import Runs
from culm.serve.clients import KeyConfig, clients_of
from culm.serve.http.server import listen, uvicorn_settings

pytestmark = marks
HOSTILE = "<img src=x onerror=pwned=1>"
EXPERTS = {
    "load.0": 1.5,
    "load.1": 0.5,
    "tokens_per_second": 200.0,
    "peak_bytes": 2.0**31,
    "own": 1.0,
}


@pytest.fixture(scope="module")
def browser():
    with started() as chromium:
        yield chromium


@pytest.fixture
def serve():
    """Starts a board over a folder; gives its URL."""
    running = []

    def start(folder, **options):
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn_settings(build(Runs([folder]), **options)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running.append((server, thread, listener))
        return f"http://127.0.0.1:{listener.getsockname()[1]}/"

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture
def folder(tmp_path):
    """Two runs, one of which is running, with all there is to show."""
    said = {"samples": [{"prompt": "One ", "temperature": 0.5, "text": f"two {HOSTILE}"}]}
    make_run(tmp_path / "one", steps(900, **EXPERTS), [{"step": 900, "loss": 0.5, **said}], rate=1)
    make_run(tmp_path / "two", steps(40), state="running", rate=2)
    return tmp_path


def chart(page, title):
    return page.locator(".chart").filter(has=page.get_by_role("heading", name=title, exact=True))


def ready(page):
    api.expect(chart(page, "Loss").locator("canvas")).to_be_visible()


def until(page, expression, value):
    """Waits; a page without `eval` cannot do that by itself."""
    begun = time.monotonic()
    while page.evaluate(expression) != value:
        assert time.monotonic() - begun < 30, page.evaluate(expression)
        page.wait_for_timeout(50)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1920])
def test_it_fits_and_is_accessible(browser, serve, folder, theme, width):
    with shown(browser, serve(folder), width, 800, color_scheme=theme) as page:
        ready(page)
        if width == 320:
            page.locator("#panel summary").click()
        page.locator(".group summary").last.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        api.expect(page.locator("#samples")).to_be_visible()
        assert faults_in(page) == []


def test_what_runs_wrote_is_shown(browser, serve, folder):
    with shown(browser, serve(folder)) as page:
        ready(page)
        for title in ("Loss", "Learning rate", "Tokens per second", "Peak memory", "Expert load"):
            api.expect(chart(page, title).locator("canvas")).to_be_visible()
        values = chart(page, "Loss").locator(".value").all_inner_texts()
        assert values == ["0.1", "0.004468", "0.5"]  # the second one is a running mean
        assert chart(page, "Peak memory").locator(".value").all_inner_texts() == ["2 GiB"]
        api.expect(page.locator("#settings tbody tr")).to_have_text(["rate21"])
        api.expect(page.locator(".sample p")).to_have_text(f"One two {HOSTILE}")
        facts = page.locator(".run", has_text="one").inner_text()
        for words in (
            "finished",
            "900 steps",
            "90k tokens",
            "7 min 30 s",
            "best held-out loss 0.5",
        ):
            assert words in facts


def test_news_appear_within_two_seconds_in_the_same_elements(browser, serve, folder):
    with shown(browser, serve(folder)) as page:
        ready(page)
        page.evaluate("window.before = document.querySelector('canvas')")
        write_lines(folder / "two" / "metrics.jsonl", steps(1, first=41), "a")
        begun = time.monotonic()
        api.expect(page.locator(".run", has_text="two")).to_contain_text("41 steps")
        value = chart(page, "Loss").locator(".value").first
        api.expect(value).to_have_text(f"{4 / 41:.4g}")
        assert time.monotonic() - begun < 2 + 1  # one of them for the test itself
        assert page.evaluate("window.before === document.querySelector('canvas')")
        make_run(folder / "three", steps(3))
        api.expect(page.locator(".run", has_text="three")).to_be_visible()


def test_a_part_is_shown_in_full(browser, serve, folder):
    with shown(browser, serve(folder)) as page:
        ready(page)
        box = chart(page, "Loss").locator(".u-over").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 50, steps=5)
        page.wait_for_timeout(100)
        with page.expect_request(lambda one: "start=" in one.url):
            page.mouse.up()
        api.expect(page.locator("#whole")).to_be_visible()
        start, end = page.evaluate("board.range")
        assert 430 < start < 470 < 520 < end < 560
        page.locator("#whole").click()
        api.expect(page.locator("#whole")).to_be_hidden()
        until(page, "board.range", [1, 900])


@pytest.mark.parametrize("axis", ["tokens", "seconds"])
def test_axes(browser, serve, folder, axis):
    ends = {"tokens": [100, 90_000], "seconds": [0.5, 450]}
    with shown(browser, serve(folder)) as page:
        ready(page)
        page.locator("#x").select_option(axis)
        page.locator("#log_x").check()
        page.locator("#log_y").check()
        until(page, "board.range", ends[axis])
        page.reload()  # all of it stays
        ready(page)
        assert page.locator("#x").input_value() == axis
        assert page.locator("#log_y").is_checked()
        page.locator("#x").select_option("flops")
        api.expect(page.locator("#banner")).to_contain_text("the number of FLOPs is not known")


def test_everything_by_keyboard(browser, serve, folder):
    with shown(browser, serve(folder)) as page:
        ready(page)
        label = "document.activeElement.getAttribute('aria-label') ?? ''"

        def tab_to(what):
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate(what):
                    return
            raise AssertionError(f"the keyboard does not reach {what}")

        tab_to("document.activeElement.closest('.run')?.textContent.startsWith('two')")
        page.keyboard.press("Space")
        api.expect(chart(page, "Loss").locator(".value")).to_have_count(2)
        tab_to(f"{label}.startsWith('Loss')".replace(label, f"({label})"))
        for _ in range(3):
            page.keyboard.press("Shift+ArrowLeft")
        api.expect(page.locator("#said")).to_contain_text("Loss at ")
        page.keyboard.press("+")
        api.expect(page.locator("#whole")).to_be_visible()
        page.keyboard.press("Escape")
        api.expect(page.locator("#whole")).to_be_hidden()


def test_choices_stay(browser, serve, folder):
    with shown(browser, serve(folder)) as page:
        ready(page)
        page.locator(".run", has_text="one").locator("input").uncheck()
        api.expect(chart(page, "Loss").locator(".value")).to_have_text(["0.1"])
        page.reload()
        ready(page)
        assert not page.locator(".run", has_text="one").locator("input").is_checked()
        page.locator(".run", has_text="two").locator("input").uncheck()
        api.expect(page.locator("#empty")).to_contain_text("Choose a run")
        page.locator("#theme").click()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 21)"


def test_a_folder_without_runs_says_so_until_one_comes(browser, serve, tmp_path):
    with shown(browser, serve(tmp_path)) as page:
        api.expect(page.locator("#empty")).to_contain_text(f"as soon as it starts in {tmp_path}")
        make_run(tmp_path / "first", steps(2))
        ready(page)


def test_names_and_numbers_never_become_html(browser, serve, tmp_path):
    name = HOSTILE.replace("/", "")
    make_run(tmp_path / name, steps(2, **{HOSTILE: 1.0}), **{HOSTILE: HOSTILE})
    make_run(tmp_path / "b", steps(2))
    state = json.loads((tmp_path / name / "status.json").read_text())
    (tmp_path / name / "status.json").write_text(
        json.dumps(state | {"state": HOSTILE, "reason": HOSTILE, "steps": HOSTILE})
    )
    with shown(browser, serve(tmp_path)) as page:
        ready(page)
        page.locator(".group summary").last.click()
        api.expect(chart(page, HOSTILE)).to_be_visible()
        api.expect(page.locator("#settings tbody")).to_contain_text(HOSTILE)
        page.wait_for_timeout(300)
        assert page.evaluate("typeof pwned") == "undefined"
        assert page.locator("img").count() == 0


def test_a_key_is_asked_for(browser, serve, folder, monkeypatch):
    monkeypatch.setenv("BOARD_KEY", "secret")
    clients = clients_of([KeyConfig(name="me", env="BOARD_KEY")])
    with shown(browser, serve(folder, clients=clients)) as page:
        page.locator("#key").fill("wrong")
        page.keyboard.press("Enter")
        api.expect(page.locator("#refused")).to_have_text("The server refused this key.")
        page.locator("#key").fill("secret")
        page.keyboard.press("Enter")
        ready(page)
