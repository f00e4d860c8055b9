"""All runs on the board: found in folders, and read by a thread as they grow."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from culm.config import SettingError
from culm.serve.board.run import Run
from culm.train.run_folder import SETTINGS

DEPTH = 4  # of folders in which runs are searched
SECONDS = 0.5  # between two passes over the files


class Runs:
    """The runs in some folders. While it is `open`, a thread keeps them up to date.

    lock: held while runs are read, and to be held by who shows them. complete: every run was read
    once, or a block of it.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """folders: each a run, or folders with runs in them.

        Raises:
            SettingError: one of them is not there.
        """
        for folder in folders:
            if not folder.is_dir():
                raise SettingError(f"RUNS: there is no folder {folder}")
        self.folders = [folder.resolve() for folder in folders]
        self.lock, self.complete = threading.Lock(), False
        self._runs: dict[str, Run] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="board")

    def __enter__(self) -> Runs:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Run]:
        return iter(list(self._runs.values()))

    def get(self, key: str) -> Run | None:
        return self._runs.get(key)

    def names(self) -> dict[str, str]:
        """A name of each run, by key: the end of its path, as long as it takes to be the only one
        of that name.
        """
        found = {}
        paths = {run.key: run.folder.parts for run in self}
        for key, parts in paths.items():
            others = [other for other in paths.values() if other != parts]
            size = next(
                n for n in range(1, len(parts) + 1)
                if n == len(parts) or all(other[-n:] != parts[-n:] for other in others)
            )  # fmt: skip
            found[key] = "/".join(parts[-size:])
        return found

    def read(self) -> bool:
        """Read what is new in all runs, of each at most one block; whether there is more."""
        for folder in dict.fromkeys(run for root in self.folders for run in run_folders(root)):
            run = Run(folder)
            if run.key not in self._runs:
                with self.lock:
                    self._runs[run.key] = run
        more = False
        for run in self:
            with self.lock:
                more |= run.read()
        self.complete = True
        return more

    def _follow(self) -> None:
        while not self._ended.is_set():
            more = self.read()
            self._ended.wait(0.0 if more else SECONDS)


def run_folders(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folder, if it is a run, or the runs in it."""
    try:
        if (folder / SETTINGS).is_file() or (folder / "metrics.jsonl").is_file():
            yield folder
            return
        inside = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
    except OSError:  # somebody else's, or gone meanwhile
        return
    if depth:
        for path in inside:
            if not path.is_symlink():
                yield from run_folders(path, depth - 1)
