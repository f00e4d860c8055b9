"""Multi-token prediction: what each head reads and predicts, and an unchanged trunk."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from learning import build, mean
from parity import Parity
from safetensors.torch import load_file

from culm.adapt.lora import LoRA
from culm.batch import IGNORED, Batch, counts_of
from culm.config import SettingError, parse
from culm.convert import gguf, hf, native
from culm.convert.load import read
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.block import Residual
from culm.model.context import Context
from culm.model.mtp import MTP, shifted
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.optim.muon import Muon, MuonRule
from culm.parallel.checkpointing import checkpoint_blocks
from culm.plan.model import cost_of
from culm.run.settings import RunConfig
from culm.run.start import start_of
from culm.run.train import train
from culm.tokenizer.bytes import Bytes

WORDS = 29


def drafts(model, tokens, context=None):
    """Logits (B, T, V) of each head."""
    return [model.logits(hidden) for hidden in model.mtp_hidden(tokens, context)[1:]]


def built(depth: int = 2, seed: int = 0, **more) -> Transformer:
    mtp = MTP(depth=depth) if depth else None
    settings = {
        "vocabulary": WORDS, "width": 32, "layers": 2, "context": 24, "mtp": mtp,
        "attention": GQA(heads=2, qk_norm="head", value_residual=True),
        "residual": Residual(gains=True),
    }  # fmt: skip
    return TransformerConfig(**{**settings, **more}).build(seed)


def drawn(rows: int = 3, length: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))


def batch(tokens: torch.Tensor, documents: torch.Tensor | None = None) -> Batch:
    """Every token but the first of a document is learned."""
    targets = shifted(tokens, 1, IGNORED, documents)
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    if documents is not None:
        starts = (documents[:, 1:] != documents[:, :-1]).long()
        first = torch.nn.functional.pad(starts * positions[:, 1:], (1, 0)).cummax(1).values
        positions = positions - first
    return Batch(tokens, targets, positions, documents, counts=counts_of(targets))


def test_shifted() -> None:
    tokens, documents = torch.arange(6)[None], torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert shifted(tokens, 2, -1).tolist() == [[2, 3, 4, 5, -1, -1]]
    assert shifted(tokens, 2, -1, documents).tolist() == [[2, -1, -1, 5, -1, -1]]
    assert shifted(tokens, 9, -1, documents).tolist() == [[-1] * 6]


@pytest.mark.slow
def test_every_head_learns_its_own_distance() -> None:
    """t + 1 = f(t): all losses go to nothing, and what is predicted is the token at that place."""
    follows = torch.randperm(WORDS, generator=torch.Generator().manual_seed(3))
    tokens = torch.arange(WORDS)[:, None]
    for _ in range(11):
        tokens = torch.cat((tokens, follows[tokens[:, -1:]]), 1)
    objective = build(NextToken(), built(3, width=48))
    optimizer, data = AdamW(rate=0.01).build(objective), batch(tokens)
    for _ in range(60):
        loss = objective(data)
        mean(loss, data).backward()
        optimizer.step()
        optimizer.zero_grad()
    model = objective.model
    for by, logprobs in enumerate(model.mtp_logprobs(tokens, data.targets)):
        assert float(-logprobs.sum().detach()) / data.counts["targets"] < 0.05, by
        assert int((logprobs != 0).sum()) == WORDS * (11 - by)
    for by, logits in enumerate(drafts(model, tokens), start=1):
        found, wanted = logits.argmax(-1)[:, : 11 - by], tokens[:, 1 + by :]
        assert (found == wanted).float().mean() > 0.95, by


def test_a_head_sees_its_token_and_none_beyond() -> None:
    model, tokens = built(2), drawn()
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % WORDS
    for by, (one, two) in enumerate(
        zip(model.mtp_hidden(tokens), model.mtp_hidden(changed), strict=True)
    ):
        assert torch.equal(one[:, : 12 - by], two[:, : 12 - by])
        assert (one[:, 12 - by] != two[:, 12 - by]).any(-1).all()


@pytest.mark.parametrize("more", [{}, {"attention": MLA(heads=2, rank=8, head_dim=8, rope_dim=4)}])
def test_the_trunk_is_the_same_without_heads(more) -> None:
    model, plain, tokens = built(2, **more), built(0, **more), drawn()
    assert torch.equal(model(tokens), plain(tokens))
    control = built(0, seed=1, **more)
    assert not torch.equal(model(tokens), control(tokens))
    first, *further = model.mtp_hidden(tokens)
    assert torch.equal(first, model.hidden(tokens))
    assert len(further) == 2
    model.drop_mtp()
    assert model.config == plain.config
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model(tokens), plain(tokens))


def test_gradient_flows_into_the_trunk_through_every_head() -> None:
    model, data = built(2), batch(drawn())
    for by in (1, 2):
        model.zero_grad()
        model.mtp_logprobs(data.tokens, data.targets)[by].sum().backward()
        trunk = model.blocks[0].mlp.down.weight.grad
        assert trunk is not None
        assert trunk.abs().max() > 0
        assert (model.mtp[1].projection.weight.grad is None) == (by == 1)


def test_the_loss_is_a_weighted_sum(parity: Parity) -> None:
    model, data = built(2), batch(drawn())
    following, *further = (-p.sum() for p in model.mtp_logprobs(data.tokens, data.targets))
    loss = build(NextToken(), model)(data)
    heads, targets = loss.terms["mtp"].total, data.counts["targets"]
    torch.testing.assert_close(heads, sum(further) / 2)
    torch.testing.assert_close(mean(loss, data) * targets, following + 0.3 * heads)
    one, other = mean(loss, data).item(), ((following + 0.3 * sum(further) / 2) / targets).item()
    parity.equal("next_token", "multi-token prediction", "definition", [one], [other], 1e-5)
    torch.testing.assert_close(following, -model.logprobs(data.tokens, data.targets).sum())


def gradients(objective, batches: list[Batch]) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    for each in batches:
        (mean(objective(each), each) * each.counts["targets"]).backward()
    return {name: p.grad.clone() for name, p in objective.named_parameters()}


@pytest.mark.parametrize("way", ["accumulated", "packed", "recomputed"])
def test_a_step_may_be_cut_and_computed_in_any_way(way) -> None:
    objective, tokens = build(NextToken(), built(2)), drawn(2, 12)
    rows = [batch(tokens[:1, :7]), batch(tokens[1:])]
    if way == "packed":  # 7 tokens and 12 in one row, and a document too short for any further head
        joined = torch.cat((tokens[:1, :7], tokens[1:], tokens[:1, :2]), 1)
        documents = torch.tensor([[0] * 7 + [1] * 12 + [2] * 2])
        rows.append(batch(tokens[:1, :2]))
        whole = [batch(joined, documents)]
    elif way == "accumulated":
        rows, whole = [batch(tokens[:1]), batch(tokens[1:])], [batch(tokens)]
    else:
        whole = rows
    wanted = gradients(objective, rows)
    other = build(NextToken(), built(2))
    if way == "recomputed":
        checkpoint_blocks(other)
    found = gradients(other, whole)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5, rtol=1e-4, msg=name)


def test_masked_targets_teach_no_head() -> None:
    """A prompt is not learned at any distance."""
    model, data = built(2), batch(drawn())
    targets = data.targets.clone()
    targets[:, :10] = IGNORED
    for by, logprobs in enumerate(model.mtp_logprobs(data.tokens, targets)):
        assert (logprobs[:, : 10 - by] == 0).all()
        assert int((logprobs != 0).sum()) == 3 * 9


def test_optimizers_hold_the_heads() -> None:
    model = built(1)
    muon = Muon().build(model)
    inside = {
        id(p) for g in muon.param_groups if isinstance(g["rule"], MuonRule) for p in g["params"]
    }
    assert id(model.mtp[0].projection.weight) in inside
    held = [p for group in AdamW().build(model).param_groups for p in group["params"]]
    assert len(held) == len(list(model.parameters()))


def test_adapters_learn_through_frozen_heads() -> None:
    model, data = built(1), batch(drawn())
    LoRA(rank=2).apply(model, 0)
    mean(build(NextToken(), model)(data), data).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_decoding_costs_what_it_cost_without() -> None:
    one, two = cost_of(built(2).config), cost_of(built(0).config)
    assert (one.active, one.forward_flops, one.cache_bytes) == (
        two.active, two.forward_flops, two.cache_bytes,
    )  # fmt: skip
    assert one.parameters > two.parameters
    assert one.training_flops > two.training_flops


def test_heads_are_saved_in_a_culm_folder_and_omitted_in_other_formats(
    tmp_path: Path, capsys
) -> None:
    words = Bytes(specials=True).build()
    attention = GQA(heads=2, qk_norm="head")
    model = built(1, vocabulary=words.vocabulary, attention=attention, residual=Residual())
    tokens = drawn()
    native.save(model, words, tmp_path / "model")
    kept, _ = start_of(str(tmp_path / "model"))
    for one, two in zip(drafts(model, tokens), drafts(kept, tokens), strict=True):
        assert torch.equal(one, two)
    assert "left out" not in capsys.readouterr().err
    used, _ = read(tmp_path / "model", "cpu", torch.float32, mtp=False)
    assert used.config.mtp is None
    hf.export(model, words, tmp_path / "hf")
    assert "are omitted" in capsys.readouterr().err
    assert not any("mtp" in n for n in load_file(tmp_path / "hf" / "model.safetensors"))
    gguf.export(model, words, tmp_path / "out.gguf", "f32")
    assert "are omitted" in capsys.readouterr().err
    for path in ("hf", "out.gguf"):
        again, _ = read(tmp_path / path, "cpu", torch.float32)
        torch.testing.assert_close(again(tokens), model(tokens), atol=1e-5, rtol=1e-5)


def test_a_run_resumes_with_its_heads(stage: Callable[..., dict], tmp_path: Path) -> None:
    def run(folder: str, steps: int) -> dict[str, torch.Tensor]:
        settings = copy.deepcopy(stage("pretrain", steps=steps, checkpoint={"every_steps": 2}))
        settings["model"]["mtp"] = {"depth": 2}
        settings["train"]["schedule"] = "constant"
        train(parse(RunConfig, {**settings, "folder": str(tmp_path / folder)}))
        return load_file(tmp_path / folder / "model" / "model.safetensors")

    whole = run("one", 4)
    run("two", 2)
    resumed = run("two", 4)
    assert "mtp.1.block.mlp.down.weight" in whole
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
    assert '"mtp"' in (tmp_path / "two" / "metrics.jsonl").read_text()


def test_an_objective_that_does_not_train_them_drops_them(
    stage: Callable[..., dict], tmp_path: Path, capsys
) -> None:
    settings = copy.deepcopy(stage("pretrain", steps=1))
    settings["model"]["mtp"] = {}
    first = {**settings, "folder": str(tmp_path / "one")}
    train(parse(RunConfig, first))
    then = stage("dpo", steps=1) | {"start": first["folder"], "folder": str(tmp_path / "two")}
    capsys.readouterr()
    train(parse(RunConfig, then))
    assert "Multi-token prediction: its heads (1) are omitted" in capsys.readouterr().err
    weights = load_file(tmp_path / "two" / "model" / "model.safetensors")
    assert not any(name.startswith("mtp") for name in weights)
    settings["train"]["objective"] = {"kind": "grpo"}
    settings["data"] = stage("grpo")["data"]
    with pytest.raises(SettingError, match=r"model\.mtp: grpo does not train it"):
        parse(RunConfig, settings)


def test_what_cannot_be() -> None:
    values = {"vocabulary": 9, "width": 16, "layers": 1, "attention": {"kind": "gqa", "heads": 2}}
    with pytest.raises(SettingError, match=r"model\.mtp\.depth: "):
        parse(TransformerConfig, {**values, "mtp": {"depth": 0}}, "model")
    with pytest.raises(SettingError, match=r"model\.mtp\.depth: "):
        parse(TransformerConfig, {**values, "mtp": {"depth": 1_000_000}}, "model")
    with pytest.raises(SettingError, match=r"model\.mtp\.depth: 4 heads look beyond a context"):
        parse(TransformerConfig, {**values, "context": 4, "mtp": {"depth": 4}}, "model")
    with pytest.raises(SettingError, match=r"model\.mtp\.weight: "):
        parse(TransformerConfig, {**values, "mtp": {"weight": -1}}, "model")
    context = Context.plain(drawn())
    assert drafts(built(0), drawn(), context) == []
