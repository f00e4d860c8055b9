"""The replies of a model in dialogues, turn by turn, and their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from culm.config import SettingError
from culm.eval.answers_file import AnswersFile
from culm.eval.questions import TOGETHER, Answered
from culm.eval.responder import Generation, Reply, Responder
from culm.eval.turns import Asked, Dialogue, dialogues
from culm.objective.objective import Load
from culm.rollout.environment import QuestionEpisode
from culm.rollout.reward.reward import RewardConfig
from culm.rollout.scoring import SETTING, Scoring
from culm.rollout.trajectory import Trajectory
from culm.task.task import Task
from culm.text.reply import NoRoom
from culm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Said:
    """One reply. place: of its dialogue among those that were asked. turn: from 1."""

    place: int
    turn: int
    task: Task
    answered: Answered


def converse(
    responder: Responder,
    asked: Sequence[Asked],
    how: Generation,
    file: AnswersFile | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> list[Said]:
    """The replies of all turns, turn by turn.

    file: of known replies, to which others are added. done: gets the number of new replies.
    """

    def ask(some: Sequence[Asked], how: Generation) -> list[list[Reply] | NoRoom]:
        return _replies(responder, some, how, file, done)

    said = [
        Said(one.place, turn, one.task, _answered(one, turn))
        for (one,) in dialogues(asked, how, ask)
        for turn in range(1, len(one.turns) + 1)
    ]
    return sorted(said, key=lambda one: one.turn)


def _answered(one: Dialogue, turn: int) -> Answered:
    question, reply = one.turns[turn - 1], one.replies[turn - 1]
    cut = one.cut and turn == len(one.turns)
    return Answered(one.task.name, question, (reply.text,), (), reply.tokens, cut=int(cut))


def _replies(
    responder: Responder, asked: Sequence[Asked], how: Generation, file: AnswersFile | None,
    done: Callable[[int], None],
) -> list[list[Reply] | NoRoom]:  # fmt: skip
    """The replies to one turn, those of a file first."""
    known = file.read(asked) if file else {}
    keys = [file.key(task.name, question) if file else "" for task, question in asked]
    left = [one for one, key in zip(asked, keys, strict=True) if key not in known]
    new: list[list[Reply] | NoRoom] = []
    for start in range(0, len(left), TOGETHER):
        part = left[start : start + TOGETHER]
        given = responder.replies([question for _, question in part], how)
        some = [
            Answered(task.name, question, (replies[0].text,), (), replies[0].tokens)
            for (task, question), replies in zip(part, given, strict=True)
            if not isinstance(replies, NoRoom)
        ]
        if file:
            file.write(some)
        done(len(some))
        new += given
    fresh = iter(new)
    return [
        [Reply(known[key].reply, known[key].tokens)] if key in known else next(fresh)
        for key in keys
    ]


def rewards_of(
    said: Sequence[Said], rewards: Sequence[RewardConfig], load: Load,
    tokenizer: Tokenizer | None, seed: int,
) -> list[float]:  # fmt: skip
    """The reward of each reply after what was said before it; nan where there is none.

    tokenizer: of the models that read the dialogues.

    Raises:
        SettingError: a reward cannot be given.
    """
    try:
        scoring = Scoring(rewards, load, seed)
        trajectories = [trajectory(one, number, tokenizer) for number, one in enumerate(said)]
        return scoring.totals(scoring.parts(trajectories), {})
    except SettingError as error:
        raise SettingError(str(error).replace(SETTING, "reward")) from error


def trajectory(said: Said, group: int, tokenizer: Tokenizer | None) -> Trajectory:
    """A reply as the rewards of a rollout read it. group: which are compared with each other."""
    question, reply = said.answered.question, said.answered.reply
    episode = QuestionEpisode(said.task, question, [reply])
    one = Trajectory(episode, group=group)
    before = [dict(message) for message in question.messages]
    one.messages = [*before, {"role": "assistant", "content": reply}]
    if tokenizer is not None:
        one.tokens = tokenizer.chat.encode(one.messages, "last").ids
        start = len(tokenizer.chat.prompt(before))
        one.learned = [place >= start for place in range(len(one.tokens))]
        one.logprobs = [0.0] * len(one.tokens)
        one.reply = tuple(one.tokens[start:])
    return one
