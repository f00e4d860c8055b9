"""Another language model as a judge of completions."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations, groupby
from statistics import fmean
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from culm import log
from culm.address import check_address, key_of
from culm.config import refuse_unused
from culm.endpoint import Endpoint, EndpointError
from culm.objective.objective import Load
from culm.rollout.reward.reward import RewardConfig, Score
from culm.rollout.trajectory import Trajectory, transcript
from culm.seed import keyed

PAIR = """\
Compare two answers to the same question. Criteria: {criteria}

<question>
{prompt}
</question>

<answer_a>
{first}
</answer_a>

<answer_b>
{second}
</answer_b>

Say in one or two sentences which answer is better. Then end with your verdict: [[A]], [[B]] or
[[tie]]."""
RATING = """\
Rate an answer to a question. Criteria: {criteria}

<question>
{prompt}
</question>

<answer>
{answer}
</answer>

Say in one or two sentences how good the answer is. Then end with a number from 0 to {scale}, such
as [[{scale}]]."""
VERDICT = re.compile(r"\[\[(A|B|tie)\]\]", re.IGNORECASE)
NUMBER = re.compile(r"\[\[(\d+(?:\.\d+)?)\]\]")
NONSENSE = "the judge's reply has no verdict in the form that it was asked for"
UNPAIRED = "no pair with it was chosen; set pairs of the judge to at least half of a group"
# Of the first of a pair, by the verdicts of both orders.
POINTS: dict[tuple[str, ...], float] = {("a", "b"): 1.0, ("b", "a"): 0.0}
TIE, HALF = "[[tie]]", 0.5
GIVE_UP = 2  # times the concurrent requests that failed in a row


class Judge(RewardConfig):
    """A model behind an endpoint with the API of OpenAI judges the completions, at temperature 0.

    It compares those of a group in pairs, each in both orders; where the verdict changes with the
    order, it is a tie. A completion earns its share of wins, and a tie is half of one.

    url: of the API, such as http://localhost:8000/v1. model: its name there. criteria: what makes
    an answer good, in words. form: pairs, or a rating of each completion alone. pairs: how many are
    compared in a group, chosen at random; all of them unless given. scale: the highest rating,
    which earns 1. max_tokens: limit of a verdict.

    timeout: seconds of an attempt. retries: further attempts where one fails. concurrent: requests
    at the same time, of each rank. api_key: the environment variable that holds the API key.
    """

    kind: Literal["judge"] = "judge"
    model: str = Field(min_length=1)
    criteria: str = "The better answer is correct, follows the question, and is clear and short."
    form: Literal["pairs", "rating"] = "pairs"
    pairs: PositiveInt | None = None
    scale: PositiveInt = 10
    max_tokens: PositiveInt = 512
    # Where and how it is asked is no part of what a run depends on, which goes by this repr.
    url: str = Field(repr=False)
    timeout: PositiveFloat = Field(60.0, repr=False)
    retries: NonNegativeInt = Field(3, repr=False)
    concurrent: PositiveInt = Field(8, repr=False)
    api_key: str | None = Field(None, repr=False)

    @model_validator(mode="after")
    def _usable(self) -> Judge:
        check_address(self.url, self.api_key)
        if self.form == "rating" and self.pairs is not None:
            raise ValueError("pairs: a rating compares no pairs; leave this out, or form=pairs")
        refuse_unused(self, "scale", self.form == "rating", "form=rating")
        return self

    @property
    def least_group(self) -> int:
        return 2 if self.form == "pairs" else 1

    def build(self, load: Load, seed: int) -> Score:
        key = None if self.api_key is None else key_of(self.api_key, "train.reward.api_key")
        endpoint = Endpoint(self.url, self.model, self.timeout, self.retries, key)
        judging = Judging(self, partial(endpoint.answer, max_tokens=self.max_tokens), seed)
        return judging.pairs if self.form == "pairs" else judging.ratings

    def compared(self, count: int, group: int, seed: int) -> list[tuple[int, int]]:
        """Pairs of this many completions. The first of them include each completion, so that half
        as many pairs as completions leave none out.
        """
        every = list(combinations(range(count), 2))
        if self.pairs is None or self.pairs >= len(every):
            return every
        chance = keyed(seed, "judge", group)
        order = chance.sample(range(count), count)
        ring = [(order[at], order[(at + 1) % count]) for at in range(0, count, 2)]
        first = [(min(pair), max(pair)) for pair in ring]
        rest = [pair for pair in every if pair not in first]
        chance.shuffle(rest)
        return (first + rest)[: self.pairs]


class Judging:
    """Scores by the verdicts of a judge. answer: asks it."""

    def __init__(self, config: Judge, answer: Callable[[str], str], seed: int) -> None:
        self.config, self._answer, self._seed = config, answer, seed
        self._said: set[str] = set()
        self._lost: list[EndpointError] = []  # of requests that failed in a row

    def pairs(self, trajectories: Sequence[Trajectory]) -> list[float]:
        """The share of wins of each completion in its group."""
        matches = [
            (group[i], group[j])
            for number, group in _groups(trajectories)
            for i, j in self.config.compared(len(group), number, self._seed)
        ]
        orders = [(self._pair(a, b), self._pair(b, a)) for a, b in matches]
        replies = self._ask(prompt for both in orders if both[0] != both[1] for prompt in both)
        won, failed = defaultdict[int, list[float]](list), Counter[str]()
        for (a, b), both in zip(matches, orders, strict=True):
            try:
                verdicts = tuple(_last(VERDICT, replies.get(prompt, TIE)) for prompt in both)
            except EndpointError as error:
                failed[str(error)] += 1
                a.problem = b.problem = str(error)
                continue
            points = POINTS.get(verdicts, HALF)
            won[id(a)].append(points)
            won[id(b)].append(1 - points)
        self._say(failed, len(matches))
        for one in trajectories:
            if not won[id(one)]:
                one.problem = one.problem or UNPAIRED
        return [fmean(won[id(one)]) if won[id(one)] else math.nan for one in trajectories]

    def ratings(self, trajectories: Sequence[Trajectory]) -> list[float]:
        """The rating of each completion, 0 to 1."""
        prompts = [self._rating(one) for one in trajectories]
        replies, failed, found = self._ask(prompts), Counter[str](), list[float]()
        for one, prompt in zip(trajectories, prompts, strict=True):
            try:
                rating = float(_last(NUMBER, replies[prompt])) / self.config.scale
                if rating > 1:
                    raise EndpointError(NONSENSE)
                found.append(rating)
            except EndpointError as error:
                failed[str(error)] += 1
                one.problem = str(error)
                found.append(math.nan)
        self._say(failed, len(trajectories))
        return found

    def _pair(self, a: Trajectory, b: Trajectory) -> str:
        return PAIR.format(
            criteria=self.config.criteria, prompt=transcript(a.prompt),
            first=transcript(a.completion), second=transcript(b.completion),
        )  # fmt: skip

    def _rating(self, one: Trajectory) -> str:
        return RATING.format(
            criteria=self.config.criteria, prompt=transcript(one.prompt),
            answer=transcript(one.completion), scale=self.config.scale,
        )  # fmt: skip

    def _ask(self, prompts: Iterable[str]) -> dict[str, str | EndpointError]:
        """The reply to each prompt, or why there is none; equal ones are asked once."""
        self._lost, asked = [], list(dict.fromkeys(prompts))
        with ThreadPoolExecutor(self.config.concurrent) as pool:
            return dict(zip(asked, pool.map(self._reply, asked), strict=True))

    def _reply(self, prompt: str) -> str | EndpointError:
        lost = self._lost  # another thread may replace it
        if len(lost) >= GIVE_UP * self.config.concurrent:  # all would take hours to fail
            return lost[-1]
        try:
            found = self._answer(prompt)
        except EndpointError as error:
            self._lost.append(error)
            return error
        self._lost = []
        return found

    def _say(self, failed: Counter[str], count: int) -> None:
        """Each reason once."""
        for reason in failed.keys() - self._said:
            log.say(f"{failed[reason]:,} of {count:,} verdicts of the judge are missing: {reason}.")
        self._said |= failed.keys()


def _groups(trajectories: Sequence[Trajectory]) -> Iterator[tuple[int, list[Trajectory]]]:
    for number, group in groupby(trajectories, key=lambda one: one.group):
        yield number, list(group)


def _last(form: re.Pattern[str], reply: str | EndpointError) -> str:
    """What stands last in a reply in this form.

    Raises:
        EndpointError: nothing does, or there is no reply.
    """
    if isinstance(reply, EndpointError):
        raise reply
    if not (found := form.findall(reply)):
        raise EndpointError(NONSENSE)
    return found[-1].lower()
