"""Servers whose answers a test writes."""

from contextlib import contextmanager

from reciter import Running

from culm.config import parse
from culm.serve.clients import Clients
from culm.serve.fixture import Script, ScriptedModel
from culm.serve.http.app import build
from culm.serve.settings import ServeConfig


@contextmanager
def scripted(
    *answers: dict[str, str] | str,
    serving: ServeConfig = ServeConfig(),
    clients: Clients = Clients(),
    **settings,
):
    """A server that says what the answers say; a text is one that always fits."""
    said = [{"say": one} if isinstance(one, str) else one for one in answers]
    script = parse(Script, {"answers": said, **settings}, "script")
    server = Running(build(ScriptedModel(script), "fixture", serving, clients))
    try:
        yield server
    finally:
        server.stop()
