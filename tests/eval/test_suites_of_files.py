"""The suites of code and of tool calls, from the command to the results, on local files."""

import json
from pathlib import Path

import pytest
from suites import local, write

from culm.config import SettingError
from culm.convert import native
from culm.eval.questions import distinct
from culm.task.tool_calls import ToolCalls
from culm.tokenizer.bytes import Bytes
from culm.verbs.evaluate import Options, show_evaluation


@pytest.fixture
def model(tmp_path) -> str:
    """One that reads any text."""
    tokenizer = Bytes(specials=True).build()
    config = local().model.config
    attention = config.attention
    wide = {"vocabulary": tokenizer.vocabulary, "context": 4096, "attention": attention}
    native.save(config.model_copy(update=wide).build(1).eval(), tokenizer, tmp_path / "model")
    return str(tmp_path / "model")


def measured(model: str, capsys, **options) -> dict:
    show_evaluation(model, Options(as_json=True, device="cpu", **options))
    return json.loads(capsys.readouterr().out)


def test_code_with_several_samples(model, tmp_path, capsys) -> None:
    """An own suite changes how replies are made, by name of the one below it."""
    records = [
        {"text": f"Give {n}.", "code": "", "test_list": ["assert f() == 1"]} for n in range(5)
    ]
    write(tmp_path, "mbpp.jsonl", records)
    own = tmp_path / "mine.yaml"
    own.write_text(
        "base: code\nmeasures: {scores: {samples: 2, temperature: 0.8, max_tokens: 4}}\n"
    )
    found = measured(model, capsys, suite=str(own), data=str(tmp_path), questions=2)
    assert found["scores"]["mbpp"]["items"] == 2
    assert found["pass_at_k"] == {"mbpp": {"1": 0.0, "2": 0.0}}


def test_tools_from_the_files_of_bfcl(model, shared, capsys) -> None:
    folder = str(shared("tool_use"))
    found = measured(model, capsys, suite="tools", data=folder, questions=1)
    scores = {name: one["items"] for name, one in found["scores"].items()}
    assert scores == {
        "BFCL_v4_simple_python": 1, "BFCL_v4_multiple": 1, "BFCL_v4_irrelevance": 1, "all": 3,
    }  # fmt: skip


def test_answers_may_stand_in_a_folder_as_bfcl_has_them(tmp_path) -> None:
    schema = {"type": "dict", "properties": {}, "required": []}
    asked = {"id": "a", "question": [[{"role": "user", "content": "?"}]],
             "function": [{"name": "f", "parameters": schema}]}  # fmt: skip
    write(tmp_path, "x.json", [asked])
    (tmp_path / "possible_answer").mkdir()
    write(tmp_path / "possible_answer", "x.json", [{"id": "a", "ground_truth": [{"f": {}}]}])
    task = ToolCalls(path=str(tmp_path / "x.json"), answers=str(tmp_path / "possible_answer"))
    (question,) = task.asked("test")
    assert [task.score(question, reply) for reply in ("f()", "?")] == [1, 0]
    lost = ToolCalls(path=str(tmp_path / "x.json"), answers=str(tmp_path / "nothing"))
    with pytest.raises(SettingError, match=r"tasks\.answers: there is no file"):
        lost.asked("test")


def test_questions_that_differ_in_their_tools_are_all_asked(shared) -> None:
    paths = (
        str(shared(f"tool_use/{start}BFCL_v4_multiple.json.gz"))
        for start in ("", "possible_answer_")
    )
    task = ToolCalls(**dict(zip(("path", "answers"), paths, strict=True)))
    assert len(distinct([task], None, 1)) == 200
    assert Path(task.path).exists()
