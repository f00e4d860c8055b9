"""Fine-tuning and reward models against TRL: loss and gradients on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import build, mean
from test_trl import PAIRS, TOKENIZER, assert_same, exported, moved, tiny_models, turns

from culm.adapt.heads import with_scalar_head
from culm.batch import Batch
from culm.data.example import RecordFormat
from culm.data.format.chat import ChatFormat
from culm.data.format.pair import PairFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.objective.next_token import NextToken
from culm.objective.reward import Reward
from culm.source import open_source

pytestmark = pytest.mark.slow


def batch_of(records: list[dict], format: RecordFormat, folder: Path) -> Batch:
    """All records in one batch, packed where the format allows it."""
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    source = open_source([str(folder / "records.jsonl")])
    prepare(source, format, TOKENIZER, folder / "data", held_out=0)
    loader = Loader(Prepared.open(folder / "data"), 64, len(records), len(records), seed=0)
    [batch] = loader.sample(loader.targets)
    return batch


@pytest.mark.parametrize("dft", [False, True], ids=["nll", "dft"])
def test_fine_tuning_of_answers(dft: bool, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    records = [{"prompt": one["prompt"], "completion": one["chosen"]} for one in PAIRS]
    objective = moved(NextToken(dft=dft))
    batch = batch_of(records, ChatFormat(), tmp_path)
    theirs, _, words = exported(tmp_path)
    more: dict[str, Any] = {"loss_type": "dft" if dft else "nll", "completion_only_loss": True}
    trainer = trl.SFTTrainer(
        model=theirs, processing_class=words,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"), max_length=64, report_to=[], use_cpu=True,
            per_device_train_batch_size=4, bf16=False, gradient_checkpointing=False, **more,
        ),
        train_dataset=datasets.Dataset.from_list(list(map(turns, records))),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    assert int((inputs["labels"] != -100).sum()) == batch.counts["targets"]
    assert_same(
        objective, mean(objective(batch), batch), theirs, trainer.compute_loss(theirs, inputs)
    )


# Ours, with the marks by which TRL finds what the assistant says.
MARKED = (
    "{%- for one in messages %}{{- '<|' + one.role + '|>' }}{%- if one.role == 'assistant' %}"
    "{% generation %}{{- one.content + '<|end|>' }}{% endgeneration %}{%- else %}"
    "{{- one.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def test_fine_tuning_of_every_turn_of_the_assistant(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    records = [
        {
            "messages": [
                {"role": role, "content": text[:9]}
                for turn in range(1 + number % 2)
                for role, text in (("user", one["prompt"]), ("assistant", one["chosen"]))
            ]
        }
        for number, one in enumerate(PAIRS)
    ]
    objective = moved(NextToken())
    batch = batch_of(records, ChatFormat(), tmp_path)
    theirs, _, words = exported(tmp_path)
    words.chat_template = MARKED
    trainer = trl.SFTTrainer(
        model=theirs, processing_class=words,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "out"), max_length=64, report_to=[], use_cpu=True,
            per_device_train_batch_size=4, bf16=False, gradient_checkpointing=False,
            assistant_only_loss=True,
        ),
        train_dataset=datasets.Dataset.from_list(records),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    assert int((inputs["labels"] != -100).sum()) == batch.counts["targets"]
    assert_same(
        objective, mean(objective(batch), batch), theirs, trainer.compute_loss(theirs, inputs)
    )


@pytest.mark.parametrize("centering", [0.0, 0.05])
@pytest.mark.parametrize("margins", [False, True], ids=["plain", "margins"])
def test_reward_models(margins: bool, centering: float, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoModelForSequenceClassification

    records = [{**pair, "margin": 0.5 * i} if margins else pair for i, pair in enumerate(PAIRS)]
    _, policy = tiny_models()
    with_scalar_head(policy, 0)
    objective = build(Reward(centering=centering), policy)
    batch = batch_of(records, PairFormat(margin="margin" if margins else None), tmp_path)
    _, _, words = exported(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "policy", num_labels=1)
    with torch.no_grad():
        theirs.score.weight.copy_(policy.head.weight)
    trainer = trl.RewardTrainer(
        model=theirs, processing_class=words,
        args=trl.RewardConfig(
            output_dir=str(tmp_path / "out"), max_length=64, report_to=[], use_cpu=True,
            per_device_train_batch_size=4, bf16=False, gradient_checkpointing=False,
            center_rewards_coefficient=centering or None,
        ),
        train_dataset=datasets.Dataset.from_list(list(map(turns, records))),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    expected = trainer.compute_loss(theirs, inputs)
    assert_same(
        objective, mean(objective(batch), batch), theirs, expected, {"head.weight": "score.weight"}
    )
