"""Tasks: one file per task; this union is the registry."""

from typing import Annotated

from pydantic import AfterValidator

from culm.config import one_of
from culm.task.arithmetic import Arithmetic
from culm.task.calculator import Calculator
from culm.task.choices import Choices
from culm.task.code import Code
from culm.task.countdown import Countdown
from culm.task.dialogues import Dialogues
from culm.task.expression import Expression
from culm.task.graph import Graph
from culm.task.guess import Guess
from culm.task.identity import Identity
from culm.task.letters import Letters
from culm.task.prompts import Prompts
from culm.task.task import Task
from culm.task.tool_calls import ToolCalls
from culm.task.tool_questions import ToolQuestions
from culm.task.word_problem import WordProblem

Generated = (
    Arithmetic
    | Letters
    | Expression
    | Countdown
    | WordProblem
    | Calculator
    | Guess
    | Identity
    | Graph
)
FromFiles = Prompts | Choices | Code | ToolCalls | ToolQuestions | Dialogues
AnyTask = one_of(Generated | FromFiles)


def _named_differently(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two of them have the name {twice!r}, so their scores would be merged")
    if "all" in names:
        raise ValueError("one of them has the name 'all', which that of all tasks together has")
    return tasks


Tasks = Annotated[tuple[AnyTask, ...], AfterValidator(_named_differently)]  # type: ignore[valid-type]
