"""What a model said in one dialogue, token by token, and what it earned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from culm.batch import IGNORED, Batch, counts_of
from culm.engine.request import Completion, Finish
from culm.objective.experience import ROUND
from culm.rollout.environment import Episode
from culm.tokenizer.message import Message


@dataclass
class Trajectory:
    """messages, tokens: the dialogue so far. learned, logprobs: of each token, whether the model
    sampled it, and with which log-probability (0 if it did not). reply: the tokens of the last
    turn. finish: why the dialogue ended: with an end token, or at a limit. group: the number of its
    prompt in the whole run. problem: why a reward could not score it.
    """

    episode: Episode
    messages: list[Message] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reply: tuple[int, ...] = ()
    finish: Finish = "stop"
    group: int = 0
    problem: str = ""

    def read(self, messages: Sequence[Message], tokens: Sequence[int]) -> None:
        """Append messages that the model reads and does not learn."""
        self.messages += messages
        self.tokens += tokens
        self.learned += [False] * len(tokens)
        self.logprobs += [0.0] * len(tokens)

    def say(self, completion: Completion, text: str) -> None:
        """Append what the model sampled, which is `text`."""
        self.messages.append({"role": "assistant", "content": text})
        self.reply = completion.tokens
        self.tokens += completion.tokens
        self.learned += [True] * len(completion.tokens)
        self.logprobs += completion.logprobs
        self.finish = completion.finish

    @property
    def sampled(self) -> int:
        """How many tokens the model sampled."""
        return sum(self.learned)

    @property
    def sampled_tokens(self) -> list[int]:
        """The tokens that the model sampled, of all turns."""
        return [token for token, own in zip(self.tokens, self.learned, strict=True) if own]

    @property
    def prompt(self) -> list[Message]:
        """The messages that the model answered first."""
        return self.messages[: len(self.episode.prompt)]

    @property
    def completion(self) -> list[Message]:
        """The messages that followed, from the first reply to the last."""
        return self.messages[len(self.episode.prompt) :]


def text_of(messages: Sequence[Message]) -> str:
    """The text of messages, with a blank line between them."""
    return "\n\n".join(str(message["content"]) for message in messages)


def transcript(messages: Sequence[Message]) -> str:
    """The text of one message; of several, each one after its role."""
    if len(messages) == 1:
        return text_of(messages)
    return "\n\n".join(f"{one['role']}: {one['content']}" for one in messages)


def to_rows(trajectories: Sequence[Trajectory], pad: int) -> tuple[Batch, Tensor]:
    """One row a trajectory, padded on the right; what the model sampled are the targets.

    Also gives the log-probabilities of the targets as they were sampled: (N, T) fp32.
    """
    lengths = [len(trajectory.tokens) - 1 for trajectory in trajectories]
    length = -(-max(lengths) // ROUND) * ROUND
    shape = len(trajectories), length
    tokens, targets = torch.full(shape, pad), torch.full(shape, IGNORED)
    logprobs = torch.zeros(shape)
    for row, trajectory in enumerate(trajectories):
        ids, end = torch.tensor(trajectory.tokens), lengths[row]
        learned = torch.tensor(trajectory.learned[1:])
        tokens[row, :end] = ids[:-1]
        targets[row, :end] = ids[1:].where(learned, torch.tensor(IGNORED))
        logprobs[row, :end] = torch.tensor(trajectory.logprobs[1:])
    positions = torch.arange(length).clamp_max(max(lengths) - 1).expand(shape)
    sizes = torch.tensor(lengths)
    counts = counts_of(targets, sizes)
    return Batch(tokens, targets, positions, lengths=sizes, counts=counts), logprobs


def without_targets(batch: Batch, rows: Tensor) -> Batch:
    """The batch with nothing to learn in some rows; rows: (N,) bool."""
    targets = batch.targets.masked_fill(rows[:, None], IGNORED)
    return replace(batch, targets=targets, counts=counts_of(targets, batch.lengths))
