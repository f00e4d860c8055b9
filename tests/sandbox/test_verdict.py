"""Only a program that reaches its last line passes."""

import pytest

FAKES = {
    "exit": "import os; os._exit(0)",
    "sys.exit": "import sys; sys.exit()",
    "quit": "quit()",
    "SystemExit": "raise SystemExit",
    "a success line": "print('passed'); print('OK'); assert False",
    "an exit handler": "import atexit, os; atexit.register(os._exit, 0); assert False",
    "a hook": "import sys, os; sys.excepthook = lambda *a: os._exit(0); assert False",
    "another os._exit": "import os; os._exit = lambda code: None; assert False",
    "builtins": """
import builtins
builtins.AssertionError = builtins.exec = builtins.compile = builtins.print = lambda *a: None
assert False
""",
    "a report": """
import os
for descriptor in range(3, 64):
    try: os.write(descriptor, b'{"end": "finished", "exit_code": 0, "cpu_seconds": 0}\\n')
    except OSError: pass
os._exit(0)
""",
    "a report without an end": """
import os
for descriptor in range(3, 64):
    try: os.write(descriptor, b'\\xff[[[[' * 10_000)
    except OSError: pass
os._exit(0)
""",
    "another program": "import os, sys; os.execv(sys.executable, ['python', '-c', 'pass'])",
    "a child": "import os\nif os.fork(): os._exit(0)\n",
    "a thread": """
import threading, os
threading.Thread(target=os._exit, args=(0,)).start()
import time; time.sleep(5)
""",
    "a signal": "import os, signal; signal.signal(15, lambda *a: os._exit(0)); os.kill(0, 15)",
    "a class": "import sys\nclass Main: pass\nsys.modules['__main__'] = Main; assert False",
    "streams": "import sys; sys.stdout = sys.stderr = None; assert False",
    "a syntax error": "def",
    "a null": "x = '\0'",
    "a lone surrogate": "x = '\ud800'",
}


@pytest.mark.parametrize("name", FAKES)
def test_a_fake_does_not_pass(name: str, in_sandbox) -> None:
    outcome = in_sandbox(FAKES[name] + "\n")
    assert outcome.status == "failed", outcome
    assert outcome.reason


HONEST = {
    "nothing": "",
    "a child that ends": "import os\nif os.fork() == 0: os._exit(1)\nos.wait()",
    "a child that comes to the end too": "import os; os.fork()",
    "a thread": "import threading; threading.Thread(target=lambda: print(1)).start()",
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(0.01))",
    "a dataclass": "import dataclasses\n@dataclasses.dataclass\nclass A:\n  x: 'int'\nA(1)",
    "pickle": "import pickle\nclass A: pass\nassert pickle.loads(pickle.dumps(A))",
    "its source": "import inspect\ndef f(): return 1\nassert 'return 1' in inspect.getsource(f)",
    "as main": "assert __name__ == '__main__'",
    "a file": "open('x', 'w').write('y'); assert open('/tmp/x').read() == 'y'",
    "numpy": "import numpy; assert numpy.linalg.inv(numpy.eye(3)).sum() == 3",
    "another python": """
import subprocess, sys
assert subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True).stdout == b'1\\n'
""",
    "streams": "import sys, io; sys.stdout = io.StringIO(); print(1)",
    "annotations": "def f(x: int): pass\nassert f.__annotations__['x'] is int",
    "random": "import random, tempfile; tempfile.TemporaryFile(); random.random()",
    "devices": "open('/dev/null', 'w').write('x'); assert open('/dev/urandom', 'rb').read(1)",
    "clock": "import datetime, zoneinfo; datetime.datetime.now(zoneinfo.ZoneInfo('UTC'))",
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_program_passes(name: str, in_sandbox) -> None:
    outcome = in_sandbox(HONEST[name])
    assert outcome.passed, outcome


def test_a_failure_says_which(in_sandbox) -> None:
    outcome = in_sandbox("def f():\n    assert 1 == 2, 'no'\nf()")
    assert (outcome.status, outcome.exit_code) == ("failed", 1)
    assert outcome.reason == "It raised AssertionError."
    assert outcome.stderr.startswith('Traceback (most recent call last):\n  File "/tmp/program.py"')
    assert "assert 1 == 2, 'no'" in outcome.stderr
    assert "culm" not in outcome.stderr


def test_exit_codes_are_those_of_python(in_sandbox) -> None:
    assert in_sandbox("import sys; sys.exit(3)").exit_code == 3
    assert in_sandbox("import sys; sys.exit('why')").stderr == "why\n"
    assert in_sandbox("import os; os.abort()").exit_code == -6


def test_handlers_and_threads_come_before_the_end(in_sandbox) -> None:
    code = """
import atexit, threading, time
atexit.register(print, 3)
threading.Thread(target=lambda: (time.sleep(0.1), print(2))).start()
print(1)
"""
    assert in_sandbox(code).stdout == "1\n2\n3\n"
