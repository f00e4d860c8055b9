"""Programs that a model writes: read from benchmarks, run in the sandbox, scored by their tests."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from culm.config import SettingError
from culm.eval.measure.scores import Scores
from culm.eval.responder import Generation, Reply
from culm.eval.suite import answer_suite
from culm.rollout.environment import TaskEnvironment
from culm.rollout.reward.score import TaskScore
from culm.rollout.trajectory import Trajectory
from culm.sandbox import mechanism
from culm.sandbox.limits import Limits
from culm.sandbox.outcome import Outcome
from culm.task import code as module
from culm.task.code import Code, program
from culm.task.task import graded, graded_together

# Two in the form of HumanEval; the second has a function that its solution needs.
HUMANEVAL = [
    {"task_id": "X/0", "entry_point": "add",
     "prompt": 'def add(a: int, b: int) -> int:\n    """The sum.\n\n'
               '    >>> add(1, 2)\n    3\n    """\n',
     "canonical_solution": "    return a + b\n",
     "test": "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
             "    assert candidate(-1, 1) == 0\n"},
    {"task_id": "X/1", "entry_point": "twice",
     "prompt": 'import math\n\n\ndef half(x):\n    return math.floor(x / 2)\n\n\n'
               'def twice(x):\n    """The inverse of half, for even numbers."""\n',
     "canonical_solution": "    assert half(2 * x) == x\n    return 2 * x\n",
     "test": "def check(candidate):\n    assert candidate(4) == 8 and half(8) == 4\n"},
]  # fmt: skip
MBPP = [
    {"text": "Write a function to make a pair.", "task_id": 7,
     "code": "class Pair:\r\n  def __init__(self, a): self.a = a\r\n"
             "def pair(a):\r\n  return Pair(a)",
     "test_setup_code": "known = Pair(3)", "test_list": ["assert pair(3).a == known.a"],
     "challenge_test_list": []},
    {"prompt": "Write a function to find the root.", "code": "def root(x):\n    return x ** 0.5",
     "test_imports": ["import math"],
     "test_list": ["assert math.isclose(root(2), 2 ** 0.5)", "assert root(4) == 2"]},
]  # fmt: skip


def task(folder: Path, records: list[dict], **settings) -> Code:
    path = folder / "code.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Code(path=str(path), **settings)


@pytest.mark.parametrize("plain", [True, False])
def test_reference_solutions_pass_and_empty_replies_do_not(tmp_path, plain) -> None:
    found = task(tmp_path, HUMANEVAL + MBPP, plain=plain)
    asked = found.asked("test")
    assert [question.plain for question in asked] == [plain] * 4
    assert graded_together(found, [(one, one.answer) for one in asked]) == [1] * 4
    assert graded_together(found, [(one, "") for one in asked]) == [0] * 4
    assert graded(found, asked[0], asked[0].answer) == 1


def test_a_message_has_its_program_in_the_last_block(tmp_path) -> None:
    found = task(tmp_path, HUMANEVAL, plain=False)
    add, twice = found.asked("test")
    right = "def add(a, b):\n    return a + b\n"
    assert [graded(found, add, reply) for reply in (
        f"First:\n```\ndef add(a, b):\n    return 0\n```\nBetter:\n```python\n{right}```\nDone.",
        f"```python\n{right}",  # cut by a limit
        right,
        "```python\n    return a + b\n```",  # the body of the function
        f"```python\n{right}```\nBut rather:\n```python\nraise ValueError\n```",
        "I cannot do this.",
    )] == [1, 1, 1, 1, 0, 0]  # fmt: skip
    # What its question has before the function is there.
    assert graded(found, twice, "```python\ndef twice(x):\n    return half(4 * x)\n```") == 1


@pytest.mark.parametrize("reply", [
    "    exit()\n", "    pass\nimport os\nos._exit(0)\n", "    pass\nraise SystemExit(0)\n",
    '    pass\n"""', "    pass\nx = (", "    while True: pass\n", "    return a - b\n",
    "    pass\nimport builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None\n",
    "    pass\ndef check(candidate): pass\n", "\x00", "    \udcff\n",
])  # fmt: skip
def test_a_reply_cannot_avoid_the_tests(tmp_path, reply) -> None:
    found = task(tmp_path, HUMANEVAL, limits=Limits(seconds=2, cpu_seconds=1))
    assert graded(found, found.asked("test")[0], reply) == 0


def test_what_a_main_program_does_is_not_run(tmp_path) -> None:
    found = task(tmp_path, HUMANEVAL)
    reply = "    return a + b\n\nif __name__ == '__main__':\n    print(add(int(input()), 1))\n"
    assert graded(found, found.asked("test")[0], reply) == 1
    future = (
        "```python\nfrom __future__ import annotations\ndef add(a: X, b) -> Y:\n  return a+b\n```"
    )
    chat = task(tmp_path, HUMANEVAL, plain=False)
    assert graded(chat, chat.asked("test")[0], future.replace("    ", "")) == 1


def test_a_program_without_a_verdict_is_no_zero(tmp_path, monkeypatch) -> None:
    found = task(tmp_path, HUMANEVAL)
    refused = Outcome("refused", None, "", "", 0.0, False, "It has no room.", "namespaces")
    monkeypatch.setattr(module, "run_all", lambda *_: iter([refused]))
    with pytest.raises(
        SettingError, match=r"tasks: code: .* not run, so it has no score: It has no"
    ):
        graded(found, found.asked("test")[0], "    return a + b\n")


@pytest.mark.parametrize(("record", "said"), [
    ({"text": "x", "code": "y", "test_list": []}, "no tests"),
    ({"question": "x", "answer": "y"}, "no form of code"),
])  # fmt: skip
def test_records_that_no_reply_could_fail_are_refused(tmp_path, record, said) -> None:
    with pytest.raises(SettingError, match=said):
        task(tmp_path, [record]).asked("test")


def test_what_is_not_used_is_counted(tmp_path) -> None:
    record = {**MBPP[0], "challenge_test_list": ["assert pair(1).a == 1"]}
    assert task(tmp_path, [record]).notes == {
        "programs have the key 'challenge_test_list', which is not used": 1
    }


def test_the_prompt_of_mbpp_is_that_of_lm_eval(shared) -> None:
    """With examples, as its `list_fewshot_samples` has them: between [BEGIN] and [DONE]."""
    jinja2 = pytest.importorskip("jinja2")
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lm_eval is not installed")
    text = (Path(spec.origin).parent / "tasks" / "mbpp" / "mbpp.yaml").read_text()
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.add_constructor("!function", lambda *_: None)
    config = yaml.load(text, loader)
    form = jinja2.Environment(keep_trailing_newline=True).from_string(config["doc_to_text"])
    target = jinja2.Environment().from_string(config["doc_to_target"])
    path = str(shared("rl_verifiable/mbpp.jsonl.gz"))
    asked = Code(path=path).asked("test")
    for question in asked[::100]:
        assert question.prompt == form.render(question.fields)
        assert question.answer == target.render(is_fewshot=True, **question.fields)
        assert list(question.stops) == config["generation_kwargs"]["until"]
    shown = Code(path=path, shots=1).asked("test")[0].prompt
    example = next(one for one in asked if one.fields["code"] in shown)
    assert shown == f"{example.prompt}{example.answer}\n\n{asked[0].prompt}"


@pytest.mark.slow
@pytest.mark.parametrize("plain", [True, False])
def test_all_reference_solutions_of_mbpp_pass(shared, plain) -> None:
    found = Code(path=str(shared("rl_verifiable/mbpp.jsonl.gz")), plain=plain)
    asked = found.asked("test")
    assert len(asked) == 974
    scores = graded_together(found, [(one, one.answer) for one in asked])
    assert [q.fields["task_id"] for q, score in zip(asked, scores, strict=True) if not score] == []
    assert not any(graded_together(found, [(one, "") for one in asked[::10]]))


def test_a_machine_without_a_sandbox_is_refused_before_anything_is_asked(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(mechanism, "obstacle", lambda name: "not here")
    measure = Scores(tasks=(task(tmp_path, HUMANEVAL),))
    for ask in (measure.require, lambda: answer_suite(Sampling(), "m", measure, 1)):
        with pytest.raises(SettingError, match=r"tasks\.limits\.mechanism: .*cannot be confined"):
            ask()


def test_programs_are_rewards_too(tmp_path) -> None:
    """Those of a rollout run together; a text to continue is no prompt in the chat template."""
    found = task(tmp_path, HUMANEVAL, plain=False, split="train")
    played = []
    for number in range(4):
        episode = TaskEnvironment(found).reset(number, 1)
        episode.step(episode.question.answer if number % 2 else "?")
        played.append(Trajectory(episode))
    reward = TaskScore().build(lambda *_: None, 1)
    assert reward(played) == [0, 1, 0, 1]
    with pytest.raises(SettingError, match="set plain=false"):
        TaskEnvironment(task(tmp_path, HUMANEVAL, split="train")).reset(0, 1)


class Sampling:
    """A responder whose first reply of each question is right, of four."""

    def replies(self, questions, how: Generation) -> list[list[Reply]]:
        texts = [[one.answer, "    return 0\n", "", "?"][: how.samples] for one in questions]
        return [[Reply(text, 3) for text in given] for given in texts]

    def likelihoods(self, options) -> list:
        return []

    def rolling(self, texts) -> list:
        return []


def test_several_samples_give_pass_at_k(tmp_path) -> None:
    measure = Scores(tasks=(task(tmp_path, HUMANEVAL),), questions=None, samples=4, temperature=0.8)
    answers = answer_suite(Sampling(), "m", measure, 1, tmp_path / "answers.jsonl")
    found = answers.results()
    assert found["pass_at_k"] == {"code": {"1": 0.25, "2": 0.5, "4": 1.0}}
    assert found["scores"]["code"]["value"] == 0.25
    again = answer_suite(Sampling(), "m", measure, 1, tmp_path / "answers.jsonl")
    assert again.results() == found


def test_the_tests_stand_outside_the_solution(tmp_path) -> None:
    question = task(tmp_path, MBPP).asked("test")[1]
    lines = program(question, question.answer).splitlines()
    assert lines[-2:] == question.fields["test_list"]
