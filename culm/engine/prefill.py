"""Which waiting requests are prefilled next: several at once, or a long one in chunks.

A prompt that is longer than a step is read in the last slot, which decoding does not use while
fewer rows are running. When all of it has been read, it is copied to where the running rows end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from culm.engine.pace import Pace
from culm.engine.prefix import PrefixCache
from culm.engine.queue import Queue
from culm.engine.request import Running
from culm.engine.runner import Runner

PREFILL_TOKENS = 8192  # of one forward, padding included: bounds its memory


class Group:
    """Rows that are read in one forward, equal ones as one.

    The prefix cache has the same number of tokens of each. A row waits for the next group if this
    one reads a block that it needs too: by then, the prefix cache has it.
    """

    def __init__(self, prefix: PrefixCache) -> None:
        self._prefix = prefix
        self.rows: list[Running] = []
        self.start = self.longest = 0  # tokens that are not read, and the most that are read
        self._sources: set[object] = set()
        self._blocks: set[bytes] = set()

    @property
    def tokens(self) -> int:
        """Tokens to read, padding included."""
        return self.longest * len(self._sources)

    def joins(self, row: Running, tokens: int) -> bool:
        """Add a row if the group then reads up to this many tokens; the first one always joins."""
        start, missing = self._prefix.find(row), self._prefix.missing(row)
        source, longest = row.source, max(self.longest, row.length - start)
        if self.rows and source not in self._sources:
            fits = (len(self._sources) + 1) * longest <= tokens
            if not fits or start != self.start or self._blocks.intersection(missing[:1]):
                return False
        self.rows.append(row)
        self.start, self.longest = start, longest
        self._sources.add(source)
        self._blocks.update(missing)
        return True


def groups(new: Sequence[Running], prefix: PrefixCache) -> Iterator[list[Running]]:
    """Rows of similar length in groups small enough for one forward.

    Each group must be read before the next one is asked for.
    """
    left = sorted(new, key=lambda row: row.length)
    while left:
        group = Group(prefix)
        left = [row for row in left if not group.joins(row, PREFILL_TOKENS)]
        yield group.rows


def next_group(waiting: Queue, free: int, tokens: int, prefix: PrefixCache) -> Group:
    """Take what comes next and fits into one step: at least one request, up to `free`.

    A prompt of more than `tokens` tokens is alone, except for equal ones that follow it.
    """
    group = Group(prefix)
    last = None
    while waiting and len(group.rows) < free and group.joins(waiting.peek(last), tokens):
        last = waiting.take(last)
    return group


class PromptReader:
    """Reads prompts in steps, between which rows advance. rows: equal ones that are being read."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.rows: list[Running] = []
        self._done = 0  # tokens of these rows that are in the last slot
        self._valid = True  # whether the model has given numbers, and not NaN, after all of them

    def goes_on(self, waiting: Queue) -> bool:
        """Whether a prompt is being read; it waits again if one of a higher priority waits."""
        if self.rows and waiting.above(max(row.request.priority for row in self.rows)):
            for row in self._taken():
                waiting.give_back(row)
        return bool(self.rows)

    def abort(self, number: int) -> None:
        """Drop a request, if it is being read."""
        left = [row for row in self.rows if row.id != number]
        if self.rows and not left:
            self._taken()
        self.rows = left

    def _taken(self) -> list[Running]:
        """The rows, which are not read any more; the prefix cache keeps what was read of them."""
        rows, self.rows = self.rows, []
        self._runner.keep(rows[0], self._runner.slots - 1, self._done, self._valid)
        return rows

    def step(self, pace: Pace, waiting: Queue, running: int) -> tuple[list[Running], Tensor] | None:
        """Go on with a prompt, or begin with those that wait; `pace` says how many tokens.

        Rows that have been read, in the slots after the `running` ones, and logits (N, V) after
        each one's last token. None: a part of a prompt was read.
        """
        runner, last = self._runner, self._runner.slots - 1
        tokens = pace.tokens("prompts", running)
        if not self.rows:
            group = next_group(waiting, runner.slots - running, tokens, runner.prefix)
            if group.longest <= tokens:
                with pace.reading(group.tokens):
                    return group.rows, runner.prefill(group.rows, running)
            self.rows = group.rows
            self._done, self._valid = runner.prefix.restore(group.rows[0], last), True
        row = self.rows[0]
        end = min(self._done + tokens, row.length)
        with pace.reading(end - self._done):
            logits = runner.read(row, self._done, end, last)
        self._done, self._valid = end, self._valid and not bool(logits.isnan().any())
        if end < row.length:
            return None
        for slot in range(running, running + len(self.rows)):
            if slot != last:
                runner.cache.copy(last, slot, end)
        rows = self._taken()
        return rows, logits.repeat(len(rows), 1)
