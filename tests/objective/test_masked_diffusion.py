"""Masked diffusion: the bound, what is masked, how it learns, and generation from both sides."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

from culm.adapt.masked import with_mask
from culm.batch import IGNORED, Batch, counts_of
from culm.config import SettingError
from culm.convert.export import export
from culm.convert.load import read
from culm.engine.denoising import Denoiser
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.eval.inspection import logit_lens
from culm.files import read_json
from culm.model.attention.deltanet import DeltaNet
from culm.model.attention.gqa import GQA
from culm.model.attention.mla import MLA
from culm.model.context import Context
from culm.model.transformer import Transformer
from culm.objective.masked_diffusion import (
    MaskedDiffusion,
    MaskedDiffusionObjective,
    bound,
    masked_logprobs,
    within_rows,
)
from culm.parallel.check import check_layout
from culm.parallel.ranks import Ranks
from culm.parallel.settings import ParallelConfig
from culm.plan.needs import Step
from culm.plan.utilisation import flops_per_token, on_meta
from culm.run.settings import read_run
from culm.run.train import train
from culm.text.load import load
from culm.verbs.quantize import show_quantized

V = 13
KINDS = {
    "plain": GQA(heads=2), "window": GQA(heads=2, window=3), 
    "alibi": GQA(heads=2, rope=None, alibi=True),
    "latents": MLA(heads=2, rank=8, head_dim=8, rope_dim=4, value_dim=8),
    "sinks": GQA(heads=2, window=4, sink_tokens=1, sink_logits=True, softcap=20.0),
}  # fmt: skip


def masked(kind: str = "plain", context: int = 24, scale: float = 8) -> Transformer:
    model = tiny_model(scale, attention=KINDS[kind], vocabulary=V, context=context)
    with_mask(model)
    return model.eval()


def rows(count: int, length: int, packed: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, V, (count, length), generator=generator)
    targets = torch.cat((tokens[:, 1:], torch.full((count, 1), 5)), 1)
    positions, documents = torch.arange(length).expand(count, -1), None
    if packed:
        documents = (positions >= 5).int()
        positions = torch.where(positions >= 5, positions - 5, positions)
        targets[:, 4] = IGNORED
    return Batch(tokens, targets, positions, documents, counts=counts_of(targets))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_token_sees_both_sides(kind: str) -> None:
    model = masked(kind)
    tokens = rows(1, 8).tokens
    for place in range(8):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        moved = (model(tokens) - model(changed)).abs().amax(-1)[0] > 1e-6
        near = moved[max(0, place - 2) : place + 3] if kind in ("window", "sinks") else moved
        assert near.all()


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_packed_documents_do_not_see_each_other(kind: str) -> None:
    model, batch = masked(kind), rows(2, 12, packed=True)
    packed = model(batch.tokens, Context(batch.positions, batch.documents))
    apart = torch.cat((model(batch.tokens[:, :5]), model(batch.tokens[:, 5:])), 1)
    torch.testing.assert_close(packed, apart, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "alibi", "window"])
@pytest.mark.parametrize("backend", ["sdpa", pytest.param("flex", marks=pytest.mark.slow)])
@torch.inference_mode()
def test_backends_agree(kind: str, backend: str) -> None:
    model, batch = masked(kind), rows(2, 12, packed=True)
    for documents in (None, batch.documents):
        model.set_backend("blocks")
        expected = model(batch.tokens, Context(batch.positions, documents))
        model.set_backend(backend)
        found = model(batch.tokens, Context(batch.positions, documents))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_only_learned_tokens_are_masked_and_each_is_divided_by_its_level() -> None:
    model, batch = masked(), within_rows(rows(2, 8))
    batch.targets[0, :4] = IGNORED
    levels, chance = torch.tensor([0.5, 0.25]), torch.tensor([[0.4], [0.4]]).expand(2, 8).clone()
    chance[1, 6] = 0.1
    context = Context(batch.positions)
    found = masked_logprobs(model, batch, context, levels, chance)
    assert found[0].nonzero()[:, 0].tolist() == [4, 5, 6]  # the tokens after these places
    assert found[1].nonzero()[:, 0].tolist() == [5]
    tokens = batch.tokens.clone()
    tokens[0, 5:], tokens[1, 6] = model.config.mask_id, model.config.mask_id
    logits = model(tokens)[..., : model.config.mask_id].log_softmax(-1)
    expected = logits[0, 5, batch.tokens[0, 5]] / 0.5
    torch.testing.assert_close(found[0, 4], expected)
    torch.testing.assert_close(found[1, 5], logits[1, 6, batch.tokens[1, 6]] / 0.25)


def test_the_bound_is_exact_for_a_model_that_knows_frequencies_alone() -> None:
    """Then every level and mask gives the same mean, -log p of each token."""
    model, batch = masked(), within_rows(rows(64, 20))
    with torch.no_grad():
        for block in model.blocks:  # states are those of the mask, whatever the other tokens are
            block.attention.out.weight.zero_()
            block.mlp.down.weight.zero_()
        frequencies = model(torch.tensor([[model.config.mask_id]]))[0, 0, :V].log_softmax(-1)
    learned = batch.targets != IGNORED
    expected = frequencies[batch.targets.clamp_min(0)][learned].sum()
    found = bound(model, batch, 16, seed=1).sum()
    assert float(found) == pytest.approx(float(expected), rel=0.03)
    loss = MaskedDiffusionObjective(model, 0)
    means = []
    for step in range(60):
        (again,) = loss.prepare_step([rows(64, 20)], step, Ranks())
        assert again.counts["targets"] == 64 * 19
        with torch.inference_mode():
            means.append(float(loss(again).mean(again.counts)))
    assert sum(means) / 60 == pytest.approx(-float(expected) / (64 * 19), rel=0.03)


@pytest.mark.parametrize("ranks", [1, 2])
def test_levels_and_masks_depend_on_the_step_and_the_place_of_a_row(ranks: int) -> None:
    """However the rows of a step are divided; levels cover the interval evenly."""
    objective, whole = MaskedDiffusionObjective(masked(), 7), rows(8, 6)

    def prepared(number: int, rank: int, sizes: list[int]) -> list[Batch]:
        own = torch.arange(8).chunk(ranks)[rank].split(sizes)
        parts = [replace(whole, tokens=whole.tokens[p], targets=whole.targets[p]) for p in own]
        return objective.prepare_step(parts, number, Ranks(rank, ranks))

    def joined(number: int, sizes: list[int], name: str) -> torch.Tensor:
        batches = [one for rank in range(ranks) for one in prepared(number, rank, sizes)]
        return torch.cat([one.extra[name] for one in batches])

    sizes = ([8], [3, 5]) if ranks == 1 else ([4], [1, 3])
    (alone,) = objective.prepare_step([whole], 2, Ranks())
    for name in ("level", "chance"):
        for given in sizes:
            assert torch.equal(joined(2, given, name), alone.extra[name])
        assert not torch.equal(joined(3, sizes[0], name), alone.extra[name])
    for number in range(20):
        levels = joined(number, sizes[0], "level")
        assert [int(level * 8) for level in levels.tolist()] == list(range(8))
        assert levels.min() >= 1e-3


# -- learning ------------------------------------------------------------------------------------


def fitted(equal: bool) -> Transformer:
    """On rows `0 a a`, where each side tells the other; the control has two random tokens."""
    torch.manual_seed(0)
    model = masked(context=8, scale=1).train()
    objective = MaskedDiffusionObjective(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(200):
        a, b = torch.randint(1, 12, (2, 32))
        tokens = torch.stack((torch.zeros_like(a), a, a if equal else b), 1)
        targets = torch.cat((tokens[:, 1:], torch.full((32, 1), IGNORED)), 1)
        batch = Batch(tokens, targets, torch.arange(3).expand(32, -1), counts=counts_of(targets))
        (batch,) = objective.prepare_step([batch], step, Ranks())
        objective(batch).mean(batch.counts).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_it_learns_from_tokens_on_both_sides_and_generates_what_it_learned() -> None:
    model, control = fitted(True), fitted(False)
    mask = model.config.mask_id
    given = torch.tensor([[0, mask, 7], [0, 5, mask]])
    with torch.inference_mode():
        assert model(given)[[0, 1], [1, 2], :mask].argmax(-1).tolist() == [7, 5]
        assert control(given)[[0, 1], [1, 2], :mask].softmax(-1).amax() < 0.4
    requests = [Request((0,), 2, Sampling(seed=seed)) for seed in range(20)]
    texts = [done.tokens for done in Denoiser(model, 4).generate(requests)]
    assert sum(first == second for first, second in texts) >= 16
    assert len(set(texts)) > 6


# -- generation ----------------------------------------------------------------------------------


def wanted() -> list[Request]:
    samplings = (Sampling(temperature=0.0), Sampling(seed=4), Sampling(top_k=3, seed=5))
    prompts = ((1, 2), (3,), (4, 5, 6, 7, 8))
    return [Request(p, 5 + n, s) for n, (p, s) in enumerate(zip(prompts, samplings, strict=True))]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_each_request_gives_alone(kind: str) -> None:
    model = masked(kind)
    together = Denoiser(model, 2).generate(wanted())
    alone = [Denoiser(model, 1).generate([request])[0] for request in wanted()]
    assert [done.tokens for done in together] == [done.tokens for done in alone]
    assert [done.finish for done in together] == ["length"] * 3
    assert all(max(done.tokens) < V for done in together)


def test_greedy_tokens_are_the_most_confident_first() -> None:
    """Step by step, as the docs say it."""
    model, mask = masked(), V
    done = Denoiser(model, 1).generate([Request((1, 2), 4, Sampling(temperature=0.0))])[0]
    tokens = [1, 2, mask, mask, mask, mask]
    with torch.inference_mode():
        while mask in tokens:
            logprobs = model(torch.tensor([tokens]))[0, :, :V].log_softmax(-1)
            places = [place for place, token in enumerate(tokens) if token == mask]
            best = max(places, key=lambda place: float(logprobs[place].max()))
            tokens[best] = int(logprobs[best].argmax())
    assert list(done.tokens) == tokens[2:]


def test_steps_blocks_and_ends() -> None:
    model = masked(context=128)
    for per_step, steps in ((1, 40), (4, 10), (64, 2)):  # blocks of 32 and 8 tokens
        engine, count = Denoiser(model, 1, tokens_per_step=per_step), 0
        engine.add(Request((1,), 40, Sampling(temperature=0.0)))
        while engine.busy:
            events, count = engine.step(), count + 1
        assert (count, events[-1].finish) == (steps, "length")
    (free,) = Denoiser(model, 1).generate([Request((1,), 40, Sampling(seed=1))])
    stop = free.tokens[10]
    request = Request((1,), 40, Sampling(seed=1), stop=frozenset({stop}))
    (ended,) = Denoiser(model, 1).generate([request])
    assert ended.tokens == free.tokens[: free.tokens.index(stop) + 1]
    assert ended.finish == "stop"
    engine = Denoiser(model, 1)
    numbers = [engine.add(request) for request in wanted()]
    engine.step()
    for number in numbers:
        engine.abort(number)
    assert not engine.busy


def test_what_needs_the_next_token_is_refused() -> None:
    model = masked()
    with pytest.raises(SettingError, match="fills in masked tokens"):
        Engine(model)
    with pytest.raises(ValueError, match="logprobs: a model that fills in"):
        Denoiser(model).add(Request((1,), 3, logprobs=2))
    with pytest.raises(SettingError, match="fills in masked tokens"):
        logit_lens(model, [1, 2])
    with pytest.raises(SettingError, match=r"parallel\.context"):
        check_layout(model, ParallelConfig(context=2))
    with pytest.raises(ValueError, match="tokens_per_step: 0"):
        Denoiser(model, tokens_per_step=0)
    with pytest.raises(ValueError, match="deltanet"):
        with_mask(tiny_model(attention=DeltaNet(heads=2), vocabulary=V))


# -- a run ---------------------------------------------------------------------------------------


def settings(folder: Path, *more: str) -> list[str]:
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{n} abcdefgh " * 20}) + "\n" for n in range(40)))
    return [
        f"folder={folder / 'run'}", f"data.path={text}", "tokenizer={kind: bytes, specials: true}",
        "model={vocabulary: 262, width: 32, layers: 1, context: 32}", 
        "model.attention=[{kind: gqa, heads: 2}]",
        "train.steps=6", "train.batch_size=4", "train.checkpoint.every_steps=3", "device=cpu",
        "train.precision=fp32", "eval.measures.held_out.tokens=300", *more,
    ]  # fmt: skip


def test_a_run_trains_measures_saves_and_generates(tmp_path, capsys) -> None:
    config, _ = read_run("diffusion", settings(tmp_path))
    assert train(config).exit_code == 0
    assert 0 < read_json(tmp_path / "run" / "results.json")["bits_per_byte"] < 20
    model, _ = read(tmp_path / "run")
    assert model.config.masked
    assert model.config.vocabulary == 263
    loaded = load(tmp_path / "run", tokens_per_step=4)
    said = loaded.generate("abc", max_tokens=9, seed=1)
    assert said == "".join(loaded.stream("abc", max_tokens=9, seed=1))
    with pytest.raises(SettingError, match="fills in masked tokens"):
        loaded.logits([1, 2])
    for options in ({"cache": "int8"}, {"speculate": "ngram"}, {"draft": tmp_path / "run"}):
        with pytest.raises(SettingError, match=r"(cache|speculate): a model that fills in masked"):
            load(tmp_path / "run", **options)
    show_quantized(str(tmp_path / "run"), str(tmp_path / "small"), "int8", "rtn", (), "cpu")
    assert "decoding" not in capsys.readouterr().out  # token by token, as it cannot
    assert load(tmp_path / "small").generate("abc", max_tokens=9, seed=1)
    export(tmp_path / "run", tmp_path / "folder")
    assert "masked" in capsys.readouterr().err
    again = load(tmp_path / "folder", dtype="float32", tokens_per_step=4)
    assert again.model.config.masked
    with pytest.raises(SettingError, match="masked"):
        export(tmp_path / "run", tmp_path / "model.gguf")


def test_another_objective_refuses_its_model_and_a_plain_one_gets_a_mask(tmp_path) -> None:
    config, _ = read_run("pretrain", settings(tmp_path))
    train(config)
    plain, start = tmp_path / "run", f"start={tmp_path / 'run'}"
    more = [f"folder={tmp_path / 'second'}", "model=null", start]
    own = ("model", "tokenizer", "folder")
    given = [one for one in settings(tmp_path) if not one.startswith(own)]
    config, _ = read_run("diffusion", [*given, *more])
    train(config)
    with pytest.raises(SettingError, match="tokens_per_step: it goes with a model that fills in"):
        load(plain, tokens_per_step=2)
    before, after = read(plain)[0], read(tmp_path / "second")[0]
    assert after.config.vocabulary == before.config.vocabulary + 1
    more = [f"folder={tmp_path / 'third'}", "model=null", f"start={tmp_path / 'second'}"]
    config, _ = read_run("pretrain", [*given, *more])
    with pytest.raises(SettingError, match="masked_diffusion"):
        train(config)


def test_a_run_is_planned_and_its_flops_are_counted() -> None:
    """A plan has no numbers, but the columns that masks are made of."""
    objective = on_meta(MaskedDiffusionObjective(masked(), 0))
    step = Step(context=24, batch_size=2, at_once=2, columns=MaskedDiffusion().columns)
    assert flops_per_token(objective, step) > 0
