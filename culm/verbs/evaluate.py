"""`culm eval`: what a model scores in the measures of a suite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from culm import log
from culm.compose import compose
from culm.config import SettingError, parse
from culm.convert.load import read
from culm.endpoint import Endpoint, EndpointError
from culm.eval.contamination import contamination
from culm.eval.evaluation import Evaluation
from culm.eval.interval import Estimate
from culm.eval.local import LocalModel
from culm.eval.local_data import located
from culm.eval.measure.chat import Chat, Conversed, chat_suite
from culm.eval.measure.measure import Subject
from culm.eval.measure.scores import Scores
from culm.eval.measure.text import Text
from culm.eval.questions import gain, repeated
from culm.eval.remote import RemoteModel
from culm.eval.responder import Responder
from culm.eval.settings import EvalConfig
from culm.eval.suite import Answers, answer_suite, identity_of
from culm.files import json_text
from culm.model.ability import require_vocabulary
from culm.task.file_task import notes_of
from culm.verbs.evaluate_chat import chat_gains, chat_lines, with_judge
from culm.verbs.evaluate_options import refuse_unused

TIMEOUT, RETRIES = 120.0, 3  # seconds of a request to a server, and further attempts


@dataclass(frozen=True)
class Options:
    """What is measured, and how. questions: per task; 0: all; None: as the suite says.

    data: a folder with files of the tasks. text: whose bits per byte are measured instead.
    output: a file of all answers, which another call completes. against: another model.
    contamination: a training text, in which parts of the questions are searched. lm_eval: names
    of lm-eval's tasks, which are run instead; include_path: a folder of further ones.
    judge: URL#MODEL of the API that judges replies.
    """

    suite: str = "tasks"
    questions: int | None = None
    data: str | None = None
    text: str | None = None
    output: str | None = None
    against: str | None = None
    contamination: str | None = None
    lm_eval: str | None = None
    include_path: str | None = None
    judge: str | None = None
    as_json: bool = False
    device: str = "auto"
    dtype: str | None = None


@dataclass(frozen=True)
class Evaluated:
    """A model with its answers to each measure, its dialogues, and the results of all measures."""

    answers: dict[str, Answers]
    results: dict[str, Any]
    dialogues: dict[str, Conversed]


def show_evaluation(model: str, options: Options) -> None:
    """Print what a model scores, with 95 % intervals, and how much more than another.

    model: as `culm.load` reads it, or the URL of an API, such as http://localhost:8000/v1.
    """
    refuse_unused(vars(options))
    if options.lm_eval is not None:
        _show_lm_eval(model, options, [one.strip() for one in options.lm_eval.split(",")])
        return
    settings = _settings(options)
    ours = _evaluated(model, settings, options, options.output)
    theirs = None
    if options.against is not None:
        output = options.output and str(_other(Path(options.output)))
        theirs = _evaluated(options.against, settings, options, output)
    gains = {} if theirs is None else _gains(ours, theirs, settings)
    if options.as_json:
        shown = {**ours.results, **({"gains": gains} if gains else {})}
        print(json_text(shown))
        return
    _print(ours, theirs, gains)


def _show_lm_eval(model: str, options: Options, tasks: list[str]) -> None:
    """Print the results of lm-eval's tasks."""
    from culm.eval.lm_eval import run_lm_eval  # an extra, which takes seconds to import

    responder, _ = _responder(model, 0, options)
    if not isinstance(responder, LocalModel):
        raise SettingError("lm-eval: it has its own client for an API: lm_eval run --model")
    results = run_lm_eval(responder, tasks, options.include_path, options.questions or None)
    _say_notes(responder)
    if options.as_json:
        print(json_text(results))
        return
    table = Table("task", "metric", "value", "standard error", box=None)
    for task, found in results.items():
        for name, value in found.items():
            metric, _, kind = name.partition(",")
            error = found.get(f"{metric}_stderr,{kind}", "")
            if kind and not metric.endswith("_stderr"):
                table.add_row(task, metric, f"{value:.4f}", _short(error))
    Console(highlight=False).print(table)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _settings(options: Options) -> EvalConfig:
    if options.text is not None:
        return EvalConfig(measures={"text": Text(path=options.text)})
    values = with_judge(compose(options.suite, "eval").values, options.judge)
    settings = parse(EvalConfig, values, "eval")
    if options.data is not None:
        settings, missing = located(settings, options.data)
        if missing:
            log.say(f"{options.data} has no file for {', '.join(missing)}: left out")
    if options.questions is not None:
        changed = {"questions": options.questions or None}
        measures = {
            name: one.model_copy(update=changed) if isinstance(one, Scores | Chat) else one
            for name, one in settings.measures.items()
        }
        settings = settings.model_copy(update={"measures": measures})
    scores = [one for one in settings.measures.values() if isinstance(one, Scores | Chat)]
    if not any(one.tasks for one in scores):
        raise SettingError(f"suite: {options.suite} names no tasks; see configs/eval/tasks.yaml")
    if options.contamination is not None and not any(isinstance(o, Scores) for o in scores):
        raise SettingError("contamination: the suite has no questions with answers to search for")
    tasks = [task for one in scores for task in one.tasks]
    for note, count in (notes_of(tasks) + repeated(tasks, settings.seed)).items():
        log.say(f"{count:,} {note}")
    return settings


def _evaluated(model: str, settings: EvalConfig, options: Options, output: str | None) -> Evaluated:
    responder, identity = _responder(model, settings.seed, options)
    answers: dict[str, Answers] = {}
    results: dict[str, Any] = {}
    others: dict[str, Any] = {}
    dialogues: dict[str, Conversed] = {}
    path = Path(output) if output else None
    for name, measure in settings.measures.items():
        prefix = "" if name == measure.kind else f"{name}."
        if isinstance(measure, Chat) and measure.tasks:
            said = chat_suite(responder, identity, measure, settings.seed, path)
            dialogues[name] = said
            results |= {f"{prefix}{key}": value for key, value in said.results().items()}
        elif not isinstance(measure, Scores | Chat):
            others[name] = measure
        elif isinstance(measure, Scores) and measure.tasks:
            found = answer_suite(responder, identity, measure, settings.seed, path)
            answers[name] = found
            results |= {f"{prefix}{key}": value for key, value in found.results().items()}
            if options.contamination is not None:
                asked = [one.question for one in found.answered]
                dirty = contamination(asked, options.contamination)
                results[f"{prefix}contamination"] = dirty.report(found.answered)
    if isinstance(responder, LocalModel):
        subject = Subject(responder.model, responder.tokenizer, seed=settings.seed)
        rest = settings.model_copy(update={"measures": others})
        results |= Evaluation(rest, subject).run(final=True)
    elif others:
        log.say(f"{', '.join(others)}: not measured, since a server does not give the model")
    _say_notes(responder)
    return Evaluated(answers, results, dialogues)


def _say_notes(responder: Responder) -> None:
    for note, count in responder.notes.items():
        log.say(f"{count:,} {note}")


def _responder(model: str, seed: int, options: Options) -> tuple[Responder, str]:
    """What answers for a model, and what identifies it."""
    if not model.startswith(("http://", "https://")):
        transformer, tokenizer = read(model, options.device, options.dtype, mtp=False)
        require_vocabulary(transformer)
        local = LocalModel(transformer.eval(), tokenizer, seed)
        return local, identity_of(transformer)
    if options.text is not None:
        raise SettingError("text: a server does not say how likely all of a text is; give a model")
    url, _, name = model.partition("#")
    endpoint = Endpoint(url, name, TIMEOUT, RETRIES)
    try:
        endpoint = endpoint if name else Endpoint(url, endpoint.names()[0], TIMEOUT, RETRIES)
    except EndpointError as error:
        raise SettingError(f"model: {error}") from None
    return RemoteModel(endpoint, seed), f"{url}#{endpoint.model}"


def _other(path: Path) -> Path:
    """Where the answers of the other model are written."""
    return path.with_name(f"{path.stem}-against{path.suffix}")


def _gains(ours: Evaluated, theirs: Evaluated, settings: EvalConfig) -> dict[str, Any]:
    """How much more we score on the same questions, by measure and task."""
    found: dict[str, Any] = {}
    for name, answers in ours.answers.items():
        prefix = "" if name == settings.measures[name].kind else f"{name}."
        pairs = list(zip(answers.answered, theirs.answers[name].answered, strict=True))
        for task in dict.fromkeys(a.task for a, _ in pairs):
            of_task = [pair for pair in pairs if pair[0].task == task]
            one = gain([a for a, _ in of_task], [b for _, b in of_task])
            found[f"{prefix}{task}"] = vars(one)
        found[f"{prefix}all"] = vars(gain(answers.answered, theirs.answers[name].answered))
    for name, measure in settings.measures.items():
        if isinstance(measure, Chat) and name in ours.dialogues:
            both = ours.dialogues[name], theirs.dialogues[name]
            found |= chat_gains(name, measure, *both, settings.seed)
    return found


def _print(ours: Evaluated, theirs: Evaluated | None, gains: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    shares = list(_rows(ours.results))
    if shares:
        head = ["task", "score", "95 % interval", "questions"]
        table = Table(*head, *(["gain", "95 % interval"] if gains else []), box=None)
        for name, estimate in shares:
            gained = gains.get(name)
            more = [] if gained is None else [f"{100 * gained['value']:+.1f}", _interval(gained)]
            table.add_row(
                name, f"{100 * estimate['value']:.1f} %", _interval(estimate),
                f"{estimate['items']:,}", *more,
            )  # fmt: skip
        console.print(table)
    for line in chat_lines(ours.results, gains):
        console.print(line)
    for name, value in ours.results.items():
        if isinstance(value, float | int):
            known = theirs is not None and name in theirs.results
            other = f"  (the other model: {theirs.results[name]:,.4g})" if theirs and known else ""
            console.print(f"{name.replace('_', ' ')}: {value:,.4g}{other}")
        elif name.endswith("metrics"):
            for task, metrics in value.items():
                console.print(f"{task}: {', '.join(map(_metric, metrics.items()))}")
        elif name.endswith("contamination"):
            for task, groups in value.items():
                shown = ", ".join(
                    f"{group} {100 * one['value']:.1f} % of {one['items']:,}"
                    for group, one in groups.items()
                )
                console.print(f"{task}, by the training text: {shown}")
        elif name.endswith("pass_at_k"):
            for task, passes in value.items():
                shown = ", ".join(f"pass@{k} {100 * p:.1f} %" for k, p in passes.items())
                console.print(f"{task}: {shown}")


def _metric(given: tuple[str, Any]) -> str:
    """A text metric from 0 to 100."""
    name, found = given
    value = found if isinstance(found, float) else 100 * found["value"]
    return f"{name} {value:.1f}"


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['low']:.1f} - {100 * estimate['high']:.1f}"


def _rows(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each estimate with its name; if a result has several, they are named after their tasks."""
    fields = set(Estimate.__annotations__)
    for name, value in results.items():
        if isinstance(value, Mapping) and set(value) == fields:
            yield name, value
        elif name.rpartition(".")[2] == "scores":
            prefix = name.removesuffix("scores")
            yield from ((f"{prefix}{task}", estimate) for task, estimate in value.items())
