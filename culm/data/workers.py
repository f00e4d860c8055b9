"""Who works on pieces of a corpus: this process, others on this machine, or a Ray cluster.

Pieces go out in the order of the corpus and results are taken in this order, so the corpus is the
same wherever its pieces were. Reading, and what compares texts with each other, stays here.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from multiprocessing import parent_process
from typing import Any, TypeVar

from culm.config import SettingError, UnavailableError

T = TypeVar("T")
Work = Callable[..., T]
AHEAD = 3  # pieces for each process that wait or are ready


@dataclass(frozen=True)
class Pool:
    """submit: gives a piece away, and returns what waits for its result. ahead: how many pieces to
    give away before the first result is taken.
    """

    submit: Callable[..., Callable[[], Any]]
    ahead: int

    def ready(self, given: Iterable[T]) -> Iterator[T]:
        """The pieces in their order, each when `ahead` further ones were given away, or all."""
        waiting = deque[T]()
        for piece in given:
            waiting.append(piece)
            if len(waiting) > self.ahead:
                yield waiting.popleft()
        yield from waiting


@dataclass(frozen=True)
class Workers:
    """processes: on this machine; 1 is this process. ray: in place of them, the address of a Ray
    cluster, "auto" for the one that this machine belongs to, or "local" for a cluster of this many
    processes that ends with the work.
    """

    processes: int = 1
    ray: str | None = None

    @contextmanager
    def pool(self, make: Callable[[], Work[T]]) -> Iterator[Pool]:
        """What calls `make()(piece)`. make: called once in each process, and pickled for it.

        Raises:
            SettingError: a process was killed, or there is no such cluster.
        """
        if self.ray is not None:
            with _cluster(self.ray, self.processes):
                yield _on_ray(make)
        elif self.processes == 1:
            yield here(make)
        else:
            with _processes(make, self.processes) as pool:
                yield pool


HERE = Workers()


def here(make: Callable[[], Work[T]]) -> Pool:
    """This process, which works on a piece as soon as it is given."""
    made = cache(make)

    def submit(*piece: Any) -> Callable[[], T]:
        done = made()(*piece)
        return lambda: done

    return Pool(submit, 0)


@contextmanager
def _processes(make: Callable[[], Work[T]], count: int) -> Iterator[Pool]:
    # Not forked: threads of this process may hold locks.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, spawn, _start, (make,))
    try:
        yield Pool(lambda *piece: pool.submit(_work, *piece).result, AHEAD * count)
    except BrokenProcessPool:
        raise UnavailableError(
            "data.workers: a process that cleans text ended; memory may be short (set fewer "
            'workers), or a script lacks the line if __name__ == "__main__":'
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_made: dict[str, Callable[[], Work[Any]]] = {}  # in a process of a pool: made once, by its pool


def _start(make: Callable[[], Work[Any]]) -> None:
    """Make this process ready for pieces; it ends with the one that started it."""
    _made[""] = cache(make)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nobody is there to give results to, and the pool would wait for ever


def _work(*piece: Any) -> Any:
    return _made[""]()(*piece)


@contextmanager
def _cluster(address: str, processes: int) -> Iterator[None]:
    """Connected to a Ray cluster; to the one that this process is connected to, if there is one."""
    try:
        import ray
    except ImportError:
        raise SettingError(
            f"data.ray: {address!r} needs an extra: pip install 'culm[ray]'"
        ) from None
    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == "local":
            ray.init(address, num_cpus=processes, include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UnavailableError(
            f"data.ray: no cluster at {address!r}: {why}; start one with ray start --head, or "
            "give local for one on this machine"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _on_ray(make: Callable[[], Work[T]]) -> Pool:
    """Tasks of Ray. One whose machine is lost is done again on another."""
    import ray

    made = ray.put(make)  # fetched once by each process
    task = ray.remote(_on_cluster)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))

    def submit(*piece: Any) -> Callable[[], T]:
        reference = task.remote(made.hex(), [made], version("culm"), piece)
        return partial(_taken, reference)

    return Pool(submit, AHEAD * cores)


def _taken(reference: Any) -> Any:
    """The result of a task, or its error without what Ray writes around it."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ImportError):
            raise SettingError(
                f"data.ray: a machine of the cluster lacks a library ({error.cause}); install "
                "the same on all machines"
            ) from None
        raise error.cause from None
    except ray.exceptions.RayError as error:
        why = str(error).strip().splitlines()[0].rstrip(".")
        raise UnavailableError(
            f"data.ray: the work on a piece of the corpus was lost: {why}; the same command "
            "continues where this one ended"
        ) from None


def _on_cluster(key: str, made: list[Any], expected: str, piece: tuple[Any, ...]) -> Any:
    """What a task does, in a process that may serve many."""
    if key not in _made:
        import ray

        if (found := version("culm")) != expected:
            raise SettingError(
                f"data.ray: a machine of the cluster has Culm {found} and this one {expected}; "
                "install the same on all machines"
            )
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray has a process for each core
        _made[key] = cache(ray.get(made[0]))
    return _made[key]()(*piece)
