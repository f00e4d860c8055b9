"""The answer of a server to a request for one completion, as the engine would give it.

What a run learns from are token ids with their log-probabilities. Their text is never tokenised
again: another sequence of tokens can have the same text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from culm.endpoint import EndpointError
from culm.engine.request import Completion, Request

NAMED = re.compile(r"token_id:(\d+)")
NO_IDS = (
    "its answers hold no token ids, neither token_ids (return_token_ids) nor token_id:N "
    "(return_tokens_as_token_ids), and a text is never tokenised again; use vLLM or culm serve"
)
NO_LOGPROBS = "its answers hold no log-probabilities of the tokens (logprobs)"


def completion_of(body: bytes, request: Request, vocabulary: int) -> Completion:
    """vocabulary: how many ids the tokenizer knows.

    Raises:
        EndpointError: it is no complete answer to the request; the message follows the name of the
            server.
    """
    try:
        (choice,) = json.loads(body)["choices"]
        finish, given = choice["finish_reason"], choice.get("logprobs")
    except (ValueError, LookupError, TypeError, AttributeError):
        raise EndpointError("its answer is not one completion") from None
    if not isinstance(given, Mapping):
        raise EndpointError(NO_LOGPROBS)
    tokens = _tokens(choice, given)
    logprobs = _logprobs(given, len(tokens))
    for token in tokens:
        if token >= vocabulary:
            raise EndpointError(
                f"it sampled token {token}, and the policy's tokenizer has {vocabulary}; serve the "
                "model that is trained"
            )
    _check_end(tokens, finish, request)
    return Completion(tokens, logprobs, finish)


def _tokens(choice: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[int, ...]:
    ids = choice.get("token_ids")
    if ids is None:
        names = given.get("tokens")
        found = [NAMED.fullmatch(str(one)) for one in names] if isinstance(names, list) else [None]
        ids = [int(one[1]) if one else None for one in found]
    known = isinstance(ids, list) and all(type(one) is int and one >= 0 for one in ids)
    if not known or not ids:
        raise EndpointError(NO_IDS)
    return tuple(ids)


def _logprobs(given: Mapping[str, Any], count: int) -> tuple[float, ...]:
    found = given.get("token_logprobs")
    if not isinstance(found, list) or len(found) != count:
        raise EndpointError(NO_LOGPROBS)
    for one in found:
        if type(one) not in (int, float) or not math.isfinite(one):
            raise EndpointError(f"{NO_LOGPROBS}: one is {one}")
    return tuple(map(float, found))


def _check_end(tokens: tuple[int, ...], finish: Any, request: Request) -> None:
    """A server may end an answer for reasons of its own, or leave out how it ended."""
    early = request.stop.intersection(tokens[:-1])
    if finish == "stop" and tokens[-1] in request.stop and not early:
        return
    if finish == "length" and len(tokens) == request.max_tokens and not early:
        return
    raise EndpointError(
        f"it ended an answer after {len(tokens)} of {request.max_tokens} tokens with finish_reason "
        f"{finish!r} and token {tokens[-1]}, not with one of the policy's stop tokens "
        f"{sorted(request.stop)}; its context may be shorter than the policy's"
    )
