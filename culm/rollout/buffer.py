"""On-policy batches: the model answers, a task scores, the objective makes batches of it.

To the loop this is a dataset like any other. Step n depends on the seed, n and the weights alone,
so a run that was stopped goes on with the very same questions and random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from culm.batch import IGNORED, Batch
from culm.engine.engine import Engine
from culm.engine.request import Completion, Request
from culm.engine.sampling import Sampling
from culm.objective.grpo import Experience, GRPOObjective
from culm.parallel.ranks import Ranks
from culm.parallel.sharded import unsharded
from culm.seed import keyed, keyed_integer
from culm.task.task import Question, Task
from culm.text.reply import request_of
from culm.tokenizer.tokenizer import Tokenizer

ASKED = 1000  # questions that tell one order from another
ROUND = 16  # rows are padded to a multiple, so that memory is used again from step to step


class Rollouts:
    """`rows` completions a step over all ranks, in groups that answer the same question.

    With `shuffled` in the objective's settings, rewards are dealt out at random among all
    completions of a step: the control, in which nothing can be learned from them. (Within a group
    they would still tell whether its answers were good.)

    fingerprint: of the order of the questions.
    """

    def __init__(
        self,
        objective: GRPOObjective,
        tokenizer: Tokenizer,
        tasks: Sequence[Task],
        *,
        rows: int,
        micro_rows: int,
        seed: int,
        ranks: Ranks = Ranks(),
    ) -> None:
        group = objective.config.group
        for name, value in (("batch_size", rows), ("micro_batch_size", micro_rows)):
            if value % group:
                raise ValueError(f"train.{name}: {value} is not a multiple of group={group}")
        if rows % (group * ranks.count):
            raise ValueError(f"train.batch_size: {rows} does not divide over {ranks.count} ranks")
        self.objective, self.tokenizer = objective, tokenizer
        self.tasks, self.rows, self.micro_rows = tasks, rows, micro_rows
        self.seed, self.ranks = seed, ranks
        facts = (tasks, [self._question(index)[1] for index in range(ASKED)], seed, rows)
        self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()

    def step(self, number: int) -> list[Batch]:
        """The micro-batches of step `number` (from 0) for this rank."""
        group = self.objective.config.group
        prompts = self.rows // group // self.ranks.count
        first = (number * self.ranks.count + self.ranks.rank) * prompts
        asked = [self._question(index) for index in range(first, first + prompts)]
        requests = self._requests([question for _, question in asked], first * group)
        completions = self._complete(requests)
        replies = [self.tokenizer.decode(completion.tokens) for completion in completions]
        rewards = [
            task.score(question, reply)
            for (task, question), reply in zip(_repeat(asked, group), replies, strict=True)
        ]
        mean = sum(rewards) / len(rewards)
        if self.objective.config.shuffled:
            rewards = self._shuffled(rewards, number)
        return self._batches(requests, completions, torch.tensor(rewards), mean)

    def _shuffled(self, rewards: list[float], number: int) -> list[float]:
        own = slice(self.ranks.rank * len(rewards), (self.ranks.rank + 1) * len(rewards))
        everyone = [0.0] * self.rows
        everyone[own] = rewards
        dealt = self.ranks.sum(everyone, self.objective.model.device)
        keyed(self.seed, "shuffle", number).shuffle(dealt)
        return dealt[own]

    def _question(self, index: int) -> tuple[Task, Question]:
        number, which = divmod(index, len(self.tasks))
        task = self.tasks[which]
        return task, task.question("train", number, self.seed + 1)

    def _seed(self, row: int) -> int:
        return keyed_integer(self.seed, "sample", row)

    def _requests(self, questions: list[Question], first: int) -> list[Request]:
        config = self.objective.config
        return [
            request_of(
                question.prompt,
                self.tokenizer,
                config.max_tokens,
                self.objective.model.config.context,
                Sampling(temperature=config.temperature, seed=self._seed(first + index)),
            )
            for index, question in enumerate(_repeat(questions, config.group))
        ]

    def _complete(self, requests: list[Request]) -> list[Completion]:
        model = self.objective.model
        longest = max(len(request.prompt) + request.max_tokens for request in requests)
        with unsharded(model):
            engine = Engine(model, len(requests), longest, vocabulary=self.tokenizer.vocabulary)
            return engine.generate(requests)

    def _batches(
        self,
        requests: list[Request],
        completions: list[Completion],
        rewards: Tensor,
        mean: float,
    ) -> list[Batch]:
        group = self.objective.config.group
        prompts = [request.prompt for request in requests]
        order = _by_length(prompts, completions, group)
        stopped = sum(completion.finish == "stop" for completion in completions)
        metrics = {
            "reward": mean,
            "max_tokens": sum(len(c.tokens) for c in completions) / len(completions),
            "stopped": stopped / len(completions),
            "useful_groups": float((rewards.view(-1, group).std(1) > 0).float().mean()),
        }
        batches = []
        for at in range(0, len(order), self.micro_rows):
            part = order[at : at + self.micro_rows]
            rows = to_rows(
                [prompts[row] for row in part],
                [completions[row] for row in part],
                self.tokenizer.end_of_text,
                metrics,
            )
            batches.append(self.objective.prepare(Experience(rows, rewards[part])))
        return batches


def _by_length(
    prompts: Sequence[tuple[int, ...]], completions: Sequence[Completion], group: int
) -> list[int]:
    """Rows with groups of like length side by side, so that micro-batches hold little padding."""
    lengths = [len(p) + len(c.tokens) for p, c in zip(prompts, completions, strict=True)]
    groups = [list(range(at, at + group)) for at in range(0, len(lengths), group)]
    groups.sort(key=lambda rows: max(lengths[row] for row in rows))
    return [row for rows in groups for row in rows]


def to_rows(
    prompts: Sequence[tuple[int, ...]],
    completions: Sequence[Completion],
    pad: int,
    metrics: dict[str, float],
) -> Batch:
    """Prompt and completion side by side, padded to the right; completions are learned."""
    lengths = [len(p) + len(c.tokens) - 1 for p, c in zip(prompts, completions, strict=True)]
    length = -(-max(lengths) // ROUND) * ROUND
    tokens = torch.full((len(prompts), length), pad)
    targets = torch.full((len(prompts), length), IGNORED)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids = torch.tensor(prompt + completion.tokens)
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, len(prompt) - 1 : len(ids) - 1] = ids[len(prompt) :]
    positions = torch.arange(length).clamp_max(max(lengths) - 1).expand_as(tokens)
    weight = int((targets >= 0).sum())
    return Batch(
        tokens, targets, positions, None, weight, sum(lengths),
        metrics=metrics, lengths=torch.tensor(lengths),
    )  # fmt: skip


def _repeat(items: Sequence, times: int) -> list:
    return [item for item in items for _ in range(times)]
