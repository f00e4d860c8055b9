"""Dialogues of a model: it answers each turn of a user after its own earlier replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from culm import log
from culm.config import SettingError
from culm.eval.answers_file import AnswersFile
from culm.eval.questions import TOGETHER, Answered, Asked
from culm.eval.responder import Generation, Responder
from culm.eval.turns import fits
from culm.objective.objective import Load
from culm.rollout.environment import QuestionEpisode
from culm.rollout.reward.reward import RewardConfig
from culm.rollout.scoring import SETTING, Scoring
from culm.rollout.trajectory import Trajectory
from culm.task.interactive import continued, followed
from culm.task.task import Task
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
    """The replies of all turns, turn by turn. A dialogue that no longer fits the model's context
    ends there.

    file: of known replies, to which others are added. done: gets the number of new replies.
    """
    found: list[Said] = []
    replied: list[list[str]] = [[] for _ in asked]  # replies of each dialogue
    active = list(enumerate(asked))
    turn = 1
    while active:
        open_ones = len(active)
        active = [
            (place, one) for place, one in active if turn == 1 or fits(responder, one[1], how)
        ]
        if ended := open_ones - len(active):
            log.say(
                f"{ended:,} dialogues end before turn {turn}, which the context has no room for"
            )
        replies = _replies(responder, [one for _, one in active], how, file, done)
        following: list[tuple[int, Asked]] = []
        for (place, (task, question)), answered in zip(active, replies, strict=True):
            found.append(Said(place, turn, task, answered))
            replied[place].append(answered.reply)
            said = followed(task, asked[place][1], replied[place])
            if said is not None:
                question = replace(
                    continued(question, answered.reply, said), further=question.further[1:]
                )
                following.append((place, (task, question)))
        active = following
        turn += 1
    return found


def _replies(
    responder: Responder, asked: Sequence[Asked], how: Generation, file: AnswersFile | None,
    done: Callable[[int], None],
) -> list[Answered]:  # fmt: skip
    known = file.read(asked) if file else {}
    keys = [file.key(task.name, question) if file else "" for task, question in asked]
    left = [one for one, key in zip(asked, keys, strict=True) if key not in known]
    new: list[Answered] = []
    for start in range(0, len(left), TOGETHER):
        part = left[start : start + TOGETHER]
        given = responder.replies([question for _, question in part], how)
        some = [
            Answered(task.name, question, (replies[0].text,), (), replies[0].tokens)
            for (task, question), replies in zip(part, given, strict=True)
        ]
        if file:
            file.write(some)
        done(len(some))
        new += some
    fresh = iter(new)
    return [known[key] if key in known else next(fresh) for key in keys]


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
