"""Reports, plots and attention maps from tiny data."""

import json
from pathlib import Path

import pytest
import torch

from culm.eval import plots
from culm.eval.inspection import attention_maps
from culm.eval.report import table, write_report
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig

SCORE = {"value": 0.5, "low": 0.237, "high": 0.763, "items": 10}


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 1000


def write(folder: Path, steps: int, more: dict, **results) -> str:
    """The report of a run of so many steps."""
    lines = [
        {"step": n, "loss": 5 / n, "tokens": 100 * n, "seconds": 0.5, **more}
        for n in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text(json.dumps({"peak_bytes": 3 << 20, **results}))
    write_report(folder)
    return (folder / "report.md").read_text()


@pytest.mark.parametrize("steps", [4, 80])  # a long curve is smoothed
def test_report_of_pretraining(tmp_path, steps):
    sample = {"prompt": "The ", "temperature": 0.8, "text": "fox `` ran"}
    report = write(tmp_path, steps, {}, loss=2.5, bits_per_byte=1.75, samples=[sample])
    for shown in (
        f"# {tmp_path.name}", f"| steps | {steps} |", f"| tokens | {100 * steps:,} |",
        "| tokens per second | 200 |", f"| loss, first and last step | 5.000, {5 / steps:.3f} |",
        "| held-out bits per byte | 1.750 |", "| peak memory | 3 MiB |", "![loss](loss.png)",
        "Temperature 0.8:\n\n````text\nThe fox `` ran\n````", f"culm train {tmp_path}/run.yaml",
    ):  # fmt: skip
        assert shown in report
    assert is_picture(tmp_path / "loss.png")


def test_report_of_reinforcement(tmp_path):
    scores = {"sums": SCORE, "all": SCORE}
    report = write(tmp_path, 3, {"reward": 0.25}, scores=scores)
    for shown in ("![reward](reward.png)", "| sums | 50.0 % (23.7 - 76.3) |"):
        assert shown in report
    assert "held-out" not in report
    assert is_picture(tmp_path / "reward.png")
    assert is_picture(tmp_path / "scores.png")


def test_several_models_side_by_side(tmp_path):
    models = {name: {"sums": SCORE, "all": SCORE} for name in ("base", "tuned", "rl", "c", "fifth")}
    plots.bars(tmp_path / "bars.png", models)
    assert is_picture(tmp_path / "bars.png")


def test_attention_maps_are_computed_and_plotted(tmp_path):
    attention = GQA(heads=4, kv_heads=2, qk_norm="head")
    config = TransformerConfig(
        vocabulary=31, width=32, layers=2, context=16, attention=(attention,)
    )
    model = config.build(seed=1).eval()
    ids = [3, 1, 4, 1, 5]
    before = model(torch.tensor([ids]))
    weights = attention_maps(model, ids)[1]
    assert weights.shape == (4, 5, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4, 5))
    assert not weights.triu(1).any()
    # What a token attends to does not depend on those after it.
    torch.testing.assert_close(attention_maps(model, ids[:3])[1], weights[:, :3, :3])
    assert torch.equal(model(torch.tensor([ids])), before)
    plots.attention(tmp_path / "map.png", weights, [str(id) for id in ids], "layer 1")
    assert is_picture(tmp_path / "map.png")


def test_text_of_a_model_cannot_break_a_table():
    report = table(("question", "answer"), [("a | b", "one\ntwo | three")])
    assert report.splitlines()[2:] == [r"| a \| b | one two \| three |"]
