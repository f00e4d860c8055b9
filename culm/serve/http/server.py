"""The server process: its port, and a shutdown that lets running answers finish."""

from __future__ import annotations

import errno
import logging
import socket
import time
from collections.abc import Callable
from importlib.util import find_spec
from types import FrameType
from typing import IO, Protocol, cast

import uvicorn

from culm.config import SettingError
from culm.log import Stream, say
from culm.model.transformer import Transformer
from culm.serve.clients import Clients
from culm.serve.http.app import build
from culm.serve.http.connection import limited
from culm.serve.http.guard import LOOPBACK
from culm.serve.settings import ServeConfig
from culm.text.language_model import LanguageModel
from culm.tokenizer.tokenizer import Tokenizer

SEND_BYTES = 128 << 10


def serve(
    model: LanguageModel,
    name: str,
    settings: ServeConfig,
    clients: Clients,
    reload: Callable[[], tuple[Transformer, Tokenizer]] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; returns when the running answers have finished.

    name: of the model in the API. reload: as in `build`.

    Raises:
        SettingError: the port is not available, or a server without a key would be open to the
            network.
    """
    host = settings.host
    check_exposed(host, clients)
    write_log()  # before `build`: the package of MCP would set up one that takes seconds to write
    with listen(host, settings.port) as listener:
        app = build(model, name, settings, clients, host in LOOPBACK, reload)
        say(f"{name} listens on {address(host, listener)} (Ctrl-C stops it)")
        Server(uvicorn_settings(app), app.state.service).run(sockets=[listener])
    say("The server has stopped.")


def write_log() -> None:
    """Warnings and errors of the process go to standard error."""
    logging.basicConfig(
        level=logging.WARNING, stream=cast(IO[str], Stream()),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )  # fmt: skip


def check_exposed(host: str, clients: Clients) -> None:
    """SettingError if everyone on the network could use the server without a key."""
    if host not in LOOPBACK and clients.open:
        raise SettingError(f"host: {host} is open to the network; set an API key with --api-key")


def check_packages(settings: ServeConfig) -> None:
    """SettingError if a setting needs a package that is not installed."""
    if settings.grpc_port is not None and find_spec("grpc_reflection") is None:
        raise SettingError("grpc_port: it needs grpc: pip install 'culm[grpc]'")


def check_port(host: str, port: int) -> None:
    """SettingError if the address is not available; cheap, so call it before loading a model."""
    listen(host, port).close()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
        # Of each connection: megabytes, the default, would hide a client that reads nothing.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        return listener
    except OverflowError:
        raise SettingError(f"port: {port} is outside 0..65535") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"port: {port} on {host} is in use; choose another with --port"
        elif error.errno == errno.EACCES:
            reason = f"port: {port} needs root rights; choose one above 1023"
        else:
            reason = f"host: cannot listen on {host!r}: {error.strerror}"
        raise SettingError(reason) from None


def address(host: str, listener: socket.socket) -> str:
    """The URL of a server."""
    where = f"[{host}]" if ":" in host else host
    return f"http://{where}:{listener.getsockname()[1]}"


def uvicorn_settings(app: object) -> uvicorn.Config:
    """Limits on connections and headers; every server of Culm has them."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_config=None,  # configuring closes handlers of other libraries, and absl's closes stderr
        log_level="warning",
        http=limited(_descriptors()),
        backlog=128,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 << 10,
        server_header=False,
    )


def _descriptors() -> int | None:
    """The limit on open files of this process; None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class Draining(Protocol):
    """What a server lets finish before it ends."""

    settings: ServeConfig

    @property
    def draining(self) -> bool: ...

    @property
    def idle(self) -> bool: ...

    def drain(self) -> None: ...

    def end_all(self) -> None: ...


class Server(uvicorn.Server):
    """uvicorn, except that the first signal refuses new requests and lets running ones finish.

    uvicorn alone would close all streams at once, and exit with the signal instead of 0.
    """

    def __init__(self, config: uvicorn.Config, service: Draining) -> None:
        super().__init__(config)
        self._service, self._deadline = service, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop at once."""
        if self._service.draining:
            self.should_exit = self.force_exit = True
        else:
            self._service.drain()
            self._deadline = time.monotonic() + self._service.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        late = time.monotonic() > self._deadline
        if self._service.draining and (self._service.idle or late):
            self._service.end_all()
            self.should_exit = True
        return await super().on_tick(counter)
