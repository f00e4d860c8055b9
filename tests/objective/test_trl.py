"""Direct preference optimisation against TRL: loss and gradients on a tiny model."""

import copy
import json
from pathlib import Path

import pytest
import torch
from learning import build, mean

from culm.convert import hf
from culm.convert.hf.families.decoder import NAMES
from culm.convert.rules import ModuleNames, renamed
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.objective.preference import Preference
from culm.tokenizer.train import BPE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_loss_and_gradients(loss: str, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    transformers = pytest.importorskip("transformers")
    from culm.data.format.pair import PairFormat
    from culm.data.loader import Loader
    from culm.data.prepare import prepare
    from culm.data.prepared import Prepared
    from culm.data.source import open_source

    pairs = [
        {
            "prompt": f"Say {word}.",
            "chosen": word * (1 + i % 3),
            "rejected": "no " * (1 + i % 2) + word,
        }
        for i, word in enumerate(("blue", "seven", "grass", "a longer one"))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tokenizer = BPE(vocabulary=262).build(["grass"])
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

    # Ours: the policy has moved away from its reference.
    objective = build(Preference(loss=loss, beta=0.3), copy.deepcopy(start))  # type: ignore[arg-type]
    objective.model.load_state_dict(policy.state_dict())
    source = open_source([str(tmp_path / "pairs.jsonl")])
    prepare(source, PairFormat(), tokenizer, tmp_path / "data", held_out=0)
    batch = Loader(Prepared.open(tmp_path / "data"), 64, 4, 4, seed=0).step(0)[0]
    ours = mean(objective(batch), batch)
    ours.backward()

    # Theirs, from our export.
    for name, model in (("start", start), ("policy", policy)):
        hf.export(model, tokenizer, tmp_path / name, torch.float32)
    theirs, reference = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name)
        for name in ("policy", "start")
    )
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "policy")
    turns = [
        {
            "prompt": [{"role": "user", "content": pair["prompt"]}],
            "chosen": [{"role": "assistant", "content": pair["chosen"]}],
            "rejected": [{"role": "assistant", "content": pair["rejected"]}],
        }
        for pair in pairs
    ]
    arguments = trl.DPOConfig(
        output_dir=str(tmp_path / "out"), beta=0.3, loss_type=loss, max_length=64, report_to=[],
        per_device_train_batch_size=4, use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        model=theirs, ref_model=reference, args=arguments, processing_class=words,
        train_dataset=datasets.Dataset.from_list(turns),
    )  # fmt: skip
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs.eval()
    expected = trainer.compute_loss(theirs, inputs)
    expected.backward()

    assert ours.item() == pytest.approx(expected.item(), abs=1e-5)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in objective.model.named_parameters():
        other = gradients[_theirs(name)]
        torch.testing.assert_close(parameter.grad, other, atol=1e-5, rtol=1e-3, msg=name)


def _theirs(name: str) -> str:
    module, _, part = name.rpartition(".")
    return f"{ModuleNames(renamed(NAMES)).theirs(module)}.{part}"
