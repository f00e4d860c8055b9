"""Questions, answers, pairs and rollouts for lessons, in a chat template over bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from culm.batch import IGNORED, Batch, counts_of
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.eval.answer import answer
from culm.learn.practice import Repeatable, no_other_model
from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.objective import Objective
from culm.rollout.buffer import Rollouts
from culm.rollout.environment import TaskEnvironment
from culm.rollout.settings import RolloutConfig
from culm.run.train_settings import TrainConfig
from culm.task.task import Question, Split, Task
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.tokenizer import Tokenizer

Row = tuple[list[int], list[bool]]  # ids, and which of them are learned


@cache
def tokenizer() -> Tokenizer:
    """The 256 bytes and the six special tokens of a chat."""
    return Bytes(specials=True).build()


def chat_model(width: int = 48, layers: int = 2, heads: int = 4) -> TransformerConfig:
    """A model of these tokens that learns in seconds."""
    attention = GQA(heads=heads, qk_norm="head")
    return TransformerConfig(
        vocabulary=tokenizer().vocabulary, width=width, layers=layers, context=96,
        attention=(attention,),
    )  # fmt: skip


def dialogue(question: str, reply: str) -> Row:
    """One turn in the chat template, of which the reply and its end are learned."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    encoded = tokenizer().chat.encode(messages)
    return encoded.ids, encoded.learned


def padded(rows: Sequence[Row], pairs: bool = False) -> Batch:
    """Rows of unequal length as a batch. pairs: rows 2i and 2i + 1 belong together."""
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    size = (len(rows), int(lengths.max()))
    tokens = torch.full(size, tokenizer().end_of_text)
    targets = torch.full(size, IGNORED)
    for place, (ids, learned) in enumerate(rows):
        row, mask = torch.tensor(ids), torch.tensor(learned)
        tokens[place, : len(ids)] = row
        targets[place, : len(ids) - 1] = row[1:].where(mask[1:], IGNORED)
    counts = counts_of(targets, lengths)
    if pairs:
        counts["pairs"] = len(rows) / 2
    positions = torch.arange(size[1]).expand(size)
    return Batch(tokens, targets, positions, lengths=lengths, counts=counts)


@dataclass(frozen=True)
class Rows(Repeatable):
    """Random examples, `size` a step. examples: a row, or a pair of rows, each.

    part: from where to where of the examples step n may read, all unless given.
    """

    examples: Sequence[Row | tuple[Row, Row]]
    size: int = 16
    seed: int = 0
    part: Callable[[int], tuple[int, int]] | None = None

    def step(self, number: int) -> list[Batch]:
        chance = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        start, end = (0, len(self.examples)) if self.part is None else self.part(number)
        chosen = torch.randint(start, end, (self.size,), generator=chance)
        found = [self.examples[place] for place in chosen.tolist()]
        pairs = isinstance(found[0][0], tuple)
        return [padded([row for pair in found for row in pair] if pairs else found, pairs)]


def questions(task: Task, split: Split, count: int) -> list[Question]:
    """The first ones of a task; those of `train` and `test` never meet."""
    return [task.question(split, index, 0) for index in range(count)]


def examples(task: Task, count: int) -> list[Row]:
    """Dialogues of a task with right answers, for training."""
    return [dialogue(one.prompt, one.reply) for one in questions(task, "train", count)]


def replies(
    model: Transformer, prompts: Sequence[str], sampling: Sampling = Sampling(temperature=0),
    max_tokens: int = 16,
) -> list[str]:  # fmt: skip
    """What a model answers to each prompt; number i samples with the seed of the setting + i."""
    chat, stops = tokenizer().chat, tokenizer().stop_ids
    asked = []
    for place, prompt in enumerate(prompts):
        seed = None if sampling.seed is None else sampling.seed + place
        ids = tuple(chat.prompt([{"role": "user", "content": prompt}]))
        asked.append(Request(ids, max_tokens, replace(sampling, seed=seed), stops))
    return [one.text for one in answer(model.eval(), tokenizer(), asked)]


def accuracy(model: Transformer, task: Task, count: int = 100) -> float:
    """The mean score of greedy answers to questions that training does not contain."""
    asked = questions(task, "test", count)
    said = replies(model, [one.prompt for one in asked])
    return sum(task.score(one, reply) for one, reply in zip(asked, said, strict=True)) / count


def rollouts(
    objective: Objective, task: Task, rows: int = 64, reward: object = None, seed: int = 0,
    **settings,
) -> Rollouts:  # fmt: skip
    """Answers of the model itself with rewards. settings: of `train.rollout`."""
    given = {"steps": 1, "objective": "grpo", "reward": reward}
    rewards = TrainConfig.model_validate(given).rewards
    return Rollouts(
        objective, tokenizer(), [TaskEnvironment(task)], RolloutConfig(**settings),
        no_other_model, rewards=rewards, batch_size=rows, micro_batch_size=rows, seed=seed,
    )  # fmt: skip
