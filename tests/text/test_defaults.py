"""One default temperature for texts and one for chats, in Python as on the command line."""

import pytest

from culm.engine.sampling import Sampling
from culm.serve.http.protocol import CompletionRequest
from culm.text.options import CHAT_TEMPERATURE, TEXT_TEMPERATURE, read_options


def test_a_temperature_that_is_not_given() -> None:
    assert read_options({}).sampling.temperature == TEXT_TEMPERATURE == 0.8
    assert read_options({"temperature": None}).sampling.temperature == TEXT_TEMPERATURE
    assert read_options({}, CHAT_TEMPERATURE).sampling.temperature == 0
    assert read_options({"temperature": 0.5}, CHAT_TEMPERATURE).sampling.temperature == 0.5
    assert read_options({"temperature": 0}).sampling.temperature == 0
    assert Sampling().temperature == 1  # the model's own distribution


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_the_command_line_has_no_default_of_its_own(verb: str) -> None:
    from typer.main import get_command

    from culm.cli import app

    line = ["model", "text"] if verb == "generate" else ["model"]
    given = get_command(app).commands[verb].make_context(verb, line).params  # type: ignore[attr-defined]
    assert given["temperature"] is None


def test_a_server_has_that_of_its_protocol() -> None:
    body = CompletionRequest(model="m", prompt="a")
    assert body.query().sampling.temperature == 1
