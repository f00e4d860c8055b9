"""The loop of an agent: the model answers, its calls are made, it reads their results, and so on
until it answers without a call or a budget ends.

    messages, tools -> answer -> calls: known? fit the schema? approved? -> messages of tools

What a tool gives is data: it is cut, stripped of marks that could pass for calls or turns, and goes
into one message. Budgets, approvals and tools are fixed before the first step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from culm.agent.answer import ChatModel, Json, ModelAnswer, ModelFailed, ToolCall, call_id, written
from culm.agent.approval import Approvals
from culm.tokenizer.message import Message
from culm.tools.deadline import Deadline
from culm.tools.function import (
    Result,
    ToolFunction,
    as_data,
    check_names,
    cut,
    failure,
    fault_of,
    plain,
    require_schemas,
    run,
)

End = Literal["answer", "nothing", "steps", "tokens", "seconds", "model"]
SAME = "The same call gave the same result in step {step}; it is in the messages above."


@dataclass(frozen=True)
class Budget:
    """steps: answers of the model. tokens: that it generates in all of them. seconds: in all,
    without those in which a person is asked. call_seconds: of one call. calls: in one answer.
    characters: of one result.
    """

    steps: int = 12
    tokens: int = 8192
    seconds: float = 120.0
    call_seconds: float = 30.0
    calls: int = 8
    characters: int = 16_000


@dataclass(frozen=True)
class QuestionAsked:
    question: str
    tools: Sequence[Json]
    budget: Budget


@dataclass(frozen=True)
class StepAnswered:
    """seconds: that the answer took."""

    step: int
    answer: ModelAnswer
    seconds: float


@dataclass(frozen=True)
class ToolCalled:
    step: int
    call: ToolCall
    result: Result
    seconds: float


@dataclass(frozen=True)
class AgentOutcome:
    """answer: the last content of the model. ended: by what; "answer" is the good end. reason: what
    failed, if the model did.
    """

    answer: str
    ended: End
    steps: int
    tokens: int
    seconds: float
    reason: str = ""


AgentEvent = QuestionAsked | StepAnswered | ToolCalled | AgentOutcome
Listener = Callable[[AgentEvent], None]


@dataclass
class Agent:
    """A model with tools. system: a system message. listeners: they see each event."""

    model: ChatModel
    functions: Sequence[ToolFunction]
    approvals: Approvals = field(default_factory=Approvals)
    budget: Budget = Budget()
    system: str = ""
    listeners: Sequence[Listener] = ()

    def ask(self, question: str) -> AgentOutcome:
        """The answer to a question.

        Raises:
            SettingError: two tools have the same name, or jsonschema is not installed.
        """
        require_schemas()
        allowed = [one for one in self.functions if self.approvals.policy(one.name) != "never"]
        return _Run(self, check_names(allowed)).outcome(question)


class _Run:
    """One question as it is answered."""

    def __init__(self, agent: Agent, functions: Mapping[str, ToolFunction]) -> None:
        self._agent, self._budget, self._functions = agent, agent.budget, functions
        self._messages: list[Message] = []
        self._results: dict[tuple[str, str], tuple[int, str]] = {}  # of calls that were made
        self._deadline = Deadline(self._budget.seconds, agent.approvals.asked_seconds)
        self._tokens = self._steps = 0

    def outcome(self, question: str) -> AgentOutcome:
        agent, budget = self._agent, self._budget
        tools = [plain(one) for one in self._functions.values()]
        if agent.system:
            self._messages.append({"role": "system", "content": agent.system})
        self._messages.append({"role": "user", "content": question})
        self._tell(QuestionAsked(question, tools, budget))
        said = ""
        while True:
            if spent := self._spent():
                return self._end(said, spent)
            start = time.monotonic()
            try:
                answer = agent.model.answer(
                    self._messages, tools, budget.tokens - self._tokens, self._deadline.left
                )
            except ModelFailed as error:
                late = not self._deadline.left
                return self._end(said, "seconds" if late else "model", str(error))
            self._steps += 1
            self._tokens += answer.tokens
            self._tell(StepAnswered(self._steps, answer, time.monotonic() - start))
            said = answer.content
            if not answer.complete:
                return self._end(said, "tokens")
            if not answer.calls:
                return self._end(said, "answer" if said.strip() else "nothing")
            self._messages.append(written(answer, self._steps))
            for number, call in enumerate(answer.calls):
                content = self._called(number, call)
                name = {"tool_call_id": call_id(self._steps, number)}
                self._messages.append({"role": "tool", **name, "content": content})

    def _called(self, number: int, call: ToolCall) -> str:
        """What the model reads after a call."""
        start = time.monotonic()
        result = self._result(number, call)
        text = cut(as_data(result.text), self._budget.characters)
        result = Result(text, result.failed)
        self._tell(ToolCalled(self._steps, call, result, time.monotonic() - start))
        return self._unless_known(call, text)

    def _unless_known(self, call: ToolCall, text: str) -> str:
        """A result, or that it is the same as before."""
        key = call.name, _canonical(call.arguments)
        step, before = self._results.get(key, (0, ""))
        self._results[key] = self._steps, text
        return SAME.format(step=step) if step and before == text else text

    def _result(self, number: int, call: ToolCall) -> Result:
        if number >= self._budget.calls:
            return failure(f"an answer may have {self._budget.calls} calls; make this one later")
        try:
            arguments = json.loads(call.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if fault := fault_of(call.name, arguments, self._functions):
            return failure(fault)
        approvals = self._agent.approvals
        if refusal := approvals.refusal(call.name, arguments):
            return failure(refusal)
        seconds = min(self._budget.call_seconds, self._deadline.left)
        if seconds <= 0:
            return failure("no time is left")
        return run(self._functions[call.name], arguments, seconds, approvals.asked_seconds)

    def _spent(self) -> End | None:
        """The budget that is at its end."""
        if self._steps >= self._budget.steps:
            return "steps"
        if self._tokens >= self._budget.tokens:
            return "tokens"
        return "seconds" if not self._deadline.left else None

    def _end(self, answer: str, ended: End, reason: str = "") -> AgentOutcome:
        taken = self._deadline.taken
        outcome = AgentOutcome(answer, ended, self._steps, self._tokens, taken, reason)
        self._tell(outcome)
        return outcome

    def _tell(self, event: AgentEvent) -> None:
        for listener in self._agent.listeners:
            listener(event)


def _canonical(arguments: str) -> str:
    """The same text for the same arguments."""
    try:
        return json.dumps(json.loads(arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
