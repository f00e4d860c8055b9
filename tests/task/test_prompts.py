"""Questions from a file."""

import gzip
import json
from pathlib import Path

import pytest

from culm.config import SettingError, parse
from culm.data.settings import DataConfig
from culm.rollout.environment import TaskEnvironment
from culm.task import AnyTask
from culm.task.prompts import Prompts
from culm.task.task import Question, exact, split_of

COUNT = 200


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "capitals.jsonl"
    records = [{"prompt": f"Capital of {n}?\u2028", "answer": n} for n in range(COUNT)]
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records) + "\n\n")
    return path


def test_each_question_of_a_split_comes_once_in_an_epoch(file):
    task = parse(AnyTask, {"kind": "prompts", "path": str(file)})
    epochs = {}
    for split in ("train", "test"):
        every = [n for n in range(COUNT) if split_of(f"Capital of {n}?\u2028") == split]
        assert every
        drawn = [task.question(split, index, 3) for index in range(2 * len(every))]
        for epoch in (drawn[: len(every)], drawn[len(every) :]):
            assert sorted(int(question.answer) for question in epoch) == every
        assert drawn[: len(every)] != drawn[len(every) :]
        assert drawn[0] == Prompts(path=str(file)).question(split, 0, 3)
        epochs[split] = {question.prompt for question in drawn}
    assert not epochs["train"] & epochs["test"]


def test_a_reply_is_graded_as_in_every_task(file):
    task = Prompts(path=str(file))
    assert task.score(Question("?", "Paris"), " Paris\n") == 1
    assert task.score(Question("?", "Paris"), "in France: Paris") == 1
    assert task.score(Question("?", "Paris"), "Rome") == 0
    assert exact("ratio 1: 2", "ratio 1: 2") == 1  # an answer may hold a colon itself


def test_fine_tuning_reads_the_same_file(file):
    task = {"kind": "prompts", "path": str(file)}
    data = parse(DataConfig, {"format": "chat", "tasks": [task], "questions": 3})
    for record in data.open():
        question, answer = (message["content"] for message in record["messages"])
        assert question == f"Capital of {answer}?\u2028"


def test_a_fingerprint_is_of_every_question(tmp_path):
    """Also of those that the first epoch asks late; questions of the test split are not asked."""
    records = [{"prompt": f"Capital of {n}?", "answer": n} for n in range(3000)]
    ids = {split_of(one["prompt"]): n for n, one in enumerate(records)}
    found = []
    for number, changed in enumerate([None, ids["train"], ids["test"]]):
        path = tmp_path / f"{number}.jsonl"
        written = [{**one, "answer": -1} if n == changed else one for n, one in enumerate(records)]
        path.write_text("\n".join(map(json.dumps, written)))
        found.append(TaskEnvironment(Prompts(path=str(path))).fingerprint(0))
    assert found[0] != found[1]
    assert found[0] == found[2]


def test_a_file_without_a_known_suffix(file, tmp_path):
    plain = tmp_path / "capitals"
    plain.write_bytes(file.read_bytes())
    tasks = [Prompts(path=str(path)) for path in (file, plain)]
    assert tasks[0].question("train", 0, 0) == tasks[1].question("train", 0, 0)


def test_fields_have_the_names_that_are_given(tmp_path):
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(f'{{"q": "{n}?", "a": " yes "}}\n' for n in range(30)))
    task = Prompts(path=str(path), prompt="q", answer="a")
    assert task.question("train", 0, 0).answer == "yes"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, r"tasks\.path: there is no file or folder '.*prompts\.jsonl'"),
        ("", r"prompts\.jsonl: none of its questions belongs to the train split"),
        ('{"prompt": "a", "answer": 1}\n{', r"prompts\.jsonl: line 2: not readable as JSON"),
        ('{"prompt": "a"}', r"prompts\.jsonl: line 1: no text or number in 'answer'"),
        ("[1]", r"prompts\.jsonl: line 1: expected an object, found a number"),
    ],
)
def test_errors_of_reading_are_one_sentence(tmp_path, text, words):
    path = tmp_path / "prompts.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingError, match=words) as raised:
        Prompts(path=str(path)).question("train", 0, 0)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.parquet", "folder"])
def test_prompts_are_read_like_a_corpus(tmp_path, name):
    records = [{"prompt": f"{n}?", "answer": n} for n in range(30)]
    path = tmp_path / name
    if name == "a.json":
        path.write_text(json.dumps(records, indent=1))
    elif name == "a.jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, records)).encode()))
    elif name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.mkdir()
        (path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    task = Prompts(path=str(path))
    found = [task.question(split, n, 0) for split in ("train", "test") for n in range(2)]
    assert all(question.prompt == f"{question.answer}?" for question in found)
