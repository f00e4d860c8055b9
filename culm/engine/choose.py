"""From logits to tokens: samples for all rows, accepts drafts, and reports what each row gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from culm.engine.constraint import is_empty
from culm.engine.request import Event, Finish, Running
from culm.engine.sampling import TokenSampler


class Chooser:
    """Samples with each row's own settings; `forget` must be called when the rows change.

    vocabulary: ids from there on are never sampled. suppressed: nor are these.
    """

    def __init__(self, vocabulary: int, suppressed: Sequence[int] = ()) -> None:
        self.vocabulary, self.suppressed = vocabulary, list(suppressed)
        self._samplers: dict[int, TokenSampler] = {}  # by positions of a row, for the current rows

    def forget(self) -> None:
        """The rows have changed."""
        self._samplers.clear()

    def accept(self, rows: Sequence[Running], logits: Tensor) -> list[Event]:
        """Sample for rows, extend their outputs, and report the tokens that they get.

        logits: (N, M, V) after the output of a row and after its draft. A draft token is accepted
        if it equals what was sampled in its place; the first difference ends the step.
        """
        places = range(logits.shape[1])
        before = [row.output + row.draft[:i] if i else row.output for row in rows for i in places]
        tokens, logprobs = (found.tolist() for found in self.sample(rows, logits, before))
        events = []
        for index, row in enumerate(rows):
            ranks = row.request.logprobs
            for place, token in enumerate(tokens[index]):
                row.output.append(token)
                logprob = logprobs[index][place]
                row.finish = "invalid" if math.isnan(logprob) else finish_of(row)
                top: tuple[tuple[int, float], ...] = ()
                if ranks is not None:
                    top = ranked(logits[index, place].log_softmax(-1), token, ranks)
                events.append(Event(row.id, token, logprob, row.finish, top, row.cached))
                if row.finish or place == len(row.draft) or row.draft[place] != token:
                    break
        return events

    def sample(
        self, rows: Sequence[Running], logits: Tensor, outputs: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Tokens and their log-probabilities (N, M).

        logits: (N, M, V), in which ids that are never sampled become -inf. outputs: what precedes
        each of the N * M positions, after the prompt of its row.
        """
        logits[..., self.vocabulary :] = float("-inf")
        for row, scores in zip(rows, logits, strict=True) if self.suppressed else ():
            if row.request.constraint is None:  # which may allow nothing else
                scores[:, self.suppressed] = float("-inf")
        shape = logits.shape[:2]
        times = range(shape[1])
        sampler = self._samplers.get(shape[1])
        if sampler is None:
            settings = [row.request.sampling for row in rows for _ in times]
            seeds = [row.seed for row in rows for _ in times]
            sampler = self._samplers[shape[1]] = TokenSampler(settings, seeds, logits.device)
        prompts = [row.request.prompt for row in rows for _ in times]
        allowed = None
        if any(row.request.constraint for row in rows):
            each = (row for row in rows for _ in times)
            allowed = [row.allowed(output) for row, output in zip(each, outputs, strict=True)]
        tokens, logprobs = sampler(logits.flatten(0, 1), prompts, outputs, allowed)
        return tokens.view(shape), logprobs.view(shape)


def finish_of(row: Running) -> Finish | None:
    """Why the newest token of a row is its last one; None: it is not."""
    if row.output[-1] in row.request.stop:
        return "stop"
    allowed = row.allowed(row.output)
    if row.request.constraint is not None and row.request.constraint.failure:
        return "failed"
    if allowed is not None and is_empty(allowed):
        return "complete"
    return "length" if len(row.output) >= row.request.max_tokens else None


def ranked(logprobs: Tensor, token: int, count: int) -> tuple[tuple[int, float], ...]:
    """logprobs: (V,) -> (token, its logprob), then the `count` most likely tokens with theirs."""
    best = logprobs.topk(min(count, logprobs.shape[-1]))
    most_likely = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ((token, float(logprobs[token])), *most_likely)
