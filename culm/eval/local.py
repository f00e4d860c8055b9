"""A model in this process that answers the questions of an evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from culm.config import SettingError
from culm.engine.continuations import Likelihood, likelihoods
from culm.engine.request import Request
from culm.eval.answer import answer
from culm.eval.responder import CUT, Generation, Reply, reply_seed
from culm.model.transformer import Transformer
from culm.task.task import Option, Question
from culm.text.ids import text_ids
from culm.text.reply import NoRoom, request_of
from culm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class LocalModel:
    """A `Responder`: the model in eval mode, with its tokenizer. seed: of sampled replies.

    specials: names of special tokens in options and texts are these tokens. notes: what could not
    be read whole, by a phrase.
    """

    model: Transformer
    tokenizer: Tokenizer
    seed: int = 0
    specials: bool = False
    notes: Counter[str] = field(default_factory=Counter, compare=False)

    def likelihoods(self, options: Sequence[Option]) -> list[Likelihood]:
        """As `Responder.likelihoods`; texts that are too long lose their beginning.

        Raises:
            SettingError: the model gives no numbers.
        """
        return _numbers(likelihoods(self.model, [self._pair(option) for option in options]))

    def rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """How likely each text is, as a document of its own; a long one is read in parts.

        Each token is scored once. Parts are disjoint, but the last one, which has the end of the
        one before as its context.
        """
        context = self.model.config.context
        parts = [windows(self.tokenizer, text, context, self.specials) for text in texts]
        found = iter(_numbers(likelihoods(self.model, [pair for one in parts for pair in one])))
        return [joined([next(found) for _ in pairs]) for pairs in parts]

    def replies(self, questions: Sequence[Question], how: Generation) -> list[list[Reply] | NoRoom]:
        """As `Responder.replies`."""
        asked = [self._requests(question, how) for question in questions]
        fitting = [
            (request, question.stops)
            for question, requests in zip(questions, asked, strict=True)
            if not isinstance(requests, NoRoom)
            for request in requests
        ]
        requests, stops = [one for one, _ in fitting], [ends for _, ends in fitting]
        found = (
            Reply(one.text, len(one.completion.tokens))
            for one in answer(self.model, self.tokenizer, requests, stops=stops)
        )
        return [
            one if isinstance(one, NoRoom) else list(islice(found, how.samples)) for one in asked
        ]

    def check(self, question: Question, how: Generation) -> None:
        """ValueError if it leaves no room for a reply, or its options cannot be read."""
        if question.options:
            for option in question.options:
                self._pair(option)
        else:
            self._request(question, how, 0)

    def _requests(self, question: Question, how: Generation) -> list[Request] | NoRoom:
        """For each sample of a reply."""
        try:
            return [self._request(question, how, sample) for sample in range(how.samples)]
        except NoRoom as reason:
            return reason

    def _request(self, question: Question, how: Generation, sample: int) -> Request:
        sampling = replace(how.sampling, seed=reply_seed(self.seed, question, sample))
        context = self.model.config.context
        return request_of(question, self.tokenizer, how.max_tokens, context, sampling)

    def _pair(self, option: Option) -> tuple[list[int], list[int]]:
        """Ids of a context and of its continuation, at least one each, in the model's context."""
        context, continuation = encoded_pair(self.tokenizer, option, self.specials)
        room = self.model.config.context + 1 - len(continuation)  # the last token is not read
        if room < 1:
            raise ValueError(
                f"tasks: the option {option.continuation[:40]!r} has {len(continuation)} tokens, "
                f"more than the model's context of {self.model.config.context}"
            )
        if len(context) > room:
            self.notes[CUT.format(context=self.model.config.context)] += 1
        return context[-room:], continuation


def _numbers(found: list[Likelihood]) -> list[Likelihood]:
    if any(math.isnan(one.logprob) for one in found):
        raise SettingError("model: its log-probabilities are no numbers (NaN); it is damaged")
    return found


def encoded_pair(
    tokenizer: Tokenizer, option: Option, specials: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a context and of its continuation, at least one each.

    Both texts are encoded as one, and divided where the context alone ends. White space at the
    end of the context belongs to the continuation, as tokenizers have it.
    """
    context = option.context.rstrip()
    whole = text_ids(tokenizer, option.context + option.continuation, specials)
    ids = text_ids(tokenizer, context, specials)
    if not context and not tokenizer.start:
        whole = [*ids, *whole]  # the end of the document before is the context
    if len(whole) <= len(ids):
        raise ValueError(f"tasks: the option {option.continuation[:40]!r} has no text")
    return ids, whole[len(ids) :]


def windows(
    tokenizer: Tokenizer, text: str, context: int, specials: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Pairs (context, continuation) of up to `context` + 1 tokens that score each token once."""
    ids = text_ids(tokenizer, text, specials) if text else []
    begin = len(tokenizer.start)
    if ids and not begin:
        ids, begin = [tokenizer.end_of_text, *ids], 1
    pairs = [(ids[:begin], ids[begin : context + 1])] if len(ids) > begin else []
    for at in range(context + 1, len(ids), context):
        end = min(at + context, len(ids))
        pairs.append((ids[max(end - context - 1, 0) : at], ids[at:end]))
    return pairs


def joined(parts: Sequence[Likelihood]) -> Likelihood:
    """One text from its parts."""
    total, tokens = sum(one.logprob for one in parts), sum(one.tokens for one in parts)
    return Likelihood(total, tokens, all(one.greedy for one in parts))
