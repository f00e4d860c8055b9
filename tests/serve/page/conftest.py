"""The chat page in a real browser: Chromium, without a window."""

import pytest
from browsing import shown, started
from chat_page import ANSWERS, connected
from scripted import scripted


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
