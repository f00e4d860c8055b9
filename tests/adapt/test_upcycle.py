"""Experts from a dense model: the outputs are the same at first."""

from pathlib import Path

import pytest
import torch
import yaml

from culm.adapt.quantize.int8 import Int8
from culm.adapt.upcycle import Upcycle
from culm.config import SettingError, parse
from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.mlp.gated import SwiGLU
from culm.model.mlp.moe import MixtureOfExperts, MoE
from culm.model.mlp.plain import Plain
from culm.model.mtp import MTP
from culm.model.transformer import TransformerConfig
from culm.run.settings import RunConfig, read_run
from culm.run.train import train
from culm.verbs.plan import show_plan

TOKENS = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(0))
EXPERTS = MoE(experts=4, top_k=2, hidden=48, balance_loss=0.01)


def build(mlp=SwiGLU(hidden=48), mtp=None):
    return TransformerConfig(
        vocabulary=60, width=32, layers=4, context=16, attention=GQA(heads=4), mlp=mlp, mtp=mtp
    ).build(seed=0)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_copies_say_what_the_dense_model_says(scores):
    dense, model = build(), build()
    mixture = EXPERTS.model_copy(update={"scores": scores})
    assert Upcycle(mlp=(None, mixture)).apply(model, seed=1) == 2
    assert [isinstance(b.mlp, MixtureOfExperts) for b in model.blocks] == [False, True] * 2
    torch.testing.assert_close(model(TOKENS), dense(TOKENS), atol=1e-6, rtol=1e-5)
    assert len(model.config.mlp) == 2
    again = model.config.build(seed=1)
    assert torch.equal(again.blocks[3].mlp.router.weight, model.blocks[3].mlp.router.weight)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_heads_of_further_tokens_are_as_the_last_layer():
    dense, model = build(mtp=MTP(depth=2)), build(mtp=MTP(depth=2))
    assert Upcycle(mlp=(None, EXPERTS)).apply(model, seed=1) == 2 + 2
    for one, two in zip(dense.mtp_hidden(TOKENS), model.mtp_hidden(TOKENS), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
    again = model.config.build(seed=2)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert Upcycle(mlp=(EXPERTS, None)).apply(build(mtp=MTP(depth=2)), seed=1) == 2


def test_noise_makes_experts_differ():
    dense, model = build(), build()
    Upcycle(mlp=(EXPERTS,), noise=0.1).apply(model, seed=0)
    weight = model.blocks[0].mlp.experts.up.weight
    moved = weight - dense.blocks[0].mlp.up.weight
    assert moved.std().item() == pytest.approx(
        0.1 * dense.blocks[0].mlp.up.weight.std().item(), rel=0.05
    )
    assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": 32}, r"upcycle\.mlp\.hidden: 32 would change the output of blocks.0; use 48"),
        ({"shared": 1}, r"upcycle\.mlp\.shared: 1 .* use 0"),
        ({"normalize": False}, r"upcycle\.mlp\.normalize: False .* use True"),
        ({"activation": "gelu"}, r"upcycle\.mlp\.activation: gelu .* use silu"),
    ],
)
def test_what_would_not_add_up_is_refused(changed, message):
    model = build()
    with pytest.raises(SettingError, match=message):
        Upcycle(mlp=(EXPERTS.model_copy(update=changed),)).apply(model, seed=0)
    assert isinstance(model.config.mlp[0], SwiGLU)


def test_only_dense_layers_have_something_to_copy():
    with pytest.raises(SettingError, match=r"blocks.0 has no gated dense feed-forward"):
        Upcycle(mlp=(EXPERTS,)).apply(build(Plain(hidden=48)), seed=0)
    rounded = build()
    Int8().apply(rounded)
    with pytest.raises(SettingError, match=r"blocks\.0 is quantised"):
        Upcycle(mlp=(EXPERTS,)).apply(rounded, seed=0)
    with pytest.raises(SettingError, match="null in all 4 layers"):
        Upcycle(mlp=(None,)).apply(build(), seed=0)


@pytest.mark.slow
def test_a_run_starts_with_experts_of_a_dense_model(run_file, capsys):
    file = run_file("sft", steps=2)
    settings = yaml.safe_load(file.read_text())
    start = native.load(f"{settings['start']}/model")[0]
    hidden = start.blocks[0].mlp.gate.out_features
    settings["upcycle"] = {"mlp": [{"kind": "moe", "experts": 4, "hidden": hidden}, None]}
    file.write_text(yaml.safe_dump(settings))
    config, origins = read_run(str(file))
    show_plan(config, origins)
    shown = capsys.readouterr().out
    assert "for each token" in shown
    assert "upcycle.mlp[1]" in shown
    train(config)
    model, _ = native.load(f"{config.folder}/model")
    assert [part.kind for part in model.config.mlps] == ["moe", "swiglu"]
    del settings["start"]
    settings["model"] = {
        "vocabulary": 262,
        "width": 8,
        "layers": 1,
        "attention": {"kind": "gqa", "heads": 1},
    }
    with pytest.raises(SettingError, match="upcycle: there is no dense model to copy from"):
        parse(RunConfig, settings)


def test_an_adapter_that_peft_has_no_names_for_is_in_the_model(run_file, capsys):
    file = run_file("sft", adapter=True, steps=2)
    settings = yaml.safe_load(file.read_text())
    hidden = native.load(f"{settings['start']}/model")[0].blocks[0].mlp.gate.out_features
    mixture = {"kind": "moe", "experts": 4, "hidden": hidden, "scores": "sigmoid"}
    settings["upcycle"] = {"mlp": mixture}
    file.write_text(yaml.safe_dump(settings))
    config, _ = read_run(str(file))
    assert train(config).finished
    assert "merged but not saved separately" in capsys.readouterr().err
    assert not (Path(config.folder) / "adapter").exists()
    assert native.load(f"{config.folder}/model")[0].config.mlps[0].kind == "moe"
