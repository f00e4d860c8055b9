"""What the engine does for a query: a task for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from culm.engine.request import Request
from culm.serve.answer import Echo
from culm.serve.job import Scoring, WorkerTask
from culm.serve.query import Query
from culm.serve.refusal import ContextTooShort
from culm.text.grammar import Grammar
from culm.text.language_model import LanguageModel
from culm.tokenizer.tokenizer import Tokenizer


def tasks_of(
    query: Query, ids: Sequence[int], adapter: str | None, grammar: Grammar | None,
    model: LanguageModel,
) -> list[WorkerTask]:  # fmt: skip
    """One for each choice of a prompt; the first one scores the prompt if it is echoed.

    Raises:
        ContextTooShort: there is no room for an answer.
    """
    count, context = len(ids), model.context
    left = context - count
    if left < (query.max_tokens != 0):
        raise ContextTooShort(
            f"This model's maximum context length is {context} tokens. However, your prompt "
            f"has {count} tokens, which leaves no room for an answer. Please shorten it."
        )
    scoring = None
    if query.echo and query.logprobs is not None:
        scoring = Scoring(tuple(ids), query.logprobs, adapter)
    requests: list[Request | None] = [None] * query.choices
    if query.max_tokens != 0:
        requests = [
            replace(
                _request(query, ids, left, choice, adapter, model.tokenizer),
                constraint=grammar and grammar.copy(),
            )
            for choice in range(query.choices)
        ]
    return [WorkerTask(None if i else scoring, request) for i, request in enumerate(requests)]


def _request(
    query: Query, ids: Sequence[int], left: int, choice: int, adapter: str | None,
    tokenizer: Tokenizer,
) -> Request:  # fmt: skip
    """What generates one choice; left: tokens that fit into the context."""
    stop = frozenset() if query.ignore_end else tokenizer.stop_ids
    stop |= tokenizer.stops_named(query.stop) | frozenset(query.stop_ids)
    seed = query.sampling.seed
    return Request(
        tuple(ids),
        left if query.max_tokens is None else min(query.max_tokens, left),
        replace(query.sampling, seed=None if seed is None else seed + choice),
        stop, query.logprobs, adapter, salt=query.client.salt, client=query.client.name,
        priority=query.client.limits.priority,
    )  # fmt: skip


def echoes_of(query: Query, prompts: Sequence[Sequence[int]], tokenizer: Tokenizer) -> list[Echo]:
    """The text of each prompt, as it was given or from its ids."""
    decode = tokenizer.decode
    return [
        Echo(given if isinstance(given, str) else decode(list(ids), specials=True), tuple(ids))
        for given, ids in zip(query.prompts, prompts, strict=True)
    ]
