"""From rewards to gradients against TRL: baselines, scales, old policies, corrections, teachers."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from learning import mean
from parity import Difference, Parity
from test_trl import assert_same, exported, moved, tiny_models
from test_trl_policy import LONGEST, PROMPT, completions, inputs
from torch import Tensor, nn

from culm.batch import Batch
from culm.objective.distill import Distill
from culm.objective.experience import Experience
from culm.objective.grpo import GRPO
from culm.objective.policy import policy_logprobs
from culm.rollout.reward.length import LengthPenalty

pytestmark = pytest.mark.slow
REWARDS = [1.0, 0.0, 0.3, 0.0, 0.5, 2.0]

GROUPS: dict[str, tuple[dict, dict]] = {
    "GRPO": ({}, {"loss_type": "grpo"}),
    "GRPO, scale=none": ({"scale": "none"}, {"loss_type": "grpo", "scale_rewards": "none"}),
    "Dr. GRPO": ({"variant": "drgrpo"}, {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "GRPO, KL (k3) in the loss": ({"kl": 0.1}, {"loss_type": "grpo", "beta": 0.1}),
    "GRPO, temperature 0.7": ({}, {"loss_type": "grpo", "temperature": 0.7}),
    "correction by token": (
        {"correction": "token", "correction_cap": 1.2},
        {"loss_type": "grpo", "vllm_importance_sampling_mode": "token_truncate"},
    ),
    "correction by sequence": (
        {"correction": "sequence", "correction_cap": 1.2},
        {"loss_type": "grpo", "vllm_importance_sampling_mode": "sequence_truncate"},
    ),
}


def shifted(*models: nn.Module) -> None:
    """All moved alike: an update, after which ratios are not one."""
    for model in models:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)


def trainer_of(kind: Any, settings: Any, folder: Path, **more: Any) -> Any:
    """A trainer whose completions are these, with the rewards above."""
    datasets = pytest.importorskip("datasets")
    theirs, start, words = exported(folder)
    args = settings(
        output_dir=str(folder / "out"), report_to=[], use_cpu=True, bf16=False,
        gradient_checkpointing=False, per_device_train_batch_size=6, num_generations=3,
        max_completion_length=LONGEST, disable_dropout=True, **more,
    )  # fmt: skip
    trainer = kind(
        model=theirs, processing_class=words, args=args,
        reward_funcs=lambda completions, **_: REWARDS,
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 6),
    )  # fmt: skip
    if trainer.ref_model is not None:  # it loaded the policy
        trainer.ref_model.load_state_dict(start.state_dict())
    theirs.eval()
    return trainer


def lists(batch: Batch, column: Tensor | None = None) -> tuple[list, list, list]:
    """Prompts, completions, and the numbers of a column at their tokens."""
    prompts, answers, numbers = [], [], []
    assert batch.lengths is not None
    for row, end in enumerate(batch.lengths.tolist()):
        prompts.append(batch.tokens[row, :PROMPT].tolist())
        answers.append(batch.tokens[row, PROMPT:end].tolist())
        if column is not None:
            numbers.append(column[row, PROMPT - 1 : end - 1].tolist())
    return prompts, answers, numbers


@pytest.mark.parametrize("variant", GROUPS)
def test_grpo_from_its_rewards(variant: str, tmp_path: Path, parity: Parity) -> None:
    trl = pytest.importorskip("trl")
    settings, theirs_settings = GROUPS[variant]
    temperature = theirs_settings.get("temperature", 1.0)
    objective, batch = moved(GRPO(**settings)), replace(completions(), temperature=temperature)
    with torch.no_grad():
        exact = policy_logprobs(objective.model, batch)
    noise = 0.3 * torch.randn(exact.shape, generator=torch.Generator().manual_seed(5))
    sampler = (exact + noise) * (batch.targets >= 0)
    given = {"beta": 0.0, "use_bias_correction_kl": False, **theirs_settings}
    trainer = trainer_of(trl.GRPOTrainer, trl.GRPOConfig, tmp_path, **given)
    if "correction" in settings:  # what only a run with vLLM switches on
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        trainer.vllm_importance_sampling_clip_max = settings["correction_cap"]
    prompts, answers, said = lists(batch, sampler)
    texts = [""] * 6
    trainer._generate = lambda _: (prompts, answers, None, texts, said, {}, None, None)
    trainer.args.gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 2  # so that it computes the old log-probabilities
    taken = trainer._generate_and_score_completions([{"prompt": "a"}] * 6)
    experience = Experience(
        batch, torch.tensor(REWARDS), sampler, group=3, max_tokens=LONGEST, updates=2
    )
    batch = objective.prepare(experience)
    shifted(objective.model, trainer.model)
    expected = trainer._compute_loss(trainer.model, taken)
    found = assert_same(objective, mean(objective(batch), batch), trainer.model, expected)
    parity.note("grpo", variant, "TRL GRPOTrainer", found)


def test_rloo_from_its_rewards(tmp_path: Path, parity: Parity) -> None:
    """With the divergence in the reward, and a ratio of whole completions."""
    trl = pytest.importorskip("trl")
    objective, batch = moved(GRPO(variant="rloo", kl=0.1)), completions()
    trainer = trainer_of(trl.RLOOTrainer, trl.RLOOConfig, tmp_path, beta=0.1)
    prompts, answers, _ = lists(batch)
    trainer._generate = lambda _: (prompts, answers, [""] * 6)
    taken = trainer._generate_and_score_completions([{"prompt": "a"}] * 6)
    sampler = torch.zeros(batch.tokens.shape)
    experience = Experience(
        batch, torch.tensor(REWARDS), sampler, group=3, max_tokens=LONGEST, updates=2
    )
    batch = objective.prepare(experience)
    shifted(objective.model, trainer.model)
    expected = trainer._compute_loss(trainer.model, taken)
    found = assert_same(objective, mean(objective(batch), batch), trainer.model, expected)
    parity.note("grpo", "RLOO", "TRL RLOOTrainer", found)


@pytest.mark.parametrize(
    ("settings", "beta"),
    [({}, 0.0), ({"divergence": "jsd", "beta": 0.3}, 0.3), ({"divergence": "reverse"}, 1.0)],
    ids=["forward", "jsd", "reverse"],
)
def test_a_student_of_a_teacher(
    settings: dict, beta: float, tmp_path: Path, parity: Parity
) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    teacher, student = tiny_models()
    config = Distill(teacher="x", **settings)
    objective, batch = config.build(student, lambda *_: teacher, 0), completions()
    theirs, start, words = exported(tmp_path)
    trainer = trl.DistillationTrainer(
        model=theirs, teacher_model=start, processing_class=words,
        args=trl.DistillationConfig(
            output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False, per_device_train_batch_size=6, beta=beta,
            max_completion_length=LONGEST,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 6),
    )  # fmt: skip
    theirs.eval()
    zeros = torch.zeros(batch.tokens.shape)
    blank = replace(batch, extra={"advantages": zeros, "old": zeros})
    expected, *_ = trainer._compute_loss(theirs, inputs(blank, batch.targets >= 0), None)
    found = assert_same(objective, mean(objective(batch), batch), theirs, expected)
    name = config.divergence
    parity.note("distill", f"{name}, temperature 1", "TRL DistillationTrainer", found)


def test_overlong_answers_lose_as_much(parity: Parity) -> None:
    pytest.importorskip("trl")
    from trl.rewards import get_soft_overlong_punishment

    lengths = list(range(1, 130, 3))
    theirs = get_soft_overlong_punishment(100, 20)([[1] * length for length in lengths])
    ours = LengthPenalty(longest=100, margin=20).build(lambda *_: None, 0)  # type: ignore
    found = ours([SimpleNamespace(sampled=length) for length in lengths])  # type: ignore
    away = max(abs(a - b) for a, b in zip(found, theirs, strict=True))
    assert away < 1e-9
    assert found[lengths.index(91)] == pytest.approx(-0.55)
    parity.note("grpo", "DAPO, overlong shaping", "TRL", Difference(away))
