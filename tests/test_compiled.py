"""Compiling C++ files: with compilers that know less than the CPU, and after a crash."""

import os
import shutil
from pathlib import Path

import pytest

from culm import compiled

COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = tmp_path / "one.cpp"
    made.write_text('extern "C" int one() { return 1; }')
    return made


def test_an_old_compiler_gets_the_fastest_set_that_it_knows(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest, *others = compiled.instruction_sets()
    if not others:
        pytest.skip("this CPU has one set")
    (refused,) = set(fastest.options[-1:])
    old = tmp_path / "bin" / "c++"
    old.parent.mkdir()
    old.write_text(
        f'#!/bin/sh\nfor o; do [ "$o" = {refused} ] && exit 1; done\nexec {COMPILER} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(old.parent), prepend=os.pathsep)
    compiled._compiles.cache_clear()
    try:
        assert refused not in compiled.instruction_set().options
        assert compiled.compiled(source, "a test").one() == 1
    finally:
        compiled._compiles.cache_clear()


def test_an_empty_file_is_compiled_again(source: Path) -> None:
    compiled.compiled(source, "a test")
    (made,) = (source.parent / "cache" / "culm").iterdir()
    made.unlink()  # the library that is loaded stays as it is
    made.touch()
    assert compiled.compiled(source, "a test").one() == 1
