"""`culm agent`: a model answers a question with tools."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import typer

from culm.agent.answer import ChatModel
from culm.agent.api import APIChat
from culm.agent.approval import Approvals, rules_of, terminal
from culm.agent.loop import Agent, AgentOutcome, Budget, Listener
from culm.agent.text_form import TextForm
from culm.agent.toolbox import ToolSettings, opened
from culm.agent.trace import TraceFile, steps_to
from culm.endpoint import endpoint_at
from culm.exits import RunError
from culm.tools.function import HIDDEN

TIMEOUT = 30.0  # seconds to ask a server for its models
ENDS = {
    "steps": "{steps} steps were not enough; allow more with --steps",
    "tokens": "{tokens:,} tokens were not enough; allow more with --tokens, or the context is full",
    "seconds": "{seconds:.0f} s were not enough; allow more with --seconds",
    "nothing": "the model said nothing",
    "model": "the model failed: {reason}",
}


class NoAnswer(RunError):
    """A budget ended before the model answered."""


@dataclass(frozen=True)
class Options:
    """form: how tools stand in the prompt. key: of the API."""

    tools: ToolSettings
    budget: Budget
    approve: Sequence[str]
    system: str
    trace: str | None
    form: str
    key: str | None
    device: str
    dtype: str


def answer_question(model: str, question: str, options: Options) -> None:
    """Print the answer, and nothing else, to standard output; the steps go to standard error.

    Raises:
        SettingError: a tool, a server or the model cannot be used.
        NoAnswer: a budget ended first.
    """
    person = terminal()
    approvals = Approvals(rules_of(options.approve), person)
    listeners: list[Listener] = [steps_to(sys.stderr)]
    with ExitStack() as stack:
        functions = stack.enter_context(opened(options.tools, person))
        if options.trace is not None:
            trace = TraceFile(Path(options.trace))
            stack.callback(trace.close)
            listeners.append(trace)
        chat = _chat_model(model, options)
        if options.form != "tools":
            chat = TextForm(chat, listed=options.form == "text")
        agent = Agent(chat, functions, approvals, options.budget, options.system, listeners)
        outcome = agent.ask(question)
    _show(outcome)


def _show(outcome: AgentOutcome) -> None:
    if outcome.ended != "answer":
        if outcome.answer.strip():
            sys.stderr.write("The last message of the model is no answer; it is in the trace.\n")
        raise NoAnswer(f"no answer: {ENDS[outcome.ended].format(**vars(outcome))}")
    typer.echo(HIDDEN.sub("\ufffd", outcome.answer))  # a terminal must not obey a model


def _chat_model(model: str, options: Options) -> ChatModel:
    """A model at a URL, or one that is loaded here."""
    if not model.startswith(("http://", "https://")):
        import culm
        from culm.agent.loaded import LoadedChat

        return LoadedChat(culm.load(model, options.device, options.dtype))
    return APIChat(endpoint_at(model, TIMEOUT, options.key))
