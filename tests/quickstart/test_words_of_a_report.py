"""The quickstart says what its numbers say, and what a budget does not pay for."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

from culm.eval import plots
from culm.quickstart import quickstart, report
from culm.quickstart.quickstart import LEAST_STEPS, SHARES, Quickstart
from culm.quickstart.stages import Stages

STAGES = {"tokenizer": {"bytes": 2_000_000}}


def summary(tuned: float, reinforced: float, before: float, after: float) -> dict[str, Any]:
    scores = {
        name: {"all": {"value": value, "low": value - 0.1, "high": value + 0.1}}
        for name, value in (("sft", tuned), ("rl", reinforced))
    }
    size = {"before": before, "after": after}
    return {"exact_match": scores, "bits_per_byte": size, "seconds": {"pretrain": 90.0}}


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((0.5, 0.7, 8.0, 2.0), ("text fell from 8.00 to 2.00", "20.0 points more.")),
        ((0.7, 0.5, 2.0, 8.0), ("text did not fall: they went from 2.00", "20.0 points less.")),
        ((0.5, 0.5, 2.0, 2.0), ("text did not fall: they went from 2.00", ": no change.")),
    ],
)
def test_the_opening_follows_the_numbers(numbers: tuple, words: tuple[str, str]) -> None:
    opening = report._opening(STAGES, summary(*numbers))
    assert all(word in opening for word in words), opening
    assert "improve" not in opening


def test_stages_follow_each_other_on_the_axis_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, steps in (("pretrain", 40), ("sft", 30), ("rl", 3), ("control", 3)):
        (tmp_path / name).mkdir()
        lines = (f'{{"step": {n}, "loss": 1.0, "reward": 0.5}}\n' for n in range(1, steps + 1))
        (tmp_path / name / "metrics.jsonl").write_text("".join(lines))
    (tmp_path / "pretrain" / "eval.jsonl").write_text('{"step": 0, "bits_per_byte": 8.0}\n')
    drawn: dict[str, dict] = {}
    monkeypatch.setattr(
        report, "lines", lambda path, curves, x, y: drawn.update({path.name: curves})
    )
    monkeypatch.setattr(report, "bars", lambda path, models: drawn.update({path.name: models}))

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr(report, "attention_maps", stop)
    words = summary(0.5, 0.5, 8.0, 2.0)
    words["exact_match"] |= dict.fromkeys(("base", "control"), words["exact_match"]["sft"])
    from tiny import model

    from culm.tokenizer.bytes import Bytes

    with pytest.raises(Stop):
        report._draw(tmp_path, tmp_path, words, model(), Bytes(specials=True).build())
    pretrain, sft = drawn["loss.png"]["pretrain"], drawn["loss.png"]["sft"]
    assert [pretrain[-1][0], sft[0][0], sft[-1][0]] == [40, 41, 70]


def test_the_axes_of_attention_maps_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list = []
    monkeypatch.setattr(plots, "_write", lambda figure, path: figures.append(figure))
    tokens = ["What", "·is", "·17", "?"]
    plots.attention(tmp_path / "map.png", torch.rand(2, 4, 4), tokens, "layer 1")
    first, second = figures[0].axes[:2]
    assert (first.get_xlabel(), first.get_ylabel()) == ("token that is read", "token that reads")
    assert second.get_xlabel() == "token that is read"
    assert [label.get_text() for label in first.get_xticklabels()] == tokens
    plt.close("all")


def test_a_short_budget_is_said_before_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "seconds_per_step", lambda config: 60.0)
    for minutes in (0.2, 100_000):
        folder = tmp_path / str(minutes)
        folder.mkdir()
        steps = Quickstart(folder, [], minutes, "cpu", 0)._steps("pretrain")
        told = " ".join(capsys.readouterr().err.split())
        if minutes < 1:
            assert steps == LEAST_STEPS
            assert "of 0.2 minutes is enough for 0 steps of 60.0 s; 10 are made" in told
            assert "Give more --minutes" in told
        else:
            assert steps > LEAST_STEPS
            assert "minutes" not in told


def test_every_stage_says_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Quickstart(tmp_path, [], 10, "cpu", 0)
    monkeypatch.setattr(Stages, "run", lambda stages, name, work, *outputs: None)
    run.run()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Stage ")]
    names = ["corpus", "tokenizer", *SHARES, "evaluate", "pack", "report"]
    assert lines == [f"Stage {n} of 9: {name}" for n, name in enumerate(names, 1)]
