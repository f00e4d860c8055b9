"""Settings that contradict each other."""

import pytest

from culm.config import SettingError
from culm.run.settings import read_run


@pytest.mark.parametrize(
    ("run", "format", "words"),
    [
        ("dpo", "label", "gives labels; kto and reward with loss=regression learn from labels"),
        (
            "dpo",
            "chat",
            "gives documents; next_token, masked_diffusion and distill learn from",
        ),
        ("sft", "pair", "gives pairs; preference and reward with loss=bradley_terry learn from"),
    ],
)
def test_an_error_says_what_learns_from_a_format(run: str, format: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        read_run(run, ["data=pairs", "data.path=x.jsonl", f"data.format={{kind: {format}}}"])


def test_results_that_one_backward_uses_up_do_not_suit_one_in_two_parts() -> None:
    """PyTorch gives them once: "Trying to backward an extra time"."""
    layout = ["parallel.pipeline=2", "parallel.pipeline_schedule=zero_bubble"]
    with pytest.raises(SettingError, match=r"train\.activation_checkpointing: selective .* full"):
        read_run("demo", [*layout, "train.activation_checkpointing=selective"])
    read_run("demo", [*layout, "train.activation_checkpointing=full"])


def test_a_pipeline_gathers_no_whole_checkpoint() -> None:
    """A plan says so too, since the settings alone tell."""
    with pytest.raises(SettingError, match=r"train\.checkpoint\.form: .* use sharded or auto"):
        read_run("demo", ["parallel.pipeline=2", "train.checkpoint.form=whole"])
