"""Preferences under an adapter against TRL: the reference is the model with the adapter off."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from learning import build, mean
from parity import Parity, assert_equal
from test_trl import PAIRS, _theirs, arguments, batch_of, exported, tiny_models, turns
from torch import Tensor

from culm.adapt.lora import LoRA, LoRALinear
from culm.data.format.pair import PairFormat
from culm.objective.preference import Preference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_a_reference_without_its_adapter(dora: bool, tmp_path: Path, parity: Parity) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    peft = pytest.importorskip("peft")
    base, _ = tiny_models()
    LoRA(rank=4, alpha=8, dora=dora).apply(base, 0)
    layers = {n: one for n, one in base.named_modules() if isinstance(one, LoRALinear)}
    with torch.no_grad():
        for layer in layers.values():
            layer.b.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    objective, batch = build(Preference(beta=0.3), base), batch_of(PAIRS, PairFormat(), tmp_path)
    assert objective.reference is None
    _, theirs, words = exported(tmp_path)
    targets = sorted({_theirs(f"{name}.a").split(".")[-2] for name in layers})
    trainer = trl.DPOTrainer(
        model=theirs, processing_class=words, args=arguments(trl.DPOConfig, tmp_path, 4),
        train_dataset=datasets.Dataset.from_list(list(map(turns, PAIRS))),
        peft_config=peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, use_dora=dora),
    )  # fmt: skip
    found = dict(trainer.model.named_parameters())

    def pairs() -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, layer in layers.items():
            place = f"base_model.model.{_theirs(f'{name}.a').removesuffix('.a')}"
            yield f"{name}.a", layer.a, found[f"{place}.lora_A.default.weight"]
            yield f"{name}.b", layer.b, found[f"{place}.lora_B.default.weight"]
            if layer.magnitude is not None:
                theirs = found[f"{place}.lora_magnitude_vector.default.weight"]
                yield f"{name}.magnitude", layer.magnitude, theirs

    with torch.no_grad():
        for _, ours, other in pairs():
            other.copy_(ours)
    inputs = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    difference = assert_equal(
        mean(objective(batch), batch),
        trainer.compute_loss(trainer.model, inputs),
        lambda: [(name, ours.grad, other.grad) for name, ours, other in pairs()],
    )
    variant = f"DPO, reference without the adapter ({'DoRA' if dora else 'LoRA'})"
    parity.note("preference", variant, "TRL DPOTrainer with PEFT", difference)
