"""Finished dialogues of one turn, for tests of rewards."""

from typing import Any

from rolling import TOKENIZER, LowerCase

from culm.rollout.environment import QuestionEpisode
from culm.rollout.trajectory import Trajectory
from culm.task.task import Question


def answered(prompt: str, reply: str, group: int = 0, **fields: Any) -> Trajectory:
    """A reply of so many tokens as letters. fields: of the question."""
    episode = QuestionEpisode(LowerCase(), Question(prompt, "abcdef", fields=fields))
    one = Trajectory(episode, group=group)
    one.read(episode.prompt, [1, 2])
    one.messages.append({"role": "assistant", "content": reply})
    one.tokens += TOKENIZER.encode(reply)
    one.learned += [True] * (len(one.tokens) - 2)
    episode.step(reply)
    return one
