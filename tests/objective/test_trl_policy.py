"""Policy gradients and distillation against TRL: loss and gradients."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import mean
from parity import Parity, assert_equal
from test_trl import assert_same, exported, moved
from torch import Tensor

from culm.batch import IGNORED, Batch, counts_of
from culm.objective.distill import Distill, token_divergence
from culm.objective.experience import Experience
from culm.objective.grpo import GRPO
from culm.objective.policy import policy_logprobs

pytestmark = pytest.mark.slow
PROMPT, LENGTHS = 5, (7, 3, 6, 1, 4, 7)  # tokens of every prompt, and of each completion
LONGEST = max(LENGTHS)

VARIANTS: dict[str, tuple[dict, dict]] = {
    "GRPO": ({"variant": "grpo"}, {"loss_type": "grpo"}),
    "GRPO, KL (k3) in the loss": (
        {"variant": "grpo", "kl": 0.1}, {"loss_type": "grpo", "beta": 0.1},
    ),
    "GRPO, two-sided clip": (
        {"variant": "grpo", "dual_clip": 1.3}, {"loss_type": "grpo", "delta": 1.3},
    ),
    "GRPO, mean over tokens": ({"variant": "grpo", "average": "tokens"}, {"loss_type": "bnpo"}),
    "Dr. GRPO": ({"variant": "drgrpo"}, {"loss_type": "dr_grpo"}),
    "DAPO": ({"variant": "dapo"}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "GSPO": (
        {"variant": "gspo"},
        {
            "loss_type": "grpo", "importance_sampling_level": "sequence",
            "epsilon": 3e-4, "epsilon_high": 4e-4,
        },
    ),
    "GSPO, wide clip": (
        {"variant": "gspo", "clip_low": 0.2, "clip_high": 0.2},
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    ),
    "CISPO": (
        {"variant": "cispo", "clip_high": 0.2}, {"loss_type": "cispo", "epsilon_high": 1.2},
    ),
}  # fmt: skip


def completions() -> Batch:
    """Two groups of three; every prompt has the same length."""
    chance = torch.Generator().manual_seed(3)
    lengths = torch.tensor(LENGTHS) + PROMPT
    tokens = torch.randint(1, 250, (6, PROMPT + LONGEST), generator=chance)
    place = torch.arange(tokens.shape[1])
    tokens = tokens.where(place < lengths[:, None], 0)
    following = tokens.roll(-1, 1)
    learned = (place >= PROMPT - 1) & (place < lengths[:, None] - 1)
    targets = following.where(learned, IGNORED)
    positions = place.expand_as(tokens)
    return Batch(tokens, targets, positions, lengths=lengths, counts=counts_of(targets, lengths))


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_grpo(variant: str, tmp_path: Path, parity: Parity) -> None:
    """After an update: some ratios are beyond the clip."""
    settings, theirs_settings = VARIANTS[variant]
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    objective, batch = moved(GRPO(**settings)), completions()
    rewards = torch.tensor([1.0, 0.0, 0.3, 0.0, 0.5, 2.0])
    learned = batch.targets >= 0
    with torch.no_grad():
        new = policy_logprobs(objective.model, batch)
    noise = torch.randn(new.shape, generator=torch.Generator().manual_seed(5))
    old = (new + 0.3 * noise) * learned
    experience = Experience(batch, rewards, old, group=3, max_tokens=LONGEST, updates=2)
    batch = objective.prepare(experience)
    batch = replace(batch, extra={**batch.extra, "old": old})
    theirs, _, words = exported(tmp_path)
    given = {"beta": 0.0, "use_bias_correction_kl": False, **theirs_settings}
    trainer = trl.GRPOTrainer(
        model=theirs, processing_class=words, reward_funcs=lambda completions, **_: [0.0],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False, per_device_train_batch_size=6, num_generations=3,
            max_completion_length=LONGEST, **given,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 6),
    )  # fmt: skip
    theirs.eval()
    expected = trainer._compute_loss(theirs, inputs(batch, learned))
    found = assert_same(objective, mean(objective(batch), batch), theirs, expected)
    parity.note("grpo", variant, "TRL GRPOTrainer", found)


def inputs(batch: Batch, learned: Tensor) -> dict[str, Any]:
    """The batch as TRL takes it."""
    part = slice(PROMPT - 1, PROMPT + LONGEST - 1)  # where the targets of completions are
    mask = learned[:, part].long()
    found = {
        "prompt_ids": batch.tokens[:, :PROMPT],
        "prompt_mask": torch.ones(6, PROMPT, dtype=torch.int64),
        "completion_ids": batch.tokens[:, PROMPT:],
        "completion_mask": mask,
        "advantages": batch.extra["advantages"][:, PROMPT - 1],
        "old_per_token_logps": batch.extra["old"][:, part],
        "num_items_in_batch": mask.sum(),
    }
    if "reference" in batch.extra:
        found["ref_per_token_logps"] = batch.extra["reference"][:, part]
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(
    ("settings", "beta"),
    [
        ({"divergence": "forward"}, 0.0),
        ({"divergence": "jsd", "beta": 0.5}, 0.5),
        ({"divergence": "jsd", "beta": 0.1}, 0.1),
        ({"divergence": "reverse"}, 1.0),
    ],
    ids=str,
)
def test_divergences_of_gkd(
    settings: dict, beta: float, temperature: float, parity: Parity
) -> None:
    pytest.importorskip("trl")
    from trl.experimental.gkd import GKDTrainer

    chance = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(2, 9, 31, generator=chance) for _ in range(2))
    labels = torch.randint(31, (2, 9), generator=chance)
    labels[0, 4:] = labels[1, :2] = IGNORED
    ours, theirs = (student.clone().requires_grad_() for _ in range(2))
    config = Distill(teacher="x", temperature=temperature, **settings)
    kept = labels >= 0
    loss = token_divergence(ours[kept], teacher[kept], config).mean()
    expected = GKDTrainer.generalized_jsd_loss(
        theirs, teacher, labels, beta, temperature, num_items_in_batch=int(kept.sum())
    )
    found = assert_equal(
        loss, expected, lambda: [("logits", ours.grad, theirs.grad)], atol=1e-6, rtol=1e-5
    )
    variant = f"{settings['divergence']}, temperature {temperature:g}"
    parity.note("distill", variant, "TRL GKDTrainer", found)
