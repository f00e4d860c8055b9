"""The small dialogues, pairs and rollouts of lessons."""

import torch

from culm.batch import IGNORED
from culm.engine.sampling import Sampling
from culm.learn import dialogues
from culm.learn.practice import no_other_model, train
from culm.objective.grpo import GRPO
from culm.optim.muon import Muon
from culm.task.letters import Letters

TASK = Letters(name="reverse", operation="reverse", shortest=2, longest=2)
TINY = dialogues.chat_model(width=16, layers=1, heads=2)


def test_only_the_reply_and_its_end_are_targets() -> None:
    batch = dialogues.padded([dialogues.dialogue("ab", "xyz"), dialogues.dialogue("a", "b")])
    names = dialogues.tokenizer()
    said = [names.decode(row[row != IGNORED].tolist(), specials=True) for row in batch.targets]
    assert said == ["xyz<|end|>", "b<|end|>"]
    assert batch.lengths is not None
    assert batch.lengths.tolist() == [9, 6]
    assert batch.counts == {"tokens": 15, "targets": 6, "rows": 2}
    place = int((batch.targets[0] != IGNORED).nonzero()[0])
    assert names.decode([int(batch.tokens[0, place])], specials=True) == "<|assistant|>"


def test_a_step_is_a_function_of_its_number_and_reads_its_part() -> None:
    rows = [dialogues.dialogue("a", letter) for letter in "abcdefgh"]
    data = dialogues.Rows(rows, size=64, part=lambda step: (0, 2 + step))
    for step in (0, 5):
        (batch,) = data.step(step)
        assert torch.equal(data.step(step)[0].tokens, batch.tokens)
        assert {chr(t) for t in batch.targets.flatten().tolist() if 97 <= t < 256} == set(
            "abcdefgh"[: 2 + step]
        )


def test_pairs_stay_together() -> None:
    pairs = [(dialogues.dialogue("a", c), dialogues.dialogue("a", c.upper())) for c in "xyz"]
    (batch,) = dialogues.Rows(pairs, size=8).step(0)
    assert batch.counts["pairs"] == 8
    chosen, rejected = (batch.targets[side::2].amax(1) for side in (0, 1))
    assert len(batch.tokens) == 16
    assert torch.equal(chosen, rejected)  # the end of a turn
    letters = [row[(row >= 0) & (row < 256)].item() for row in batch.targets]
    assert all(a - b == 32 for a, b in zip(letters[::2], letters[1::2], strict=True))


def test_questions_of_the_test_are_never_learned() -> None:
    asked = {one.answer for one in dialogues.questions(TASK, "train", 300)}
    assert not asked & {one.answer for one in dialogues.questions(TASK, "test", 100)}


def test_a_model_learns_to_answer() -> None:
    echo = Letters(name="count", operation="count", shortest=2, longest=2)
    rows = dialogues.Rows(dialogues.examples(echo, 200), size=16)
    untrained = TINY.build(seed=0)
    assert dialogues.accuracy(untrained, echo, 20) == 0
    assert (
        dialogues.accuracy(train(TINY, rows, 60, optimizer=Muon(rate=2e-2)).model, echo, 20) > 0.4
    )


def test_samples_depend_on_the_seed_alone() -> None:
    model = TINY.build(seed=0)
    first, second, other = (
        dialogues.replies(model, ["a", "a"], Sampling(seed=seed), 5) for seed in (1, 1, 9)
    )
    assert first == second != other
    assert first[0] != first[1]


def test_rollouts_are_answers_with_advantages() -> None:
    objective = GRPO().build(TINY.build(seed=0), no_other_model, 0)
    data = dialogues.rollouts(objective, TASK, rows=16, group=8, max_tokens=4)
    (batch,) = data.step(0)
    assert batch.extra["advantages"].shape == batch.tokens.shape
    assert "reward" in batch.metrics
