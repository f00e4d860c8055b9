"""Run untrusted Python programs, each in a sandbox of its own: see docs/concepts/sandbox.md.

>>> run("print(6 * 7)").stdout
'42\\n'

A program sees a read-only Python with the packages that are installed here, such as numpy, and a
folder of its own in /tmp that ends with it. It sees no other file, no network, no other process and
none of the environment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from culm.sandbox.limits import Limits
from culm.sandbox.mechanism import choose
from culm.sandbox.outcome import Outcome, Program
from culm.sandbox.worker import Worker

DEFAULTS = Limits()


def run(code: str, stdin: str = "", limits: Limits = DEFAULTS) -> Outcome:
    """How a program ended.

    Raises:
        SettingError: no mechanism can confine programs here.
    """
    with Worker(limits, choose(limits)) as worker:
        return worker.run(Program(code, stdin))


def run_all(
    programs: Iterable[str | Program], limits: Limits = DEFAULTS, workers: int = 4
) -> Iterator[Outcome]:
    """How each program ended, in order; this many run at once.

    Raises:
        SettingError: no mechanism can confine programs here.
    """
    mechanism = choose(limits)
    free: SimpleQueue[Worker] = SimpleQueue()
    with ExitStack() as stack:
        for _ in range(workers):
            free.put(stack.enter_context(Worker(limits, mechanism)))

        def one(program: str | Program) -> Outcome:
            worker = free.get()
            try:
                return worker.run(Program(program) if isinstance(program, str) else program)
            finally:
                free.put(worker)

        pool = stack.enter_context(ThreadPoolExecutor(workers))
        yield from pool.map(one, programs)
