"""How much of a prompt is read between two decoding steps, from the time that both take."""

import statistics

import pytest

from culm.engine import scoring
from culm.engine.engine import Engine
from culm.engine.pace import DECODING_STEPS, LEAST_TOKENS, SECONDS, Pace
from culm.engine.request import Request
from culm.engine.sampling import Sampling

LIMIT = 256


class Machine:
    """Its steps take known times: fixed + token * n for n tokens of a prompt."""

    def __init__(self, step: float, fixed: float, token: float) -> None:
        self.now, self.step, self.fixed, self.token = 0.0, step, fixed, token
        self.pace = Pace(LIMIT, lambda: self.now)

    def seconds(self, tokens: int) -> float:
        return self.fixed + self.token * tokens

    def run(self, steps: int) -> list[int]:
        """The sizes of the parts that are read."""
        sizes = []
        for _ in range(steps):
            with self.pace.decoding():
                self.now += self.step
            sizes.append(self.pace.tokens("prompts", 1))
            with self.pace.reading(sizes[-1]):
                self.now += self.seconds(sizes[-1])
        return sizes


@pytest.mark.parametrize("step", [0.0005, 0.006, 0.1])
@pytest.mark.parametrize("token", [1e-5, 1e-4, 7e-4, 5e-3])
@pytest.mark.parametrize("fixed", [0.0, 0.005, 0.02, 0.2])
def test_a_part_takes_as_long_as_a_few_steps(step: float, token: float, fixed: float) -> None:
    """Or as long as a reader does not notice, or as is needed for half of the full speed."""
    machine = Machine(step, fixed, token)
    sizes = machine.run(60)[20:]
    allowed = max(DECODING_STEPS * step, SECONDS, 2 * machine.seconds(LEAST_TOKENS))
    assert max(map(machine.seconds, sizes)) <= 1.01 * allowed
    usual = statistics.mode(sizes)  # others are measured from time to time
    assert usual == LIMIT or machine.seconds(2 * usual) > 0.99 * allowed
    speed = sum(sizes) / sum(map(machine.seconds, sizes))
    assert speed >= 0.4 * LIMIT / machine.seconds(LIMIT)


def test_nothing_waits_where_nothing_runs() -> None:
    pace = Pace(LIMIT)
    assert pace.tokens("prompts", 0) == LIMIT
    assert pace.tokens("prompts", 1) == LEAST_TOKENS  # of a machine that is not known yet
    for limit in (1, 8, 33, 100):
        assert Pace(limit).tokens("prompts", 0) == limit
        assert Pace(limit).tokens("prompts", 1) == min(limit, LEAST_TOKENS)


def test_a_machine_that_slows_down_or_speeds_up_is_noticed() -> None:
    machine = Machine(0.001, 0.0, 1e-5)
    assert machine.run(20)[-1] == LIMIT
    machine.token = 1e-2
    assert machine.run(20)[-1] <= 2 * LEAST_TOKENS
    machine.token = 1e-5
    assert statistics.mode(machine.run(80)[40:]) == LIMIT


def test_the_rest_of_a_prompt_is_no_measure_of_a_part() -> None:
    machine = Machine(0.001, 0.0, 1e-2)
    machine.run(20)
    for _ in range(50):
        with machine.pace.reading(3):
            machine.now += 0.0001
    assert machine.pace.tokens("prompts", 1) <= 2 * LEAST_TOKENS


def test_scores_and_prompts_are_measured_separately() -> None:
    machine = Machine(0.001, 0.0, 1e-5)
    machine.run(20)
    pace = machine.pace
    assert pace.tokens("scores", 1) == LEAST_TOKENS

    def parts():
        for _ in range(20):
            size = pace.tokens("scores", 1)
            machine.now += 0.0004 * size
            yield [0] * size

    for _ in pace.scored(parts(), len):
        machine.now += 5.0  # the time between two parts is not theirs
    assert pace.tokens("scores", 1) == 64  # in 0.026 s; 128 take 0.051
    assert pace.tokens("prompts", 1) == LIMIT


def test_scores_of_long_prompts_come_in_small_parts_while_others_run(model) -> None:
    """The engine's own machine: the first parts are small, and all of them join to one answer."""
    engine = Engine(model, 2, step_tokens=LIMIT)
    ids = tuple(range(60)) + tuple(range(30))
    whole = scoring.rank(model, ids, 2)
    assert [len(part.logprobs) for part in engine.rank_in_steps(ids, 2)] == [89]
    engine.add(Request((1, 2), 60, Sampling(temperature=0)))
    engine.step()
    parts = list(engine.rank_in_steps(ids, 2))
    assert len(parts[0].logprobs) == LEAST_TOKENS
    joined = [value for part in parts for value in part.logprobs.tolist()]
    assert joined == pytest.approx(whole.logprobs.tolist(), abs=1e-4)
