"""`culm doctor` finds operations that are not exact, and says what to do."""

import math

import pytest
import torch

from culm.cli import main
from culm.engine.fused_library import no_library
from culm.model.backend import choose_backend
from culm.verbs import doctor_numerics
from culm.verbs.doctor import show_doctor
from culm.verbs.doctor_numerics import COARSE_FP32, OTHER_PRECISION, FusedDecoder, numerics
from culm.verbs.doctor_numerics import AdamWRule as Rule

CPU = torch.device("cpu")
IN_BF16 = choose_backend(CPU, dtype=torch.bfloat16)
REMEDY = OTHER_PRECISION if IN_BF16 == "blocks" else "use train.attention_backend=blocks"
fused = pytest.mark.skipif(no_library() is not None, reason=str(no_library()))


def failed() -> dict[tuple[str, str], str]:
    return {(one.name, one.precision): one.remedy for one in numerics(CPU) if not one.passed}


def changed(monkeypatch, owner, name, change) -> None:
    """Replace a function by one that changes its result."""
    known = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **more: change(known(*given, **more)))


def test_this_machine_is_exact_and_every_precision_is_tried():
    checks = list(numerics(CPU))
    assert [one for one in checks if not one.passed] == []
    names = {(one.name, one.precision) for one in checks}
    assert {("matmul", "fp32"), ("matmul", "bf16"), (f"attention by {IN_BF16}", "bf16")} <= names
    assert all(0 < one.error <= one.limit / 2 for one in checks)  # limits are not tight


def test_a_matmul_in_fp32_that_rounds_as_tf32_is_found(monkeypatch):
    def coarse(x: torch.Tensor) -> torch.Tensor:
        return torch.round(x * 2**10) / 2**10 if x.dtype == torch.float32 else x

    known = torch.matmul
    monkeypatch.setattr(torch, "matmul", lambda x, y: known(coarse(x), coarse(y)))
    assert failed() == {("matmul", "fp32"): COARSE_FP32}


@pytest.mark.parametrize(
    "change", [lambda out: out * 1.05, lambda out: out * math.nan], ids=["off", "NaN"]
)
def test_an_attention_that_is_off_is_found_in_each_precision(monkeypatch, change):
    changed(monkeypatch, doctor_numerics, "attend", change)
    assert failed() == {
        ("attention by blocks", "fp32"): COARSE_FP32,
        (f"attention by {IN_BF16}", "bf16"): REMEDY,
    }


def test_an_optimizer_that_is_off_is_found(monkeypatch):
    def halved(self, parameter, gradient, state, group) -> None:
        update(self, parameter, gradient, state, {**group, "lr": group["lr"] / 2})

    update = Rule.update
    monkeypatch.setattr(Rule, "update", halved)
    assert failed() == {("AdamW", "fp32"): "update PyTorch"}


@fused
def test_a_fused_step_that_is_off_is_found(monkeypatch):
    changed(monkeypatch, FusedDecoder, "__call__", lambda logits: logits.flip(-1))
    found = failed()
    assert set(found) == {("decoding", kind) for kind in ("bf16", "int8", "int4")}
    assert all("~/.cache/culm" in remedy for remedy in found.values())


def test_an_operation_that_fails_is_said_and_the_exit_is_not_zero(monkeypatch, capsys):
    def fails(*given: object) -> None:
        raise RuntimeError("no kernel image is available\nat line 3")

    monkeypatch.setattr(doctor_numerics, "attend", fails)
    monkeypatch.setattr("sys.argv", ["culm", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().out.split())
    assert f"attention by {IN_BF16}, bf16 it fails: no kernel image is available; {REMEDY}" in said


def test_an_error_is_shown_with_its_limit(monkeypatch, capsys):
    changed(monkeypatch, doctor_numerics, "attend", lambda out: out * 1.5)
    assert not show_doctor()
    said = capsys.readouterr().out
    assert f"5.0e-01, more than 1e-05: {COARSE_FP32}" in said
