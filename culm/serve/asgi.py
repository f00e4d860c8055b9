"""The server as an ASGI application, with all settings in the environment, as hosts give them.

python -m culm.serve.asgi                                  what a container starts
uvicorn --factory culm.serve.asgi:app --port 8080          another ASGI server

CULM_MODEL: what `culm serve` takes. CULM_SERVE_CONFIG: a file of settings (`culm.serve.settings`).
CULM_NAME: the model's name in the API; by default as in `culm serve`. CULM_API_KEY: a key that
clients send. PORT: where the first form listens; 8080 by default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from fastapi import FastAPI

import culm
from culm.config import SettingError
from culm.serve.clients import Clients, clients_of
from culm.serve.http.app import build
from culm.serve.http.guard import LOOPBACK
from culm.serve.http.server import check_exposed, serve
from culm.serve.settings import ServeConfig, read_settings, served_name

NETWORK = "0.0.0.0"


def settings_of(environment: Mapping[str, str]) -> tuple[str, ServeConfig, Clients]:
    """The model, the settings and the clients.

    Raises:
        SettingError: there is no model, a setting is not valid, or everyone could use the server.
    """
    model = environment.get("CULM_MODEL")
    if not model:
        raise SettingError("CULM_MODEL: set it to a run or model folder")
    file = environment.get("CULM_SERVE_CONFIG")
    host = None if file else NETWORK
    port = environment.get("PORT", "8080")
    if not port.isdecimal():
        raise SettingError(f"PORT: {port!r} is no number")
    settings = read_settings(file, host=host, port=int(port))
    key = environment.get("CULM_API_KEY")
    named = any(one.env == "CULM_API_KEY" for one in settings.keys)
    clients = clients_of(settings.keys, None if named else key)
    check_exposed(settings.host, clients)
    return model, settings, clients


def app() -> FastAPI:
    """The application, for a server that calls a factory; the model is loaded before it returns."""
    model, settings, clients = settings_of(os.environ)
    local = settings.host in LOOPBACK
    return build(culm.load(model), _name(model), settings, clients, local)


def main() -> None:
    """Serve until SIGTERM, with the limits and the drain of `culm serve`."""
    model, settings, clients = settings_of(os.environ)
    serve(culm.load(model), _name(model), settings, clients)


def _name(model: str) -> str:
    return os.environ.get("CULM_NAME") or served_name(model)


if __name__ == "__main__":
    main()
