"""A program that wants too much ends, with a status that says why; the next one runs as usual."""

import time

import pytest

# Programs, and the statuses that they may have.
BOMBS = {
    "a loop": ("while True: pass", {"timed_out"}),
    "a loop in C": ("10 ** 10 ** 8", {"timed_out"}),
    "a regular expression": (
        "import re; re.match('(a+)+$', 'a' * 50 + 'b')", {"timed_out"},
    ),
    "sleep": ("import time; time.sleep(100)", {"timed_out"}),
    "a wait for input": ("import os; r, w = os.pipe(); os.read(r, 1)", {"timed_out"}),
    "a stop": ("import os; os.kill(os.getpid(), 19); import time; time.sleep(9)", {"timed_out"}),
    "closed output": ("import os, time; os.close(1); os.close(2); time.sleep(9)", {"timed_out"}),
    "ignored signals": (
        """
import signal
for number in set(signal.Signals) - {9, 19}: signal.signal(number, signal.SIG_IGN)
while True: pass
""", {"timed_out"},
    ),
    "a child that loops": (
        "import os\nif os.fork() == 0:\n  while True: pass\nos.wait()", {"timed_out", "passed"},
    ),
    "forks": ("import os\nwhile True: os.fork()", {"failed", "timed_out", "out_of_memory"}),
    "caught forks": (
        """
import os
while True:
    try: os.fork()
    except OSError: pass
""", {"timed_out", "out_of_memory"},
    ),
    "zombies": (
        "import os\nwhile True:\n  if os.fork() == 0: os._exit(0)", {"failed"},
    ),
    "threads": (
        """
import threading, time
while True: threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
""", {"failed"},
    ),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", {"out_of_memory"}),
    "memory of many processes": (
        """
import os, time
for _ in range(5):
    if os.fork() == 0: x = os.urandom(50 << 20); time.sleep(9)
time.sleep(9)
""", {"out_of_memory"},
    ),
    "a large number": ("x = bytearray(10 ** 12)", {"out_of_memory"}),
    "a large string": ("x = 'x' * 10 ** 11", {"out_of_memory"}),
    "a map": ("import mmap; mmap.mmap(-1, 1 << 40)", {"failed"}),
    "deep recursion": ("def f(): return f()\nf()", {"failed"}),
    "deep recursion in C": (
        "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(x): return f([x])\nf(1)",
        {"killed", "out_of_memory", "timed_out"},
    ),
    "a large file": (
        "f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", {"failed"},
    ),
    "a sparse file": ("open('x', 'wb').truncate(1 << 40)", {"failed"}),
    "many large files": (
        "for n in range(10 ** 6): open(str(n), 'wb').write(bytes(1 << 20))", {"failed"},
    ),
    "many files": ("for n in range(10 ** 6): open(str(n), 'w').close()", {"failed", "timed_out"}),
    "many open files": ("x = [open('x', 'w') for n in range(1000)]", {"failed"}),
    "a crash": ("import ctypes; ctypes.string_at(0)", {"killed"}),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_program_that_wants_too_much_ends(name: str, in_sandbox) -> None:
    code, statuses = BOMBS[name]
    started = time.monotonic()
    seconds = 0.3 if "timed_out" in statuses else 8.0
    outcome = in_sandbox(code, seconds=seconds, memory_bytes=128 << 20)
    assert outcome.status in statuses, outcome
    assert time.monotonic() - started < 12
    assert in_sandbox("print(1)").stdout == "1\n"


def test_cpu_time_is_limited_apart_from_wall_time(in_sandbox) -> None:
    outcome = in_sandbox("while True: pass", cpu_seconds=1, seconds=20)
    assert outcome.status == "timed_out"
    assert outcome.seconds < 10
    assert "1 s" in outcome.reason


def test_the_time_limit_is_kept(in_sandbox) -> None:
    outcome = in_sandbox("import time; time.sleep(100)", seconds=0.5)
    assert 0.5 <= outcome.seconds < 2
    assert outcome.exit_code is None


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_long_output_is_cut_and_says_so(stream: str, in_sandbox) -> None:
    code = f"import sys\nfor n in range(100): sys.{stream}.write('x' * 100_000)"
    outcome = in_sandbox(code)
    text = getattr(outcome, stream)
    assert outcome.passed
    assert outcome.truncated
    assert text.startswith("x" * 65_536)
    assert text.endswith("\n[cut after 65536 bytes]")
    assert len(text) < 65_600


def test_output_without_end_is_cut(in_sandbox) -> None:
    outcome = in_sandbox("while True: print('x' * 1000)", seconds=0.5)
    assert (outcome.status, outcome.truncated) == ("timed_out", True)


def test_short_output_is_whole(in_sandbox) -> None:
    outcome = in_sandbox("print('x' * 65_535)")
    assert (len(outcome.stdout), outcome.truncated) == (65_536, False)


def test_output_before_the_time_limit_is_kept(in_sandbox) -> None:
    outcome = in_sandbox("import time; print('so far', flush=True); time.sleep(9)", seconds=0.5)
    assert outcome.stdout == "so far\n"


def test_processes_are_counted_in_each_sandbox(in_sandbox) -> None:
    code = """
import os, time
children = 0
for _ in range(100):
    try: pid = os.fork()
    except OSError: break
    if pid == 0: time.sleep(9); os._exit(0)
    children += 1
print(children)
"""
    assert in_sandbox(code, processes=1).stdout == "0\n"
    assert in_sandbox(code, processes=5).stdout == "4\n"
