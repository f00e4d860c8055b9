"""The process of a router."""

from __future__ import annotations

from collections.abc import Sequence

from culm.address import check_address
from culm.config import SettingError
from culm.log import say
from culm.serve.clients import Limits, clients_of
from culm.serve.http.server import (
    Server,
    address,
    check_exposed,
    listen,
    uvicorn_settings,
    write_log,
)
from culm.serve.route.router import Router, build
from culm.serve.settings import ServeConfig


def route(urls: Sequence[str], settings: ServeConfig, api_key: str | None = None) -> None:
    """Share requests between servers until SIGINT or SIGTERM, then let running answers finish.

    Raises:
        SettingError: a URL is not one of a server or is given twice, the port is not available, or
            a router without a key would be open to the network.
    """
    for url in urls:
        try:
            check_address(url, None)
        except ValueError as error:
            raise SettingError(f"URLS: {url}: {error}") from None
    if len({url.rstrip("/") for url in urls}) < len(urls):
        raise SettingError("URLS: a server is given twice")
    # The replicas count the limits of each key, and say in headers what is left.
    keys = [one.model_copy(update={"limits": Limits()}) for one in settings.keys]
    clients = clients_of(keys, api_key)
    check_exposed(settings.host, clients)
    write_log()
    router = Router(urls, settings)
    with listen(settings.host, settings.port) as listener:
        where = address(settings.host, listener)
        say(f"{len(urls)} servers are behind {where} (Ctrl-C stops it)")
        Server(uvicorn_settings(build(router, clients)), router).run(sockets=[listener])
    say("The server has stopped.")
