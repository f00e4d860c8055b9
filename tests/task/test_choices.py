"""Multiple choice in the forms of public benchmarks: contexts and options as their harness has."""

import json
import os
from pathlib import Path

import pytest

from culm.config import SettingError, parse
from culm.task import AnyTask

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("CULM_DATA", ROOT.parent / "shared" / "data")) / "eval_mc_train"
ARC = {"text": ["dry palms", "wet palms"], "label": ["A", "B"]}
FORMS = [
    (
        {"id": "1", "question": "Which is warm?", "choices": ARC, "answerKey": "B"},
        "Question: Which is warm?\nAnswer:", [" dry palms", " wet palms"], 1,
    ),
    (
        {"question_stem": "The sun is", "choices": {"text": ["hot", "cold"], "label": ["1", "2"]},
         "answerKey": "1"},
        "The sun is", [" hot", " cold"], 0,
    ),
    (
        {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1,
         "subject": "high_school_arithmetic"},
        "The following are multiple choice questions (with answers) about high school arithmetic."
        "\n\n2 + 2?\nA. 3\nB. 4\nAnswer:", [" A", " B"], 1,
    ),
    (
        {"question": "Is it?", "choices": ["false", "true"], "answer": 1},
        "Question: Is it?\nAnswer:", [" false", " true"], 1,
    ),
    (
        {"activity_label": "Baking", "ctx": "x", "ctx_a": "A man [title] bakes.", "ctx_b": "he",
         "endings": ["eats.", "runs."], "label": "1"},
        "Baking: A man. bakes. He", [" eats.", " runs."], 1,
    ),
    (
        {"goal": "Open a jar", "sol1": "Twist it.", "sol2": "Eat it.", "label": 0},
        "Question: Open a jar\nAnswer:", [" Twist it.", " Eat it."], 0,
    ),
    (
        {"question": "is it so", "passage": "It is so.", "answer": True},
        "It is so.\nQuestion: is it so?\nAnswer:", [" no", " yes"], 1,
    ),
    (
        {"context": "Ann fell.", "question": "Why?", "answerA": "a", "answerB": "b",
         "answerC": "c", "label": "3"},
        "Q: Ann fell. Why?\nA:", [" a", " b", " c"], 2,
    ),
    (
        {"question": "What?", "distractor1": "x", "distractor2": "y", "distractor3": "z",
         "correct_answer": "w", "support": "W is."},
        "W is.\nQuestion: What?\nAnswer:", [" x", " y", " z", " w"], 3,
    ),
    (
        {"question": "What?", "distractor1": "x", "distractor2": "y", "distractor3": "z",
         "correct_answer": "w", "support": ""},
        "\nQuestion: What?\nAnswer:", [" x", " y", " z", " w"], 3,
    ),
    (
        {"question": "is it so", "passage": "It is so.", "answer": "false"},
        "It is so.\nQuestion: is it so?\nAnswer:", [" no", " yes"], 0,
    ),
    (
        {"question": "Who?", "passage": "Ann {question} ran.", "choices": ["Bea", "Ann"],
         "answer": "B"},
        "Ann {question} ran.\nQuestion: Who?\nAnswer:", [" Bea", " Ann"], 1,
    ),
    (
        {"question_stem": "The sun is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]},
         "answerKey": " B"},
        "The sun is", [" hot", " cold"], 1,
    ),
    (
        {"premise": "He fell.", "choice1": "He slipped.", "choice2": "He sang.",
         "question": "cause", "label": 0},
        "He fell because", [" he slipped.", " he sang."], 0,
    ),
    (
        {"query": "One and one is", "choices": ["two", "three"], "gold": 0},
        "One and one is", [" two", " three"], 0,
    ),
]  # fmt: skip


def task(path: Path, records: list[dict], **settings):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return parse(AnyTask, {"kind": "choices", "name": "x", "path": str(path), **settings})


@pytest.mark.parametrize(("record", "context", "continuations", "right"), FORMS)
def test_each_form_is_read_as_its_harness_does(tmp_path, record, context, continuations, right):
    (question,) = task(tmp_path / "x.jsonl", [record]).asked("test")
    assert {option.context for option in question.options} == {context}
    assert [option.continuation for option in question.options] == continuations
    assert question.right == right
    assert question.prompt == context


def test_options_may_differ_in_their_contexts(tmp_path) -> None:
    record = {"sentence": "Ann beat Bea because _ was fast.", "option1": "Ann", "option2": "Bea",
              "answer": "1"}  # fmt: skip
    (question,) = task(tmp_path / "x.jsonl", [record]).asked("test")
    assert question.right == 0
    assert [one.context for one in question.options] == [
        "Ann beat Bea because Ann", "Ann beat Bea because Bea",
    ]  # fmt: skip
    assert {one.continuation for one in question.options} == {" was fast."}
    schema = {"context_options": ["It is wet", "It is dry"], "continuation": "as rain", "gold": 0}
    (question,) = task(tmp_path / "y.jsonl", [schema]).asked("test")
    assert [one.context for one in question.options] == ["It is wet", "It is dry"]


def test_what_is_no_choice_is_refused_or_counted(tmp_path) -> None:
    known = {"question": "?", "choices": ["a", "b"], "answer": 0}
    found = task(tmp_path / "x.jsonl", [known, {**known, "answer": -1}])
    assert len(found.asked("test")) == 1
    assert list(found.notes.values()) == [1]
    for bad, words in [
        ({"text": "a"}, "no form of multiple choice"),
        ({**known, "answer": 2}, "not one of its 2 choices"),
        ({**known, "answer": "c"}, "not one of its choices"),
        ({**known, "answer": "AB"}, "not one of its choices"),
        ({**known, "answer": 0.5}, "not one of its choices"),
        ({"question": "?", "choices": ARC, "answerKey": "1"}, "not one of its choices"),
        ({**known, "choices": "ab"}, "no list of texts"),
        ({**known, "choices": ["a", None]}, "no list of texts"),
        ({**known, "choices": ["a"]}, "it has 1 choices"),
        ({**known, "choices": []}, "not one of its choices|it has 0 choices"),
        ({"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}, "no gap"),
    ]:
        with pytest.raises(SettingError, match=f"line 1: .*{words}"):
            task(tmp_path / "y.jsonl", [bad]).asked("test")


def test_records_with_an_empty_choice_are_counted(tmp_path) -> None:
    known = {"question": "?", "choices": ["a", "b"], "answer": 0}
    found = task(tmp_path / "x.jsonl", [known, {**known, "choices": ["a", " "]}])
    assert len(found.asked("test")) == 1
    assert found.notes == {"records have an empty choice and are left out": 1}


def test_settings_that_a_form_cannot_follow_are_refused(tmp_path) -> None:
    gap = {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "1"}
    for settings in ({"form": "{question}"}, {"letters": True}):
        with pytest.raises(SettingError, match="form, letters: its choices stand in texts"):
            task(tmp_path / "x.jsonl", [gap], **settings).asked("test")
    many = {"question": "?", "choices": list(map(str, range(27))), "answer": 26}
    with pytest.raises(SettingError, match="27 choices, more than letters"):
        task(tmp_path / "x.jsonl", [many], letters=True).asked("test")


def test_examples_come_before_a_question_and_are_never_the_question_itself(tmp_path) -> None:
    records = [{"question": f"q{n}", "choices": ["no", f"a{n}"], "answer": 1} for n in range(6)]
    found = task(tmp_path / "x.jsonl", records, shots=5).asked("test")
    for number, question in enumerate(found):
        *examples, last = question.options[0].context.split("\n\n")
        assert last == f"Question: q{number}\nAnswer:"
        others = {f"Question: q{n}\nAnswer: a{n}" for n in range(6) if n != number}
        assert set(examples) == others
    with pytest.raises(SettingError, match="shots=6 and 5 examples"):
        task(tmp_path / "x.jsonl", records, shots=6).asked("test")
    other = tmp_path / "dev.jsonl"
    other.write_text(json.dumps({"question": "d", "choices": ["x", "y"], "answer": 0}))
    (first, *_) = task(tmp_path / "x.jsonl", records, shots=1, examples=str(other)).asked("test")
    assert first.options[0].context == "Question: d\nAnswer: x\n\nQuestion: q0\nAnswer:"


def test_a_heading_comes_once_before_the_examples(tmp_path) -> None:
    records = [{"question": f"q{n}", "choices": ["a", "b"], "answer": 1, "subject": "law"}
               for n in range(3)]  # fmt: skip
    found = task(tmp_path / "x.jsonl", records, shots=2).asked("test")[0].options[1]
    heading, *examples, last = found.context.split("\n\n")
    assert heading == "The following are multiple choice questions (with answers) about law."
    assert sorted(examples) == [f"q{n}\nA. a\nB. b\nAnswer: B" for n in (1, 2)]
    assert last == "q0\nA. a\nB. b\nAnswer:"
    plain = task(tmp_path / "x.jsonl", records, form="{question}", letters=False)
    assert plain.asked("test")[0].options[1] == ("q0", " b")


def test_letters_and_a_form_of_ones_own(tmp_path) -> None:
    record = {"question": "q", "choices": ["a", "b"], "answer": 1}
    (question,) = task(tmp_path / "x.jsonl", [record], letters=True).asked("test")
    assert question.options[1] == ("q\nA. a\nB. b\nAnswer:", " B")
    (question,) = task(tmp_path / "x.jsonl", [record], form="{question} ->").asked("test")
    assert question.options[1] == ("q ->", " b")


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("name", "count"),
    [("ARC-Easy", 2251), ("ARC-Challenge", 1119), ("boolq", 9427), ("openbookqa", 4957)],
)
def test_public_files_are_read_whole(name: str, count: int) -> None:
    path = str(SHARED / f"{name}.train.jsonl.gz")
    found = parse(AnyTask, {"kind": "choices", "name": name, "path": path})
    assert len(found.asked("test")) == count
    assert not found.notes
