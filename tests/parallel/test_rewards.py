"""A judge and a function of a file score the same on one rank and on two, and after a resume."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from judging import Stub
from stages import untimed
from test_ranks import assert_same, on_two_ranks

from culm.files import read_lines
from culm.run.settings import read_run
from culm.run.train import train

CODE = """
def odd(completion, answer, **fields):
    total = sum(map(ord, completion))
    return total % 7 if total % 5 else None
"""


@pytest.mark.slow
def test_two_ranks_and_a_resumed_run_score_as_one(
    run_file: Callable[..., Path],
    stub: Stub,
    tmp_path: Path,
) -> None:
    (tmp_path / "my.py").write_text(CODE)
    file = run_file("grpo", steps=4)
    settings = yaml.safe_load(file.read_text())
    judge = {"kind": "judge", "url": stub.url, "model": "m", "pairs": 3}
    function = {"kind": "function", "path": str(tmp_path / "my.py"), "name": "odd"}
    settings["train"]["reward"] = [judge, {**function, "whiten": True, "clip": 1.5}]
    file.write_text(yaml.safe_dump(settings))
    on_two_ranks(f"{file},folder={file}-two")
    for steps in (2, 4):
        train(read_run(str(file), [f"train.steps={steps}", f"folder={file}-resumed"])[0])
    config, _ = read_run(str(file))
    train(config)
    assert_same(Path(config.folder), Path(f"{file}-two"))
    lines = [
        [untimed(line) for line in read_lines(folder)]
        for folder in (Path(config.folder) / "metrics.jsonl", Path(f"{file}-resumed/metrics.jsonl"))
    ]
    assert lines[0] == lines[1]
    assert 0 < lines[0][0]["unscored"] < 1
    assert "reward_judge" in lines[0][0]
    assert "reward_function" in lines[0][0]
