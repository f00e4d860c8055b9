"""One piece of work in the background, on all ranks, of which each step asks whether it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable

from culm.parallel.ranks import Ranks


class Background:
    """A thread on each rank, for this rank's part of one piece of work.

    work: ends with an agreement of all ranks on whether it failed, so all get the same result.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._error = work, list[BaseException]()
        # A daemon, since a process that is to end at once must not wait for a slow disk.
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error.append(error)

    def ended(self, ranks: Ranks) -> bool:
        """Whether it has ended on all ranks; every rank asks at the same step."""
        return all(ranks.everyone(not self._thread.is_alive()))

    def result(self) -> None:
        """Wait for its end.

        Raises:
            BaseException: what the work raised.
        """
        self._thread.join()
        if self._error:
            raise self._error[0]
