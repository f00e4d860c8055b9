"""`culm board RUNS...`: runs in the browser, while they train and later."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from culm.config import SettingError

PACKAGES = ("uplot", "pyarrow")


def show_board(folders: Sequence[str], host: str, port: int, api_key: str | None) -> None:
    """Serve the board until Ctrl-C.

    Raises:
        SettingError: a package is missing, a folder is not there, or the address cannot be used.
    """
    if any(find_spec(package) is None for package in PACKAGES):
        raise SettingError("culm board: it needs board: pip install 'culm[board]'")
    from culm.serve.board.server import show
    from culm.serve.clients import clients_of

    show([Path(folder) for folder in folders], host, port, clients_of((), api_key))
