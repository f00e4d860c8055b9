"""The interpreter that a model may use: it keeps variables, and nothing leaves it."""

import sys
import time

import pytest

from culm.config import SettingError
from culm.tools.function import run
from culm.tools.python import PythonFunction

pytest.importorskip("pydantic_monty")


@pytest.fixture
def python():
    function = PythonFunction(seconds=1.0)
    yield lambda code, seconds=30: run(function, {"code": code}, seconds)
    function.close()


def test_variables_stay_and_errors_are_texts(python):
    assert python("x = [1, 2]").text == "None"
    assert python("print(len(x))\nsum(x)").text == "2\n3"
    assert python("print('before'); 1 / 0") == (
        "error: before\nZeroDivisionError: division by zero", True,
    )  # fmt: skip
    assert python("x").text == "[1, 2]"
    assert "SyntaxError" in python("def f(:").text
    assert python("'\ud800'").failed
    assert python("x").text == "[1, 2]"


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "y = 'a' * 10**10",
        "10 ** 10**9",
        "y = [0] * 10**6\nz = [y[:] for _ in range(1000)]",
        "while True: print('x' * 1000)",
        "import time\nwhile True: time.sleep(9)",
    ],
)
def test_time_and_memory_have_limits_and_a_loss_is_said(python, code):
    python("x = 1")
    start = time.monotonic()
    found = python(code)
    assert found.failed
    assert "started again" in found.text
    assert time.monotonic() - start < 10
    assert "NameError" in python("x").text
    assert python("1 + 1").text == "2"


def test_less_time_than_the_limit(python):
    assert python("x = 1").text == "None"
    start = time.monotonic()
    assert python("while True: pass", 0.2).failed
    assert time.monotonic() - start < 0.9


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd').read()",
        "import os; os.environ['PATH']",
        "import os; os.system('true')",
        "import socket",
        "import subprocess",
        "import ctypes",
        "from pathlib import Path; Path('/etc/passwd').read_text()",
        "from pathlib import Path; list(Path('/').iterdir())",
        "__import__('os').listdir('/')",
        "().__class__.__bases__[0].__subclasses__()",
    ],
)
def test_nothing_outside_is_reached(python, code):
    assert python(code).failed


def test_there_is_no_other_interpreter(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(SettingError, match=r"culm\[agent\]"):
        PythonFunction()
