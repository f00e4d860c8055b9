"""Log-probabilities of the reference that are computed once, before the first step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_resume import facts, run

from culm.config import SettingError, parse
from culm.objective.preference import Preference, PreferenceObjective
from culm.run.precomputed import NAME
from culm.run.settings import read_run
from culm.verbs.plan import show_plan

LOSSES: tuple[dict[str, Any], ...] = (
    {"loss": "sigmoid"},
    {"loss": "ipo"},
    {"loss": "sppo", "nll": 0.5},
    {"loss": "sigmoid", "tail": 0.3},
)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_the_losses_are_those_with_a_reference_model(
    loss: dict[str, Any], adapter: bool, stage: Callable[..., dict], tmp_path: Path
) -> None:
    settings = stage("dpo", adapter=adapter, steps=5)
    for name in ("model", "precomputed"):
        objective = {"kind": "preference", "beta": 0.5, **loss, "reference": name}
        run(settings, tmp_path / name, objective=objective)
    for a, b in zip(facts(tmp_path / "model"), facts(tmp_path / "precomputed"), strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    assert (tmp_path / "precomputed" / NAME).exists()
    assert not (tmp_path / "model" / NAME).exists()


def test_it_is_read_again_and_computed_again_where_it_is_gone(
    stage: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    compute = PreferenceObjective.precompute

    def counted(self: PreferenceObjective, batch: Any) -> Any:
        calls.append(len(batch.tokens))
        return compute(self, batch)

    monkeypatch.setattr(PreferenceObjective, "precompute", counted)
    settings = stage("precomputed", steps=6)
    run(settings, tmp_path / "one")
    once, wanted = sum(calls), (tmp_path / "one" / NAME).read_bytes()
    run(settings, tmp_path / "two", steps=2)
    run(settings, tmp_path / "two", steps=4)
    assert sum(calls) == 2 * once
    (tmp_path / "two" / NAME).unlink()
    run(settings, tmp_path / "two", steps=5)
    (tmp_path / "two" / NAME).write_bytes(wanted[:100])
    run(settings, tmp_path / "two")
    assert sum(calls) == 4 * once
    assert (tmp_path / "two" / NAME).read_bytes() == wanted
    assert facts(tmp_path / "two") == facts(tmp_path / "one")


@pytest.mark.slow
def test_no_copy_of_the_start_is_kept_and_a_plan_says_so(
    stage: Callable[..., dict], run_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for name in ("dpo", "precomputed"):
        show_plan(*read_run(str(run_file(name))))
        said.append(capsys.readouterr().out)
    assert "computed for all pairs before the first step" in said[1]
    assert "computed for all pairs before the first step" not in said[0]
    weights = [one[one.index("weights ") :].split(",")[0] for one in said]
    assert weights[0] != weights[1]


def test_losses_without_a_reference_precompute_none() -> None:
    with pytest.raises(SettingError, match="reference: simpo compares with no reference"):
        parse(Preference, {"loss": "simpo", "reference": "precomputed"})
