"""What goes in and out of a sandbox, its filter, and machines without a mechanism."""

import os
import struct
import subprocess

import pytest

from culm.config import SettingError, parse
from culm.sandbox import mechanism as choice
from culm.sandbox import seccomp
from culm.sandbox.limits import Limits
from culm.sandbox.mechanism import choose, summary
from culm.sandbox.sandbox import run


def test_text_goes_in_and_comes_out(in_sandbox) -> None:
    text = "Où est-ce? 東京 🙂 \0 end"
    outcome = in_sandbox("import sys; print(sys.stdin.read(), 'é')", stdin=text)
    assert outcome.stdout == f"{text} é\n"
    assert in_sandbox("print(input() + '?')", stdin="a\nb").stdout == "a?\n"
    assert in_sandbox("print(len(input()))", stdin="x" * 5_000_000).stdout == "5000000\n"


def test_bytes_that_are_no_text_are_replaced(in_sandbox) -> None:
    outcome = in_sandbox("import os; os.write(1, b'a\\xff\\x00b'); os.write(2, bytes(3))")
    assert (outcome.stdout, outcome.stderr) == ("a\ufffd\0b", "\0\0\0")


def test_a_program_sees_python_and_its_folder_alone(in_sandbox) -> None:
    code = "import os; print(sorted(os.environ)); print(os.listdir()); print(os.getpid() < 9)"
    outcome = in_sandbox(code)
    environment, folder, first = outcome.stdout.splitlines()
    known = {"HOME", "LANG", "MARKER", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PATH", "PWD"}
    assert set(eval(environment)) <= known | {"PYTHONHASHSEED", "LC_CTYPE"}
    assert "program.py" in folder
    assert first == "True"


def test_nothing_passes_from_one_program_to_the_next(in_sandbox) -> None:
    in_sandbox("""
import json, os
for name in ('sitecustomize', 'usercustomize', 'random', 'x'):
    open(f'/tmp/{name}.py', 'w').write('print(666)')
open('/tmp/x.pth', 'w').write('import x')
json.dumps = print
os.environ['LEFT'] = '1'
""")
    outcome = in_sandbox("import json, os, random; print(json.dumps([]), 'LEFT' in os.environ)")
    assert outcome.stdout == "[] False\n", outcome
    assert in_sandbox("import os; print(os.path.exists('x.py'))").stdout == "False\n"


def test_refused_system_calls(in_sandbox) -> None:
    which = seccomp.MACHINES.index(os.uname().machine)
    numbers = {
        name: pair[which] for name, pair in seccomp.DENIED.items() if pair[which] is not None
    }
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {numbers!r}.items():
    result = libc.syscall(number, -1, -1, -1, -1, -1, -1)
    if (result, ctypes.get_errno()) != (-1, 1): print(name, result, ctypes.get_errno())
"""
    outcome = in_sandbox(code)
    assert outcome.passed, outcome
    assert outcome.stdout == ""


def test_a_program_has_no_rights(in_sandbox) -> None:
    """Nobody, no capabilities, none to gain, a filter; and a read-only root."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, sets)
no_new_privileges, seccomp_mode = libc.prctl(39, 0, 0, 0, 0), libc.prctl(21, 0, 0, 0, 0)
print(0 in os.getresuid() + os.getresgid(), list(sets), no_new_privileges, seccomp_mode)
print(*(bool(os.statvfs(place).f_flag & os.ST_RDONLY) for place in ('/', '/usr/lib')))
print(sorted(set(os.listdir('/dev'))), [n for n in ('/proc', '/sys', '/bin') if os.path.exists(n)])
"""
    outcome = in_sandbox(code)
    assert outcome.passed, outcome
    rights, mounts, seen = outcome.stdout.splitlines()
    assert rights == "False [0, 0, 0, 0, 0, 0] 1 2"
    assert mounts == "True True"
    assert seen == "['null', 'random', 'urandom', 'zero'] []"


def decided(steps: bytes, number: int, arch: int, arguments: tuple[int, int] = (0, 0)) -> int:
    """What the filter returns, by an interpreter of the six instructions that it uses."""
    data = {0: number, 4: arch, 16: arguments[0], 24: arguments[1]}
    program = list(struct.iter_unpack("=HBBI", steps))
    held = at = 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == seccomp.RETURN:
            return value
        if code == seccomp.LOAD:
            held = data[value]
        else:
            test = {
                seccomp.EQUAL: held == value, seccomp.AT_LEAST: held >= value,
                seccomp.ANY_BIT: bool(held & value),
            }[code]  # fmt: skip
            at += yes if test else no


@pytest.mark.parametrize("machine", seccomp.MACHINES)
def test_the_filter_of_every_machine(machine: str) -> None:
    which = seccomp.MACHINES.index(machine)
    steps, arch = seccomp.program(machine), seccomp.ARCHITECTURE[which]
    eperm = seccomp.REFUSE | 1
    denied = {pair[which] for pair in seccomp.DENIED.values()} - {None}
    special = {seccomp.CLONE[which], seccomp.IOCTL[which], seccomp.CLONE3}
    for number in set(range(500)) - special:
        assert decided(steps, number, arch) == (eperm if number in denied else seccomp.ALLOW)
    assert decided(steps, 0, seccomp.ARCHITECTURE[1 - which]) == seccomp.KILL
    assert decided(steps, seccomp.CLONE3, arch) == seccomp.REFUSE | 38
    for flags, verdict in ((17, seccomp.ALLOW), (0x10000011, eperm), (0x20000, eperm)):
        assert decided(steps, seccomp.CLONE[which], arch, (flags, 0)) == verdict
    for request, verdict in ((0x5401, seccomp.ALLOW), (0x5412, eperm), (0x541C, eperm)):
        assert decided(steps, seccomp.IOCTL[which], arch, (0, request)) == verdict
    if machine == "x86_64":
        assert decided(steps, seccomp.X32 + 41, arch) == eperm


def test_run_takes_what_works_here(mechanism) -> None:
    outcome = run("print(6 * 7)")
    assert (outcome.passed, outcome.stdout) == (True, "42\n")
    assert outcome.mechanism in summary()


def test_nothing_runs_where_nothing_confines(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(choice, "obstacle", lambda name: f"no {name} here")
    with pytest.raises(
        SettingError, match=r"^sandbox\.mechanism: .*apt install bubblewrap"
    ) as error:
        run(f"open({str(tmp_path / 'x')!r}, 'w')")
    assert "mechanism=unconfined" in str(error.value)
    assert os.listdir(tmp_path) == []
    assert "refused" in summary()


def test_a_mechanism_that_is_missing_is_named(monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    choice.obstacle.cache_clear()
    with pytest.raises(SettingError, match="bwrap is not installed"):
        choose(Limits(mechanism="bubblewrap"))
    choice.obstacle.cache_clear()


def test_unconfined_is_never_chosen_but_can_be_asked_for() -> None:
    limits = Limits(seconds=0.7, mechanism="unconfined")
    outcome = run("import os; print(os.getcwd())", limits=limits)
    assert (outcome.passed, outcome.mechanism) == (True, "unconfined")
    assert not os.path.exists(outcome.stdout.strip())
    assert run("while True: pass", limits=limits).status == "timed_out"
    assert "unconfined" not in choice.ORDER


def test_settings_are_checked() -> None:
    with pytest.raises(SettingError, match="seconds"):
        parse(Limits, {"seconds": 0})
    with pytest.raises(SettingError, match="mechanism"):
        parse(Limits, {"mechanism": "none"})


def test_it_starts_without_packages(root) -> None:
    """The template may import nothing but the standard library."""
    code = "import culm.sandbox.template, sys; print([n for n in sys.modules if 'pydantic' in n])"
    done = subprocess.run(
        ["python3", "-S", "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
