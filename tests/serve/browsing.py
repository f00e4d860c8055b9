"""Pages in a real browser: Chromium, without a window."""

import os
import shutil
from contextlib import contextmanager

import pytest

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
api.expect.set_options(timeout=30_000)  # a busy machine is slow
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
marks = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@contextmanager
def started():
    """A browser."""
    args = ["--host-resolver-rules=MAP culm.test 127.0.0.1"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        args.append("--no-sandbox")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=args)
        yield chromium
        chromium.close()


@contextmanager
def shown(browser, url, width=900, height=700, **options):
    """The page of a server; fails on any error in it, and on requests to elsewhere."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(30_000)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog {dialog.message}"))
    page.on("console", lambda said: wrong.append(said.text) if "Content Sec" in said.text else None)
    page.on("request", lambda asked: None if asked.url.startswith((url, "data:", "blob:"))
            else wrong.append(asked.url))  # fmt: skip
    page.goto(url)
    yield page
    context.close()
    assert wrong == []


def faults_in(page):
    """What axe finds that is serious."""
    found = axe.Axe().run(page).response["violations"]
    return [one["id"] for one in found if one["impact"] in ("serious", "critical")]
