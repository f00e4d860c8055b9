"""Settings that contradict each other."""

import pytest

from culm.config import SettingError
from culm.run.settings import read_run


@pytest.mark.parametrize(
    ("run", "format", "words"),
    [
        ("dpo", "label", "gives labels; kto and reward with loss=regression learn from labels"),
        ("dpo", "chat", "gives documents; next_token and distill learn from documents"),
        ("sft", "pair", "gives pairs; preference and reward with loss=bradley_terry learn from"),
    ],
)
def test_an_error_says_what_learns_from_a_format(run: str, format: str, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        read_run(run, ["data=pairs", "data.path=x.jsonl", f"data.format={{kind: {format}}}"])
