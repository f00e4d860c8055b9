"""What holds for every model of patches."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import build, fit
from patch_models import CONTEXT, TEXT, patch_config, patch_model, tokens_of

from culm.batch import Batch, counts_of
from culm.bytelatent.entropy import Entropy
from culm.config import SettingError, parse
from culm.convert.models import Model
from culm.model.context import Context
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken
from culm.parallel.check import check_divisible
from culm.parallel.settings import ParallelConfig
from culm.run.settings import RunConfig

KINDS = ("megabyte", "spacebyte", "blt", "hnet")
ODD = (b"a", b"\x00", b"nospaces" * 6, "東京 мир, a b".encode(), b" \n \n", b"1,2;3" * 9)


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return patch_model(request.param)


@given(st.integers(0, len(TEXT) - 1), st.integers(0, 255))
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_no_logits_and_no_end_depend_on_a_later_byte(model, place, byte):
    tokens = tokens_of(TEXT)
    changed = tokens.clone()
    changed[0, place] = byte
    assert torch.equal(model(tokens)[:, :place], model(changed)[:, :place])
    assert torch.equal(model.ends(tokens)[:, :place], model.ends(changed)[:, :place])


@torch.no_grad()
def test_the_ends_of_a_prefix_are_those_of_the_text(model):
    full = model.ends(tokens_of(TEXT))
    for length in (1, 2, 5, 30):
        assert torch.equal(model.ends(tokens_of(TEXT[:length])), full[:, :length])
    assert 2 < int(full.sum()) < len(TEXT)


@torch.inference_mode()
def test_parts_over_a_cache_equal_one_forward(model):
    rows = [TEXT, TEXT[13:], b"x", "東京 мир ".encode() * 3]
    full = [model(tokens_of(row))[0] for row in rows]
    cache = model.cache(6, CONTEXT)
    read, width = [0] * 4, 19
    found = [[] for _ in rows]
    while max(map(len, rows)) > read[0]:
        parts = [row[at : at + width] for row, at in zip(rows, read, strict=True)]
        padded = torch.tensor([[*part, *[0] * (width - len(part))] for part in parts])
        starts = torch.tensor(read)
        ends = starts + torch.tensor([len(part) for part in parts])
        positions = starts[:, None] + torch.arange(width)
        view = cache.view(int(positions.max()) + 1, 1, ends)
        logits = model(padded, Context(positions, cache=view))
        for row, part in enumerate(parts):
            found[row].append(logits[row, : len(part)])
            read[row] += len(part)
        width = 1 if read[0] > 50 else 19
        if width == 1:
            break
    for row, one in enumerate(full):
        torch.testing.assert_close(torch.cat(found[row]), one[: read[row]], atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_byte_by_byte_equals_one_forward_with_rows_of_other_lengths(model):
    rows = [TEXT[:40], TEXT[20:33], b"q"]
    more = list(TEXT[40:64])
    cache, longest = model.cache(5, CONTEXT), 40
    padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    ends = torch.tensor([len(row) for row in rows])
    model(padded, Context(torch.arange(longest).expand(3, -1), cache=cache.view(longest, 1, ends)))
    for step, byte in enumerate(more):
        at = ends[:, None] + step
        view = cache.view(CONTEXT, 1)
        cached = model(torch.full((3, 1), byte), Context(at, cache=view))[:, 0]
        for row, text in enumerate(rows):
            full = model(tokens_of(text + bytes(more[: step + 1])))[0, -1]
            torch.testing.assert_close(cached[row], full, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_packed_documents_equal_separate_ones(model):
    parts = [TEXT[:30], b"z", TEXT[11:44]]
    tokens = tokens_of(b"".join(parts))
    documents = torch.cat([torch.full((len(p),), n) for n, p in enumerate(parts)])[None].int()
    positions = torch.cat([torch.arange(len(part)) for part in parts])[None]
    packed = model(tokens, Context(positions, documents))
    alone = torch.cat([model(tokens_of(part)) for part in parts], 1)
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_changes_nothing(model):
    tokens = torch.tensor([[*TEXT[:20], *[32] * 12]])
    context = replace(Context.plain(tokens), padding=torch.arange(32)[None] >= 20)
    padded = model(tokens, context)[:, :20]
    torch.testing.assert_close(padded, model(tokens_of(TEXT[:20])), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("text", ODD)
@torch.no_grad()
def test_odd_texts_have_finite_logits(model, text):
    logits = model(tokens_of(text))
    assert logits.shape == (1, len(text), 262)
    assert logits.isfinite().all()
    assert model.ends(tokens_of(text))[0, 0]


def batch() -> Batch:
    tokens = torch.stack([tokens_of(TEXT)[0, :48], tokens_of(TEXT)[0, 10:58]])
    targets = torch.cat((tokens[:, 1:], tokens[:, :1]), 1)
    positions = torch.arange(48).expand(2, -1)
    return Batch(tokens, targets, positions, counts=counts_of(targets))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_reports_its_patches(kind):
    objective = build(NextToken(), patch_config(kind).build(1).train())
    learned = [p for p in objective.parameters() if p.requires_grad]
    before = {n: p.clone() for n, p in objective.named_parameters() if p.requires_grad}
    steps = fit(objective, [batch()], 12, torch.optim.Adam(learned, lr=2e-2))
    assert steps[-1].metrics["nll"] < steps[0].metrics["nll"] - 1
    assert 0 < steps[0].metrics["patches_per_byte"] <= 1
    unmoved = [n for n, p in objective.named_parameters() if n in before and p.equal(before[n])]
    assert unmoved == []


@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_rows_give_the_gradients_of_one_batch(kind):
    whole, parts = (build(NextToken(), patch_model(kind).train()) for _ in range(2))
    both = batch()
    singles = [
        replace(both, tokens=both.tokens[n : n + 1], targets=both.targets[n : n + 1],
                positions=both.positions[n : n + 1],
                counts=counts_of(both.targets[n : n + 1]))
        for n in range(2)
    ]  # fmt: skip
    fit(whole, [both])
    fit(parts, singles)
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3, msg=name)


def test_what_patches_cannot_do_is_refused():
    with pytest.raises(SettingError, match="cache: int8 rounds groups of consecutive tokens"):
        patch_model("spacebyte").cache(1, 32, "int8")
    with pytest.raises(ValueError, match="mtp: heads that skip bytes"):
        patch_config("megabyte", mtp={"depth": 1})
    with pytest.raises(ValueError, match="vocabulary: 100 is less than the 256 bytes"):
        patch_config("megabyte", vocabulary=100)
    with pytest.raises(ValueError, match="bytes_per_patch: patches of 20 bytes"):
        Entropy(bytes_per_patch=20)
    with pytest.raises(ValueError, match="patch: 5 does not divide"):
        patch_config("megabyte", patch=5)
    with pytest.raises(ValueError, match="kind: patches are ragged over a cache, which deltanet"):
        patch_config("hnet", attention={"kind": "deltanet", "heads": 2})
    with pytest.raises(ValueError, match="slots: 5 does not divide"):
        patch_config("blt", slots=5)


def test_settings_round_trip_through_the_union():
    for kind in KINDS:
        config = patch_config(kind)
        assert parse(Model, config.model_dump(mode="json")) == config
    gqa = {"kind": "gqa", "heads": 1}
    plain = {"vocabulary": 9, "width": 8, "layers": 1, "attention": gqa}
    run = parse(RunConfig, {"model": plain, "data": {"path": "stdlib"}, "train": {"steps": 1}})
    assert type(run.model) is TransformerConfig


def test_only_copies_on_several_ranks():
    objective = build(NextToken(), patch_config("hnet").build())
    check_divisible(objective, ParallelConfig(data="ddp"))
    for divided in ({"data": "fsdp"}, {"tensor": 2}, {"pipeline": 2}):
        with pytest.raises(SettingError, match="a hnet model is not divided over ranks"):
            check_divisible(objective, ParallelConfig(**divided))
