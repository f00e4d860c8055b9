"""`culm doctor` names extras that a user may want, and no others."""

import platform

import pytest

from culm.engine import fused_library
from culm.model import flash_cpu
from culm.model.backend import trial
from culm.verbs import doctor, doctor_kernels, doctor_numerics
from culm.verbs.doctor import USES, show_doctor

DEVELOPERS = ("dev", "test", "lint", "docs", "bench", "rl-ref", "llama-cpp", "hf")


def test_only_extras_for_users(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {name: [f"package-of-{name}"] for name in (*USES, *DEVELOPERS)}
    monkeypatch.setattr(doctor, "extras", lambda: known)
    show_doctor()
    shown = capsys.readouterr().out.split("Extras\n")[1].splitlines()
    assert [line.split()[0] for line in shown] == list(USES)
    for line, extra in zip(shown, USES, strict=True):
        assert f"not installed: pip install 'culm[{extra}]'; for {USES[extra]}" in line


def test_a_cpu_without_the_fused_step_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(fused_library, "library", fused_library.library.__wrapped__)
    for module in (doctor_kernels, doctor_numerics):
        monkeypatch.setattr(module, "no_library", fused_library.no_library.__wrapped__)
    monkeypatch.setattr(doctor_kernels, "trial", trial.__wrapped__)
    monkeypatch.setattr(flash_cpu, "library", flash_cpu.library.__wrapped__)
    show_doctor()
    lines = {line.partition("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    reason = (
        "this CPU (riscv64) is neither x86-64 nor ARM with the dot product instructions (asimddp)"
    )
    assert lines["decoding"].endswith(f"the fused step: {reason}")
    assert lines["attention"].endswith(f"flash_cpu: {reason}")
