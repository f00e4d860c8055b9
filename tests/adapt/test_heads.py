"""Scalar heads: one number per token, saved exactly, and refused where text is expected."""

import io

import pytest
import torch

from culm.adapt.grow import grow
from culm.adapt.heads import with_scalar_head
from culm.adapt.lora import LoRA
from culm.adapt.quantize import AWQ, RTN, Int4, Int8
from culm.adapt.quantize.linear import QuantizedLinear
from culm.cli import main
from culm.config import SettingError, parse
from culm.convert import gguf, native, peft
from culm.convert.export import write_export
from culm.engine.engine import Engine
from culm.engine.scoring import logits_of
from culm.model.linear import Linear
from culm.model.transformer import TransformerConfig
from culm.objective.ppo import PPO
from culm.tokenizer.bytes import Bytes

TOKENS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
LONG = torch.randint(0, 96, (4, 48), generator=torch.Generator().manual_seed(1))


def judge(tiny, seed: int = 5, **settings):
    model = tiny(vocabulary=262, **settings)
    with_scalar_head(model, seed)
    return model


def test_a_score_is_the_head_on_the_last_states(tiny) -> None:
    model = judge(tiny)
    scores = model.scores(TOKENS)
    assert scores.shape == TOKENS.shape
    assert scores.dtype == torch.float32
    expected = (model.hidden(TOKENS) * model.head.weight[0]).sum(-1)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)
    changed = TOKENS.clone()
    changed[:, 8:] = (changed[:, 8:] + 1) % 96
    assert torch.equal(model.scores(changed)[:, :8], scores[:, :8])


def test_the_head_of_a_bf16_model_computes_in_fp32(tiny) -> None:
    model = judge(tiny)
    model.dtype = torch.bfloat16
    hidden = model.hidden(TOKENS)
    assert hidden.dtype == torch.bfloat16
    expected = (hidden.float() * model.head.weight[0]).sum(-1)
    torch.testing.assert_close(model.scores(TOKENS), expected, atol=1e-5, rtol=1e-5)


def test_settings_build_one_too(tiny) -> None:
    model = tiny(head="scalar", tied=False)
    assert model.head.weight.shape == (1, 64)
    assert model.scores(TOKENS).shape == TOKENS.shape
    values = model.config.model_dump(mode="json")
    with pytest.raises(SettingError, match="tied: a scalar head has no row per token"):
        parse(TransformerConfig, {**values, "tied": True})
    with pytest.raises(SettingError, match="mtp: heads that predict tokens need head=vocabulary"):
        parse(TransformerConfig, {**values, "mtp": {"depth": 1}})


def test_weights_depend_on_the_seed_alone(tiny) -> None:
    first, again, other = judge(tiny), judge(tiny, layers=3), judge(tiny, seed=6)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    wide = judge(tiny, width=1024, layers=1)
    assert float(wide.head.weight.detach().std()) == pytest.approx(1025**-0.5, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_head_of_a_model_changes(tiny, tied: bool) -> None:
    model = tiny(tied=tied, mtp={"depth": 1})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with_scalar_head(model, 0)
    assert (model.config.head, model.config.tied, model.config.mtp) == ("scalar", False, None)
    assert len(model.mtp) == 0
    for name, parameter in model.named_parameters():
        assert name == "head.weight" or torch.equal(parameter, before[name])
    assert model.embed.weight is not model.head.weight


def test_head_and_trunk_have_gradients(tiny) -> None:
    model = judge(tiny)
    model.scores(TOKENS).square().sum().backward()
    assert model.head.weight.grad.abs().min() > 0
    assert model.blocks[0].attention.q.weight.grad.abs().max() > 0


def test_it_is_trained_next_to_an_adapter(tiny) -> None:
    model = tiny()
    LoRA(rank=2, targets=("blocks.*.attention.{q,v}",)).apply(model, seed=0)
    with_scalar_head(model, 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"a", "b", "weight"}
    assert "head.weight" in trained
    again = judge(tiny)
    assert LoRA(rank=2, targets=("head", "blocks.0.mlp.up"), train_also=()).apply(again, 0) == 2
    assert again.scores(TOKENS).shape == TOKENS.shape


@pytest.mark.parametrize("quantizer", [None, Int8(), Int4()])
def test_a_folder_keeps_it_exactly(tiny, quantizer, tmp_path) -> None:
    model = judge(tiny)
    if quantizer is not None:
        quantizer.apply(model)
    native.save(model, Bytes().build(), tmp_path / "judge")
    again, _ = native.load(tmp_path / "judge")
    assert again.config == model.config
    assert torch.equal(again.head.weight, model.head.weight)
    assert torch.equal(again.scores(TOKENS), model.scores(TOKENS))


def test_quantisers_leave_it_as_it_is(tiny) -> None:
    for method, quantizer in ((RTN(), Int8()), (RTN(), Int4(targets=("*",))), (AWQ(), Int4())):
        model = judge(tiny)
        method.apply(model, [quantizer], LONG if method.calibrated else None)
        assert type(model.head) is Linear
        assert isinstance(model.blocks[1].mlp.down, QuantizedLinear)
    with pytest.raises(ValueError, match="a scalar head is never quantised"):
        Int8(targets=("head",)).apply(judge(tiny))


def test_a_larger_vocabulary_leaves_it_as_it_is(tiny) -> None:
    model = judge(tiny)
    before = model.scores(TOKENS)
    grow(model, 262, 266)
    assert model.head.weight.shape == (1, 64)
    assert torch.equal(model.scores(TOKENS), before)


def test_other_formats_refuse_it(tiny, tmp_path) -> None:
    tokenizer = Bytes(specials=True).build()
    model = judge(tiny, context=64)
    for write in (
        lambda: gguf.export(model, tokenizer, tmp_path / "judge.gguf"),
        lambda: write_export(model, tokenizer, tmp_path / "judge.gguf", ""),
    ):
        with pytest.raises(SettingError, match=r"model\.head: .* files hold language models"):
            write()
    settings = LoRA(rank=2)
    settings.apply(model, seed=0)
    with pytest.raises(SettingError, match=r"model\.head: adapter files are for language models"):
        peft.save(model, settings, tmp_path / "adapter", None)
    assert list(tmp_path.iterdir()) == []


def test_the_verb_quantises_it_too_and_ppo_refuses_it_as_a_critic(
    tiny, tmp_path, capsys, monkeypatch
) -> None:
    native.save(judge(tiny), Bytes(specials=True).build(), tmp_path / "judge")
    out = str(tmp_path / "small")
    monkeypatch.setattr(
        "sys.argv", ["culm", "quantize", str(tmp_path / "judge"), out, "--to", "int8"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "bits" in said
    assert "decoding" not in said
    with pytest.raises(SettingError, match=r"train\.objective\.critic: .* are quantised"):
        PPO(critic=out).build(tiny(vocabulary=262), lambda setting, path: native.load(path)[0], 0)


def test_text_is_neither_generated_nor_scored(tiny, tmp_path, capsys, monkeypatch) -> None:
    model = judge(tiny)
    with pytest.raises(SettingError, match="model: it has a scalar head"):
        Engine(model)
    with pytest.raises(SettingError, match="model: it has a scalar head"):
        logits_of(model, [1, 2, 3])
    native.save(model, Bytes(specials=True).build(), tmp_path / "judge")
    for verb, *rest in (["generate", "Once"], ["chat"]):
        monkeypatch.setattr("sys.argv", ["culm", verb, str(tmp_path / "judge"), *rest])
        monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 1
        assert "it has a scalar head" in capsys.readouterr().err
