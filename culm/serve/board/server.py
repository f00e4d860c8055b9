"""The board's process: its port, until Ctrl-C."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from culm.log import say
from culm.serve.board.app import build
from culm.serve.board.runs import Runs
from culm.serve.clients import Clients
from culm.serve.http.guard import LOOPBACK
from culm.serve.http.server import address, check_exposed, listen, uvicorn_settings


class BoardServer(uvicorn.Server):
    """uvicorn, which ends with exit code 0 after a signal."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True


def show(folders: Sequence[Path], host: str, port: int, clients: Clients) -> None:
    """Show the runs in some folders until SIGINT or SIGTERM.

    Raises:
        SettingError: a folder is not there, the port is not available, or a board without a key
            would be open to the network.
    """
    check_exposed(host, clients)
    app = build(Runs(folders), clients, host in LOOPBACK)
    with listen(host, port) as listener:
        say(f"The board is on {address(host, listener)} (Ctrl-C stops it)")
        BoardServer(uvicorn_settings(app)).run(sockets=[listener])
