"""Multiple choice in the forms of public benchmarks: what is asked, and the options.

A form is recognised by its fields. Contexts are those of the field's usual harness (lm-eval).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from culm.source.record import LeftOut
from culm.task.task import Option

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUESTION, PASSAGE = "Question: {question}\nAnswer:", "{context}\nQuestion: {question}\nAnswer:"

MMLU = "The following are multiple choice questions (with answers) about {subject}.\n\n"


class Choice(NamedTuple):
    """question, context: what a prompt shows. choices: the answers. right: index of the right one.

    prompt: the usual prompt, with {question} and {context}. options: where they differ in their
    contexts, which then have no prompt. letters: whether the usual prompt lists the choices and
    asks for a letter. heading: what comes before the usual prompt and before its examples.
    """

    question: str
    choices: Sequence[str]
    right: int
    context: str = ""
    prompt: str = QUESTION
    options: tuple[Option, ...] = ()
    letters: bool = False
    heading: str = ""


def choice_of(record: Mapping[str, Any]) -> Choice:
    """What a record asks.

    Raises:
        LeftOut: its right answer is not given, as in the test files of some benchmarks, or one of
            its choices is empty.
        ValueError: it is of no known form, has fewer than two choices, or its answer is not one of
            them.
    """
    for fields, read in FORMS:
        if all(field in record for field in fields):
            choice = read(record)
            _check(choice)
            return choice
    known = "; ".join(", ".join(fields) for fields, _ in FORMS)
    raise ValueError(f"its fields are no form of multiple choice that is known: {known}")


def _check(choice: Choice) -> None:
    texts = [one.continuation for one in choice.options] or choice.choices
    if len(texts) < 2:
        raise ValueError(f"it has {len(texts)} choices; there must be two or more to choose from")
    if not 0 <= choice.right < len(texts):
        raise ValueError(f"its answer is not one of its {len(texts)} choices")
    if not all(str(text).strip() for text in texts):
        raise LeftOut("records have an empty choice and are left out")


def _place(given: Any, labels: Sequence[Any] = (), first: int = 0, labelled: bool = False) -> int:
    """The index that an answer names: by its label, and unless all are labelled, as a letter or as
    a number that counts from `first`.

    Raises:
        LeftOut: there is none.
        ValueError: it is neither.
    """
    given = given.strip() if isinstance(given, str) and given not in labels else given
    if given in (None, "", -1, "-1"):
        raise LeftOut("records do not say which answer is right and are left out")
    if given in labels:
        return list(labels).index(given)
    if not labelled:
        if isinstance(given, str) and len(given) == 1 and given in LETTERS:
            return LETTERS.index(given)
        try:
            if int(given) == float(given):
                return int(given) - first
        except (TypeError, ValueError, OverflowError):
            pass
    raise ValueError(f"its answer {given!r} is not one of its choices")


def _texts(given: Any) -> list[str]:
    if isinstance(given, str | Mapping) or any(one is None for one in given):
        raise ValueError("its choices are no list of texts")
    return list(map(str, given))


def _listed(record: Mapping[str, Any]) -> Choice:
    """MMLU: {question, choices, answer, subject}; the answer is an index, a letter or a text. Any
    other one may have a passage or context to read first.
    """
    choices = _texts(record["choices"])
    right = _place(record["answer"], choices)
    context = str(record.get("passage") or record.get("context") or "")
    prompt, question = PASSAGE if context else QUESTION, str(record["question"])
    if "subject" in record and not context:
        heading = MMLU.format(subject=str(record["subject"]).replace("_", " "))
        return Choice(question.strip(), choices, right, letters=True, heading=heading)
    return Choice(question, choices, right, context, prompt)


def _labelled(name: str, prompt: str) -> Callable[[Mapping[str, Any]], Choice]:
    """ARC, OpenBookQA, CommonsenseQA: {choices: {text, label}, answerKey}."""

    def read(record: Mapping[str, Any]) -> Choice:
        given = record["choices"]
        if isinstance(given, Mapping):
            texts, labels = _texts(given["text"]), list(given["label"])
        else:  # as ARC's own files have it
            texts, labels = _texts([c["text"] for c in given]), [c["label"] for c in given]
        right = _place(record["answerKey"], labels, labelled=True)
        return Choice(str(record[name]), texts, right, prompt=prompt)

    return read


def _hellaswag(record: Mapping[str, Any]) -> Choice:
    context = record["ctx"]
    if "ctx_a" in record and "ctx_b" in record:
        context = f"{record['ctx_a']} {str(record['ctx_b']).capitalize()}"
    label = record.get("activity_label")
    text = _without_brackets(f"{label}: {context}" if label else context)
    endings = [_without_brackets(one) for one in _texts(record["endings"])]
    return Choice(text, endings, _place(record["label"]), prompt="{question}")


def _without_brackets(text: str) -> str:
    """Texts from WikiHow have marks such as [title]."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _piqa(record: Mapping[str, Any]) -> Choice:
    return Choice(record["goal"], [record["sol1"], record["sol2"]], _place(record["label"]))


def _winogrande(record: Mapping[str, Any]) -> Choice:
    """The sentence up to the blank, with each option; scored is how likely the rest is."""
    before, gap, after = str(record["sentence"]).partition("_")
    if not gap:
        raise ValueError("its sentence has no gap `_`")
    names = [str(record["option1"]), str(record["option2"])]
    options = tuple(Option(before + name, " " + after.strip()) for name in names)
    return Choice(record["sentence"], names, _place(record["answer"], first=1), options=options)


def _boolq(record: Mapping[str, Any]) -> Choice:
    given = record["answer"] if "answer" in record else record["label"]
    prompt = "{context}\nQuestion: {question}?\nAnswer:"
    given = {"false": 0, "true": 1, "no": 0, "yes": 1}.get(str(given).strip().lower(), given)
    return Choice(record["question"], ["no", "yes"], _place(given), record["passage"], prompt)


def _siqa(record: Mapping[str, Any]) -> Choice:
    choices = [record[f"answer{letter}"] for letter in "ABC"]
    right, prompt = _place(record["label"], first=1), "Q: {context} {question}\nA:"
    return Choice(record["question"], choices, right, record["context"], prompt)


def _sciq(record: Mapping[str, Any]) -> Choice:
    choices = [record[f"distractor{i}"] for i in (1, 2, 3)] + [record["correct_answer"]]
    support = record.get("support")
    prompt = QUESTION if support is None else PASSAGE  # an empty one too has its line
    return Choice(record["question"], choices, 3, str(support or "").lstrip(), prompt)


def _copa(record: Mapping[str, Any]) -> Choice:
    joint = {"cause": "because", "effect": "therefore"}[record["question"]]
    choices = [str(record[name]) for name in ("choice1", "choice2")]
    choices = [text[:1].lower() + text[1:] for text in choices]
    text = f"{str(record['premise']).strip().rstrip('.')} {joint}"
    return Choice(text, choices, _place(record["label"]), prompt="{question}")


def _core(record: Mapping[str, Any]) -> Choice:
    """Multiple choice of the CORE bundle (arXiv 2406.11794)."""
    choices = _texts(record["choices"])
    return Choice(record["query"], choices, _place(record["gold"]), prompt="{question}")


def _schema(record: Mapping[str, Any]) -> Choice:
    """A continuation after one of several contexts, in the CORE bundle."""
    contexts, end = _texts(record["context_options"]), f" {str(record['continuation']).strip()}"
    options = tuple(Option(context, end) for context in contexts)
    return Choice(end, contexts, _place(record["gold"]), options=options)


FORMS: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], Choice]], ...] = (
    (("question_stem", "choices", "answerKey"), _labelled("question_stem", "{question}")),
    (("question", "choices", "answerKey"), _labelled("question", QUESTION)),
    (("question", "choices", "answer"), _listed),
    (("ctx", "endings", "label"), _hellaswag),
    (("goal", "sol1", "sol2", "label"), _piqa),
    (("sentence", "option1", "option2", "answer"), _winogrande),
    (("question", "passage", "answer"), _boolq),
    (("question", "passage", "label"), _boolq),
    (("context", "question", "answerA", "answerB", "answerC", "label"), _siqa),
    (("question", "distractor1", "correct_answer"), _sciq),
    (("premise", "choice1", "choice2", "question", "label"), _copa),
    (("query", "choices", "gold"), _core),
    (("context_options", "continuation", "gold"), _schema),
)
