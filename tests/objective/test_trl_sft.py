"""Fine-tuning and reward models against TRL: loss and gradients on a tiny model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from learning import build, mean
from parity import Parity
from test_trl import PAIRS, TOKENIZER, assert_same, exported, moved, tiny_models, turns

from culm.adapt.heads import with_scalar_head
from culm.batch import Batch, counts_of
from culm.convert import hf
from culm.data.example import RecordFormat
from culm.data.format.chat import ChatFormat
from culm.data.format.label import LabelFormat
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
def test_fine_tuning_of_answers(dft: bool, tmp_path: Path, parity: Parity) -> None:
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
    found = assert_same(
        objective, mean(objective(batch), batch), theirs, trainer.compute_loss(theirs, inputs)
    )
    parity.note("next_token", "completions, DFT" if dft else "completions", "TRL SFTTrainer", found)


# Ours, with the marks by which TRL finds what the assistant says.
MARKED = (
    "{%- for one in messages %}{{- '<|' + one.role + '|>' }}{%- if one.role == 'assistant' %}"
    "{% generation %}{{- one.content + '<|end|>' }}{% endgeneration %}{%- else %}"
    "{{- one.content + '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)


def test_fine_tuning_of_every_turn_of_the_assistant(tmp_path: Path, parity: Parity) -> None:
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
    found = assert_same(
        objective, mean(objective(batch), batch), theirs, trainer.compute_loss(theirs, inputs)
    )
    parity.note("next_token", "turns of the assistant", "TRL SFTTrainer", found)


def texts() -> Batch:
    """Rows of one length, all of it learned."""
    ids = torch.randint(1, 250, (3, 18), generator=torch.Generator().manual_seed(0))
    tokens, targets = ids[:, :-1], ids[:, 1:]
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    lengths = torch.full((3,), tokens.shape[1])
    return Batch(tokens, targets, positions, lengths=lengths, counts=counts_of(targets, lengths))


def test_pretraining(tmp_path: Path, parity: Parity) -> None:
    objective, batch = moved(NextToken()), texts()
    theirs, _, _ = exported(tmp_path)
    ids = torch.cat([batch.tokens, batch.targets[:, -1:]], 1)
    expected = theirs(input_ids=ids, labels=ids).loss
    found = assert_same(objective, mean(objective(batch), batch), theirs, expected)
    parity.note("next_token", "pretraining, all tokens", "transformers", found)


def test_label_smoothing(tmp_path: Path, parity: Parity) -> None:
    pytest.importorskip("transformers")
    from transformers.trainer_pt_utils import LabelSmoother

    objective, batch = moved(NextToken(smoothing=0.2)), texts()
    theirs, _, _ = exported(tmp_path)
    output = theirs(input_ids=batch.tokens)
    expected = LabelSmoother(epsilon=0.2)(output, batch.targets)
    found = assert_same(objective, mean(objective(batch), batch), theirs, expected)
    parity.note("next_token", "label smoothing", "transformers LabelSmoother", found)


def test_noise_on_embeddings(tmp_path: Path, parity: Parity) -> None:
    """With one seed, and no padding, whose length only their noise depends on."""
    pytest.importorskip("transformers")
    from transformers.integrations.neftune import neftune_post_forward_hook

    objective, batch = moved(NextToken(neftune=5.0)), texts()
    theirs, _, _ = exported(tmp_path)
    theirs.train()
    embedding = theirs.get_input_embeddings()
    embedding.neftune_noise_alpha = 5.0
    embedding.register_forward_hook(neftune_post_forward_hook)
    losses = []
    for compute in (
        lambda: mean(objective(batch), batch),
        lambda: F.cross_entropy(
            theirs(input_ids=batch.tokens).logits.flatten(0, 1), batch.targets.flatten()
        ),
    ):
        torch.manual_seed(0)
        losses.append(compute())
    found = assert_same(objective, losses[0], theirs, losses[1])
    parity.note("next_token", "NEFTune", "transformers", found)


@pytest.mark.parametrize("centering", [0.0, 0.05])
@pytest.mark.parametrize("margins", [False, True], ids=["plain", "margins"])
def test_reward_models(margins: bool, centering: float, tmp_path: Path, parity: Parity) -> None:
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
    found = assert_same(
        objective, mean(objective(batch), batch), theirs, expected, {"head.weight": "score.weight"}
    )
    parts = ["Bradley-Terry", *["margins"] * margins, *["centering"] * bool(centering)]
    parity.note("reward", ", ".join(parts), "TRL RewardTrainer", found)


def test_regression(tmp_path: Path, parity: Parity) -> None:
    """A reward model that was exported, with the labels of transformers."""
    transformers = pytest.importorskip("transformers")
    records = [
        {"prompt": one["prompt"], "completion": one["chosen"], "label": 0.5 * number}
        for number, one in enumerate(PAIRS)
    ]
    _, policy = tiny_models()
    with_scalar_head(policy, 0)
    hf.export(policy, TOKENIZER, tmp_path / "reward", torch.float32)
    objective = build(Reward(loss="regression"), policy)
    batch = batch_of(records, LabelFormat(), tmp_path)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    theirs = load(tmp_path / "reward").eval()
    assert batch.padding is not None
    ids = batch.tokens.masked_fill(batch.padding, theirs.config.pad_token_id)
    labels = batch.extra["label"]
    expected = theirs(input_ids=ids, attention_mask=~batch.padding, labels=labels).loss
    found = assert_same(
        objective, mean(objective(batch), batch), theirs, expected, {"head.weight": "score.weight"}
    )
    parity.note("reward", "regression", "transformers", found)
