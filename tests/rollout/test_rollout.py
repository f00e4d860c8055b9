"""On-policy batches: what they hold, and that a model learns from them, and only from them."""

import json
from collections.abc import Sequence

import pytest
import torch
from learning import build, fit, mean
from rolling import TOKENIZER, model, rollouts

from culm.adapt.lora import LoRA
from culm.batch import Batch
from culm.objective.grpo import GRPO, VARIANTS, Variant
from culm.objective.objective import ObjectiveConfig
from culm.optim.adamw import AdamW
from culm.parallel.ranks import Ranks
from culm.task.prompts import Prompts


def rewards(
    seed: int, shuffled: bool, steps: int = 40, config: ObjectiveConfig = GRPO()
) -> list[float]:
    objective = build(config, model(seed))
    asked = rollouts(objective, seed=seed, max_tokens=6, shuffled=shuffled)
    optimizer = AdamW(rate=1e-2, weight_decay=0.0).build(objective)
    return [step.metrics["reward"] for step in fit(objective, asked, steps, optimizer, clip=1.0)]


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.slow
def test_reward_rises_and_does_not_under_shuffled_rewards() -> None:
    """Three seeds; the worst of each counts."""
    for seed in range(3):
        learned, control = rewards(seed, False), rewards(seed, True)
        assert learned[0] == control[0] < 0.2  # the same first answers
        assert average(learned[-5:]) > 0.9
        assert average(control[-5:]) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_and_no_control_does(variant: Variant) -> None:
    """Three seeds; the worst of each counts. All that is learned is away from a random start, so
    the cost of being there is small.
    """
    config = GRPO(variant=variant, kl=min(GRPO(variant=variant).kl, 0.002))
    for seed in range(3):
        learned = rewards(seed, False, 60, config)
        control = rewards(seed, True, 60, config)
        assert average(learned[-5:]) > 0.9, seed
        assert average(control[-5:]) < 0.2, seed


class Alone(Ranks):
    """One of several ranks, without the others: what they would add is left out."""

    def sum(self, values, device="cpu"):
        return values


def columns(batches: list[Batch]) -> list[tuple[list[int], float]]:
    """Of each row the learned tokens and the advantage; in an order of their own, since
    micro-batches hold rows of similar length.
    """
    return sorted(
        (targets[targets >= 0].tolist(), round(float(advantage[targets >= 0][0]), 5))
        for batch in batches
        for targets, advantage in zip(batch.targets, batch.extra["advantages"], strict=True)
    )


def test_each_task_asks_its_questions_in_their_order(tmp_path) -> None:
    """So that every line of a file is asked before any is asked again."""
    tasks = []
    for name in ("one", "two"):
        lines = [{"prompt": f"{name} {n}", "answer": str(n)} for n in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        tasks.append(Prompts(name=name, path=str(tmp_path / f"{name}.jsonl")))
    asked = rollouts(build(GRPO(), model(0)), rows=4, micro_rows=4, tasks=tasks, group=2)
    prompts = [asked._episodes(index)[0].prompt[0]["content"] for index in range(80)]
    assert len(set(prompts)) == 80


def test_a_step_does_not_depend_on_how_it_is_divided() -> None:
    """Not on micro-batches, nor on ranks (one after the other here), nor on earlier steps."""
    objective, config = build(GRPO(), model(0)), {"group": 4, "max_tokens": 5}
    whole = rollouts(objective, rows=32, micro_rows=32, **config)
    whole.step(1)
    expected = columns(whole.step(2))
    assert len(expected) == 32
    assert columns(rollouts(objective, rows=32, micro_rows=8, **config).step(2)) == expected
    divided = [
        rollouts(objective, 32, 16, ranks=Alone(rank, 2), **config).step(2) for rank in range(2)
    ]
    assert columns([batch for part in divided for batch in part]) == expected
    assert columns(whole.step(3)) != expected


def test_shuffling_deals_out_over_the_whole_step() -> None:
    """The same rewards; a group's own are not kept together."""
    objective = build(GRPO(scale="none"), model(0))
    true, dealt = (
        rollouts(objective, group=4, max_tokens=5, shuffled=shuffled).step(0)
        for shuffled in (False, True)
    )
    assert [tokens for tokens, _ in columns(true)] == [tokens for tokens, _ in columns(dealt)]
    assert true[0].metrics["reward"] == dealt[0].metrics["reward"]
    groups = [
        [sorted(advantage for _, advantage in columns(part)[at : at + 4]) for at in range(0, 64, 4)]
        for part in (true, dealt)
    ]
    assert groups[0] != groups[1]


def test_only_the_answer_is_learned_with_its_end() -> None:
    objective = build(GRPO(), model(0))
    for batch in rollouts(objective, 16, 8, group=4, max_tokens=5).step(0):
        assert batch.counts["tokens"] == int((batch.targets >= 0).sum()) + sum(
            _prompt_lengths(batch)
        )
        for tokens, targets in zip(batch.tokens, batch.targets, strict=True):
            answer = targets[targets >= 0].tolist()
            ends = [index for index, token in enumerate(answer) if token in TOKENIZER.stop_ids]
            assert ends in ([], [len(answer) - 1])
            assert len(answer) == 5 or ends
            prompt = tokens[: int((targets >= 0).nonzero()[0]) + 1].tolist()
            assert TOKENIZER.decode(prompt, specials=True).endswith("<|assistant|>")


def _prompt_lengths(batch: Batch) -> list[int]:
    return [int((targets >= 0).nonzero()[0]) for targets in batch.targets]


def test_dropout_is_off_while_sampling_and_learning() -> None:
    base = model(0)
    LoRA(dropout=0.9).apply(base, seed=0)
    for parameter in base.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    objective = build(GRPO(), base)
    batch = rollouts(objective, 16, 16, group=4, max_tokens=5).step(0)[0]
    one, two = (float(mean(objective(batch), batch).detach()) for _ in range(2))
    assert one == two


def test_a_batch_of_broken_groups_is_refused() -> None:
    objective = build(GRPO(), model(0))
    with pytest.raises(ValueError, match=r"batch_size: 10 is not a multiple of .*group=8"):
        rollouts(objective, 10, 8, group=8)
    with pytest.raises(ValueError, match=r"batch_size: 24 does not divide over 2 ranks"):
        rollouts(objective, 24, 8, ranks=Ranks(0, 2), group=8)
