"""Programs that a model writes, which must pass the tests of their question."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import PositiveInt

from culm.config import SettingError
from culm.sandbox.limits import Limits
from culm.sandbox.outcome import Outcome
from culm.sandbox.sandbox import run_all
from culm.source.record import Record, fields_of, not_used
from culm.task.file_task import FileTask
from culm.task.task import Question, Scored

# Where the body of a function ends (2107.03374).
STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
DONE = "[DONE]"
FENCED = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
MBPP = (
    "You are an expert Python programmer, and here is your task: {task} "
    "Your code should pass these tests:\n\n{tests}\n"
)
HUMANEVAL = "Complete this Python function. Answer with all of it in one block of code.\n\n"
# What is run of the solution is a module of its own name, as in the usual harnesses: what it does
# when it is the main program does not run. The tests are no part of the text that a model writes,
# so no open quote or bracket of it takes them in.
PROGRAM = """\
import sys
__name__ = "solution"
sys.modules[__name__] = sys.modules["__main__"]
for given in {parts}:
    exec(compile(given, "solution.py", "exec", dont_inherit=True))
{tests}
"""


class Code(FileTask):
    """Benchmarks whose answers are programs, such as HumanEval and MBPP, in the form of their
    records. A reply scores 1 if its program passes all tests in the sandbox.

    plain: whether a text is continued: the beginning of the function (HumanEval), or a task and
    its tests up to [BEGIN] (MBPP). Otherwise the question is a message, and the program is the last
    block of code in the reply.

    limits: of each program. workers: programs that run at the same time.
    """

    kind: Literal["code"] = "code"
    name: str = "code"
    plain: bool = True
    limits: Limits = Limits()
    workers: PositiveInt = 4

    def read(self, record: Record) -> Iterator[Question]:
        if "entry_point" in record and "test" in record:
            yield self._humaneval(record)
        elif "test_list" in record:
            yield self._mbpp(record)
        else:
            raise ValueError(
                "its fields are no form of code that is known: prompt, entry_point, test (as in "
                "HumanEval); text or prompt, code, test_list (as in MBPP)"
            )

    def _humaneval(self, record: Record) -> Question:
        prompt, entry = str(record["prompt"]), str(record["entry_point"])
        fields = {
            **fields_of(record), "task_id": record.get("task_id"), "start": prompt,
            "entry_point": entry, "tests": f"{record['test']}\n\ncheck({entry})", "setup": "",
        }  # fmt: skip
        body = str(record.get("canonical_solution") or "")
        if self.plain:
            return Question(prompt, body, fields=fields, plain=True, stops=STOPS)
        asked = f"{HUMANEVAL}```python\n{prompt.strip()}\n```"
        return Question(asked, f"```python\n{prompt}{body}\n```", fields=fields)

    def _mbpp(self, record: Record) -> Question:
        task = str(record["text"] if "text" in record else record["prompt"])
        tests = [str(test) for test in record["test_list"]]
        if not tests:
            raise ValueError("it has no tests, which any program would pass")
        imports = record.get("test_imports") or ()
        setup = "\n".join([str(record.get("test_setup_code") or ""), *map(str, imports)])
        listed, code = "\n".join(tests), str(record.get("code") or "")
        fields = {**fields_of(record), "task_id": record.get("task_id")}
        fields |= {"start": "", "entry_point": "", "tests": listed, "setup": setup}
        asked = MBPP.format(task=task, tests=listed)
        if self.plain:
            prompt, answer = f"{asked}[BEGIN]\n", f"{code}\n{DONE}"
            return Question(prompt, answer, fields=fields, plain=True, stops=(DONE,))
        return Question(asked.strip(), f"```python\n{code}\n```", fields=fields)

    def not_read(self, record: Record) -> list[str]:
        known = record.unread - {"source_file"}  # where a task comes from
        return not_used("programs", sorted(known))

    def score(self, question: Question, reply: str) -> float:
        return self.score_together([(question, reply)])[0]

    def score_together(self, given: Sequence[Scored]) -> list[float]:
        """As `Together.score_together`.

        Raises:
            SettingError: the sandbox could not run a program, which then has no verdict.
        """
        programs = [program(question, reply) for question, reply in given]
        workers = min(self.workers, max(len(programs), 1))
        try:
            outcomes = list(run_all(programs, self.limits, workers))
        except SettingError as error:  # which calls its settings by another name
            raise SettingError(str(error).replace("sandbox.", "tasks.limits.", 1)) from error
        return [self._verdict(one) for one in outcomes]

    def _verdict(self, outcome: Outcome) -> float:
        if outcome.status == "refused":
            raise SettingError(
                f"tasks: {self.name}: a program was not run, so it has no score: {outcome.reason}"
            )
        return float(outcome.passed)


def program(question: Question, reply: str) -> str:
    """The program that passes if the reply is right. What prepares the tests of MBPP comes after
    the solution, since it makes objects of its classes.
    """
    fields = question.fields
    solution = _continued(fields, reply) if question.plain else _from_message(fields, reply)
    return PROGRAM.format(parts=repr([solution, fields["setup"]]), tests=fields["tests"])


def _continued(fields: Mapping[str, Any], reply: str) -> str:
    """The text that was continued, and its continuation."""
    return fields["start"] + (reply if fields["start"] else reply.partition(DONE)[0])


def _from_message(fields: Mapping[str, Any], reply: str) -> str:
    """The last block of code, or all if there is none, after what comes before the function.

    A block without the function is the body of it.
    """
    blocks = FENCED.findall(reply)
    code, start = (blocks[-1] if blocks else reply), fields["start"]
    if not start:
        return code
    defined = re.compile(rf"^(?:async )?def {re.escape(fields['entry_point'])}\b", re.MULTILINE)
    head = defined.search(start)
    return f"{start[: head.start()]}\n{code}" if head and defined.search(code) else start + code
