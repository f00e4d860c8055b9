"""Preferences and KTO against TRL: loss and gradients on a tiny model."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import build, mean
from parity import Difference, Parity, assert_equal
from torch import Tensor

from culm.batch import IGNORED, Batch
from culm.convert import hf
from culm.convert.hf.families.decoder import NAMES
from culm.convert.rules import ModuleNames, renamed
from culm.data.example import RecordFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.model.attention.gqa import GQA
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.kto import KTO
from culm.objective.objective import Objective, ObjectiveConfig
from culm.objective.preference import Preference
from culm.parallel.ranks import Ranks
from culm.source import open_source
from culm.tokenizer.train import BPE

pytestmark = pytest.mark.slow
TOKENIZER = BPE(vocabulary=262).build(["grass"])


LOSSES: dict[str, tuple[dict, dict]] = {
    "DPO": ({"loss": "sigmoid"}, {"loss_type": "sigmoid"}),
    "hinge": ({"loss": "hinge"}, {"loss_type": "hinge"}),
    "IPO, mean": ({"loss": "ipo"}, {"loss_type": "ipo"}),
    "APO-zero": ({"loss": "apo_zero"}, {"loss_type": "apo_zero"}),
    "SPPO": ({"loss": "sppo"}, {"loss_type": "sppo_hard"}),
    "robust DPO": (
        {"loss": "robust", "smoothing": 0.1},
        {"loss_type": "robust", "label_smoothing": 0.1},
    ),
    "DPO-norm": ({"loss": "sigmoid", "length": "mean"}, {"loss_type": "sigmoid_norm"}),
    "LD-DPO": ({"loss": "sigmoid", "tail": 0.4}, {"loss_type": "sigmoid", "ld_alpha": 0.4}),
    "DPO, NLL": (
        {"loss": "sigmoid", "nll": 0.4},
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]},
    ),
    "DPO, precomputed reference": (
        {"loss": "sigmoid", "reference": "precomputed"},
        {"loss_type": "sigmoid", "precompute_ref_log_probs": True},
    ),
}


WORDS = ("blue", "grey", "pink", "teal")  # of one length: averages per pair and per token agree
PAIRS = [
    {"prompt": f"Say {word}.", "chosen": word * (1 + i % 3), "rejected": "no " * (1 + i % 2) + word}
    for i, word in enumerate(("blue", "seven", "grass", "a longer one"))
]
EVEN = [{**pair, "chosen": word} for pair, word in zip(PAIRS, WORDS, strict=True)]


NO_NAMES: Mapping[str, str] = {}


def tiny_models() -> tuple[Transformer, Transformer]:
    """A start, and a policy that has moved away from it."""
    attention = GQA(heads=2, kv_heads=1, qk_norm="head", head_dim=16)
    config = TransformerConfig(
        vocabulary=262, width=32, layers=2, context=64, attention=(attention,)
    )
    start, policy = config.build(0), config.build(1)
    for model in (start, policy):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4)
    return start, policy


def batch_of(records: list[dict], format: RecordFormat, folder: Path) -> Batch:
    """All records in one batch."""
    (folder / "records.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    source = open_source([str(folder / "records.jsonl")])
    prepare(source, format, TOKENIZER, folder / "data", held_out=0)
    loader = Loader(Prepared.open(folder / "data"), 64, len(records), len(records), seed=0)
    loader._row = lambda index: index  # type: ignore[method-assign]
    return loader.step(0)[0]


def moved(config: ObjectiveConfig) -> Objective:
    start, policy = tiny_models()
    objective = build(config, start)
    objective.model.load_state_dict(policy.state_dict())
    return objective


def exported(folder: Path) -> tuple[Any, Any, Any]:
    """Policy, reference and tokenizer of transformers."""
    transformers = pytest.importorskip("transformers")
    for name, model in zip(("start", "policy"), tiny_models(), strict=True):
        hf.export(model, TOKENIZER, folder / name, torch.float32)
    load = transformers.AutoModelForCausalLM.from_pretrained
    words = transformers.AutoTokenizer.from_pretrained(folder / "policy")
    return load(folder / "policy").eval(), load(folder / "start").eval(), words


def arguments(kind: Any, folder: Path, rows: int, **more: Any) -> Any:
    return kind(
        output_dir=str(folder / "out"), beta=0.3, max_length=64, report_to=[], use_cpu=True,
        per_device_train_batch_size=rows, bf16=False, gradient_checkpointing=False, **more,
    )  # fmt: skip


def turns(record: dict) -> dict:
    """With messages in place of texts."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    roles["completion"] = "assistant"
    return {
        key: [{"role": roles[key], "content": value}] if key in roles else value
        for key, value in record.items()
    }


def assert_same(
    objective: Objective,
    ours: Tensor,
    theirs: Any,
    expected: Tensor,
    names: Mapping[str, str] = NO_NAMES,
) -> Difference:
    """The same loss and gradients. names: of parameters that have no counterpart in a language
    model.
    """

    def gradients() -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
        found = dict(theirs.named_parameters())
        for name, parameter in objective.model.named_parameters():
            yield name, parameter.grad, found[names.get(name) or _theirs(name)].grad

    return assert_equal(ours, expected, gradients)


@pytest.mark.parametrize("variant", LOSSES)
def test_losses_with_a_reference(variant: str, tmp_path: Path, parity: Parity) -> None:
    settings, theirs_settings = LOSSES[variant]
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    records = EVEN if "nll" in settings else PAIRS
    config = Preference(**settings, beta=0.3)
    batch = batch_of(records, PairFormat(), tmp_path)
    if config.reference == "precomputed":
        with torch.no_grad():
            extra = build(config, tiny_models()[0]).precompute(batch)
        batch = replace(batch, extra=extra)
    objective = moved(config)
    theirs, reference, words = exported(tmp_path)
    trainer = trl.DPOTrainer(
        model=theirs, ref_model=reference, processing_class=words,
        args=arguments(trl.DPOConfig, tmp_path, 4, **theirs_settings),
        train_dataset=datasets.Dataset.from_list(list(map(turns, records))),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    found = assert_same(
        objective, mean(objective(batch), batch), theirs, trainer.compute_loss(theirs, inputs)
    )
    parity.note("preference", variant, "TRL DPOTrainer", found)


def sides(batch: Batch) -> dict[str, Tensor]:
    """The rows as trl's older trainers take them: whole sequences with labels."""
    found = {}
    assert batch.lengths is not None
    for side, first in (("chosen", 0), ("rejected", 1)):
        ids, labels, masks = [], [], []
        for row in range(first, len(batch.tokens), 2):
            end = int(batch.lengths[row])
            tokens, targets = batch.tokens[row, :end], batch.targets[row, :end]
            ids.append(tokens)
            labels.append(torch.cat([torch.tensor([IGNORED]), targets[:-1]]))
            masks.append(torch.ones(end, dtype=torch.int64))
        for name, rows, value in (
            ("input_ids", ids, 0), ("labels", labels, IGNORED), ("attention_mask", masks, 0),
        ):  # fmt: skip
            found[f"{side}_{name}"] = torch.nn.utils.rnn.pad_sequence(rows, True, value)
    return found


WITHOUT: dict[str, tuple[dict, dict]] = {
    "CPO": ({"loss": "cpo"}, {"loss_type": "sigmoid", "cpo_alpha": 1.0}),
    "CPO, nll=0": ({"loss": "cpo", "nll": 0.0}, {"loss_type": "sigmoid", "cpo_alpha": 0.0}),
    "CPO, smoothing": (
        {"loss": "cpo", "smoothing": 0.1}, {"loss_type": "sigmoid", "label_smoothing": 0.1},
    ),
    "SimPO": ({"loss": "simpo", "gamma": 0.5}, {"loss_type": "simpo", "cpo_alpha": 0.0}),
    "ORPO, odds ratio": ({"loss": "orpo", "nll": 0.0}, {}),
}  # fmt: skip


@pytest.mark.parametrize("variant", WITHOUT)
def test_losses_without_a_reference(variant: str, tmp_path: Path, parity: Parity) -> None:
    """Of ORPO the odds ratio: its likelihood is of the answer here, and of the prompt too there."""
    settings, theirs_settings = WITHOUT[variant]
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    objective = moved(Preference(**settings, beta=0.3))
    batch = batch_of(EVEN, PairFormat(), tmp_path)
    theirs, _, words = exported(tmp_path)
    kinds = (ORPOTrainer, ORPOConfig) if settings["loss"] == "orpo" else (CPOTrainer, CPOConfig)
    if settings["loss"] == "simpo":  # which their code divides by beta
        theirs_settings = {**theirs_settings, "simpo_gamma": 0.5}
    trainer = kinds[0](
        model=theirs, processing_class=words,
        args=arguments(kinds[1], tmp_path, 4, disable_dropout=True, **theirs_settings),
        train_dataset=datasets.Dataset.from_list(list(map(turns, EVEN))),
    )  # fmt: skip
    inputs = sides(batch)
    if settings["loss"] == "orpo":
        chosen, rejected, *_ = trainer.concatenated_forward(theirs, inputs)
        expected = -trainer.odds_ratio_loss(chosen, rejected)[0].mean()
    else:
        expected, _ = trainer.get_batch_loss_metrics(theirs, inputs)
    found = assert_same(objective, mean(objective(batch), batch), theirs, expected)
    parity.note("preference", variant, f"TRL {kinds[0].__name__}", found)


def test_kto(tmp_path: Path, parity: Parity) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    records = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in PAIRS
        for side in ("chosen", "rejected")
    ][:6]
    config = KTO(beta=0.3, desirable=1.5)
    objective = moved(config)
    given = batch_of(records, LabelFormat(), tmp_path)
    said = [TOKENIZER.decode(row.tolist()) for row in given.tokens]
    order = [
        next(i for i, text in enumerate(said) if text.startswith(one["prompt"] + one["completion"]))
        for one in records
    ]
    assert sorted(order) == list(range(6))
    (batch,) = objective.prepare_step([given.select(torch.tensor(order))], 0, Ranks())
    theirs, reference, words = exported(tmp_path)
    trainer = trl.KTOTrainer(
        model=theirs, ref_model=reference, processing_class=words,
        args=arguments(
            trl.KTOConfig, tmp_path, 6, desirable_weight=1.5,
            train_sampling_strategy="sequential",
        ),
        train_dataset=datasets.Dataset.from_list(list(map(turns, records))),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    expected = trainer.compute_loss(theirs, inputs)
    assert trainer._metrics["eval"]["kl"][-1] == pytest.approx(batch.metrics["kl"], abs=1e-4)
    found = assert_same(objective, mean(objective(batch), batch), theirs, expected)
    parity.note("kto", "KTO", "TRL KTOTrainer", found)


def _theirs(name: str) -> str:
    module, _, part = name.rpartition(".")
    return f"{ModuleNames(renamed(NAMES)).theirs(module)}.{part}"
