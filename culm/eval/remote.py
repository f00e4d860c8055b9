"""A model behind an endpoint with the API of OpenAI that answers the questions of an evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from culm.config import SettingError
from culm.endpoint import ContextExceeded, Endpoint, EndpointError, ask_each
from culm.engine.continuations import Likelihood
from culm.eval.offsets import starts_of
from culm.eval.responder import CUT, Generation, Reply, reply_seed
from culm.task.task import Option, Question
from culm.text.reply import NoRoom
from culm.tools.text import written_call

T = TypeVar("T")
R = TypeVar("R")
SEEDS = 1 << 31  # some servers read 32 bits


@dataclass(frozen=True)
class RemoteModel:
    """A `Responder`. concurrent: requests at the same time. seed: of sampled replies. notes: as in
    `LocalModel`.
    """

    endpoint: Endpoint
    seed: int = 0
    concurrent: int = 8
    notes: Counter[str] = field(default_factory=Counter, compare=False)

    def likelihoods(self, options: Sequence[Option]) -> list[Likelihood]:
        """As `Responder.likelihoods`; the server must give log-probabilities of prompts (`echo`).
        Texts that are too long for its context lose their beginning.

        Raises:
            SettingError: it does not, or it does not answer.
        """
        found = self._each(self._likelihood, options)
        self.notes.update(CUT.format(context=longest) for _, longest in found if longest)
        return [likelihood for likelihood, _ in found]

    def replies(self, questions: Sequence[Question], how: Generation) -> list[list[Reply] | NoRoom]:
        """As `Responder.replies`.

        Raises:
            SettingError: the server does not answer.
        """
        return self._each(lambda question: self._replies(question, how), questions)

    def _each(self, ask: Callable[[T], R], asked: Sequence[T]) -> list[R]:
        try:
            return ask_each(ask, asked, self.concurrent)
        except EndpointError as error:
            raise SettingError(f"model: {error}") from error

    def _likelihood(self, option: Option) -> tuple[Likelihood, int]:
        """And the length of the context, where the option had to lose its beginning; else 0."""
        text = option.context + option.continuation
        try:
            found = self._echoed(text)
        except ContextExceeded:
            return self._within_context(option)

        def placed() -> list[int]:
            starts, first = starts_of(found, text), len(option.context.rstrip())
            return [
                place for place, (start, end) in enumerate(zip(starts, _ends(starts), strict=True))
                if found["token_logprobs"][place] is not None and end > first and start < len(text)
            ]  # fmt: skip

        return self._scored(found, placed), 0

    def _within_context(self, option: Option) -> tuple[Likelihood, int]:
        """By token ids, which the server gives (`/tokenize` of vLLM, SGLang and Culm)."""
        context, longest = self._ids(option.context.rstrip())
        whole, _ = self._ids(option.context + option.continuation)
        length = len(whole) - len(context)
        if length < 1:
            raise EndpointError(f"tasks: the option {option.continuation[:40]!r} has no text")
        room = longest - 2  # a new token, and one that some servers keep free
        if length >= room:
            raise EndpointError(
                f"tasks: the option {option.continuation[:40]!r} has {length} tokens, which leave "
                f"no room in the context of {longest} at {self.endpoint.url}"
            )
        kept = whole[-room:]
        return self._scored(self._echoed(kept), lambda: range(room - length, room)), longest

    def _ids(self, text: str) -> tuple[list[int], int]:
        """Ids of a text as the server reads it, and the length of its context."""
        asked = {"prompt": text, "add_special_tokens": True}
        try:
            given = json.loads(self.endpoint.root.post("tokenize", asked))
            # The list of models says it too, and right where a tokenizer of SGLang does not.
            longest = self.endpoint.contexts().get(self.endpoint.model) or given["max_model_len"]
            return [int(one) for one in given["tokens"]], int(longest)
        except (EndpointError, KeyError, TypeError, ValueError):
            raise EndpointError(
                f"{self.endpoint.url}: an option is longer than its context, and the server gives "
                "no ids to shorten it (/tokenize, and max_model_len)"
            ) from None

    def _echoed(self, prompt: str | list[int]) -> dict[str, Any]:
        """`logprobs` of a prompt."""
        # One new token, which is then left out: some servers refuse to generate none.
        asked = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        (found,) = self._parsed(self.endpoint.post("completions", asked), 1)
        return found.get("logprobs") or {}

    def _scored(self, found: dict[str, Any], places: Callable[[], Sequence[int]]) -> Likelihood:
        """The likelihood of the tokens at these places of what was echoed."""
        try:
            logprobs, tops = found["token_logprobs"], found["top_logprobs"]
            if not (chosen := places()):
                raise ValueError("none of them is a token of the continuation")
            greedy = all(logprobs[i] >= max(tops[i].values()) for i in chosen)
            return Likelihood(sum(logprobs[i] for i in chosen), len(chosen), greedy)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            raise EndpointError(
                f"{self.endpoint.url} gives no log-probabilities of a prompt (echo with logprobs "
                "and text_offset), which multiple choice needs"
            ) from None

    def _replies(self, question: Question, how: Generation) -> list[Reply] | NoRoom:
        try:
            return self._replies_in_context(question, how)
        except ContextExceeded as error:
            return NoRoom(f"model: {error}")

    def _replies_in_context(self, question: Question, how: Generation) -> list[Reply]:
        asked: dict[str, Any] = {
            "max_tokens": how.max_tokens, "temperature": how.sampling.temperature,
            "n": how.samples, "seed": reply_seed(self.seed, question) % SEEDS,
        }  # fmt: skip
        if question.stops:
            asked["stop"] = list(question.stops[:4])  # as many as the API takes
        if question.plain:
            return [
                Reply(_until(str(choice.get("text", "")), question.stops), _tokens(choice))
                for choice in self._parsed(
                    self.endpoint.post("completions", {**asked, "prompt": question.prompt}),
                    how.samples,
                )
            ]
        asked["messages"] = question.messages
        if question.tools:
            asked["tools"] = list(question.tools)
        choices = self._parsed(self.endpoint.chat(asked), how.samples)
        return [Reply(_until(_said(one), question.stops), _tokens(one)) for one in choices]

    def _parsed(self, body: bytes, count: int) -> list[dict[str, Any]]:
        """The choices of an answer; their number must be this one."""
        try:
            choices = list(json.loads(body)["choices"])
        except (ValueError, KeyError, TypeError):
            choices = [None]
        if not all(isinstance(choice, dict) for choice in choices):
            raise EndpointError(f"{self.endpoint.url}: an answer is not a completion")
        if len(choices) != count:
            raise EndpointError(
                f"{self.endpoint.url} gave {len(choices)} of {count} replies (n); it may know no n"
            )
        return choices


def _ends(offsets: Sequence[int]) -> list[float]:
    """Where tokens end: where the next one with another start begins (bytes of one share it)."""
    ends: list[float] = []
    following = float("inf")
    for place in reversed(range(len(offsets))):
        if place + 1 < len(offsets) and offsets[place + 1] > offsets[place]:
            following = offsets[place + 1]
        ends.append(following)
    return ends[::-1]


def _said(choice: dict[str, Any]) -> str:
    """The text of a message; calls of tools follow it in the form that `ToolCalls` reads."""
    message = choice.get("message") or {}
    calls = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    shown = [written_call(str(c.get("name")), json.dumps(_read(c))) for c in calls]
    parts = [message.get("content") or "", *shown]
    return "\n".join(part for part in parts if part)


def _read(call: dict[str, Any]) -> Any:
    given = call.get("arguments")
    try:
        return json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given


def _until(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop, which a server may not have known."""
    ends = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(ends)] if ends else text


def _tokens(choice: dict[str, Any]) -> int:
    """How many tokens a reply has; 0 where the server does not say."""
    given = choice.get("logprobs")
    return len(given.get("tokens") or given.get("content") or ()) if given else 0
