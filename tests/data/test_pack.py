"""Packing: golden numbers, nothing lost, and a packed row is its documents one by one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from culm.batch import IGNORED, counts_of
from culm.config import parse
from culm.data.pack import PackedRows, best_fit, cut, fit, singles, wrapped
from culm.data.tensors import to_batch
from culm.model.context import Context
from culm.model.transformer import TransformerConfig

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=20)
few = settings(max_examples=80, deadline=None)


def offsets_of(sizes):
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def sizes_of(rows):
    return [[end - start for start, end in rows[row]] for row in range(len(rows))]


def test_best_fit_golden():
    """The example in TRL's documentation: lengths 5, 2, 3, 1 into rows of 4."""
    offsets = offsets_of([5, 2, 3, 1])
    cut = best_fit(offsets, 4)
    assert sizes_of(cut) == [[4], [3, 1], [2]]
    assert (cut.truncated, cut.lost) == (1, 1)
    assert cut.efficiency(4) == pytest.approx(10 / 12)
    split = best_fit(offsets, 4, overflow="split")
    assert sizes_of(split) == [[4], [3, 1], [2, 1]]
    assert (split.truncated, split.lost) == (0, 0)


@given(lengths)
@few
def test_best_fit_is_what_looking_at_every_row_gives(sizes):
    expected: list[list[int]] = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row in expected if sum(row) + size <= 12]
        if fitting:
            max(fitting, key=sum).append(size)
        else:
            expected.append([size])
    packed = fit(np.array(sizes), 12)
    assert sorted(i for row in packed for i in row) == list(range(len(sizes)))
    assert sorted(sum(sizes[i] for i in row) for row in packed) == sorted(map(sum, expected))


@given(lengths, st.integers(2, 9))
@few
def test_wrapped_rows_predict_each_token_once_and_only_from_its_document(sizes, context):
    offsets = offsets_of(sizes)
    document = np.repeat(np.arange(len(sizes)), sizes)
    rows = wrapped(offsets, context)
    predicted = []
    for row in range(len(rows)):
        assert sum(end - start for start, end in rows[row]) <= context
        for start, end in rows[row]:
            assert len(set(document[start:end])) == 1
            predicted += range(start + 1, end)
    assert sorted(predicted) == sorted(set(range(offsets[-1])) - set(offsets.tolist()))


@given(lengths, st.integers(2, 9))
@few
def test_best_fit_and_singles_keep_documents_separate(sizes, context):
    offsets = offsets_of(sizes)
    for rows in (best_fit(offsets, context), singles(offsets, context)):
        segments = sorted(s for row in range(len(rows)) for s in rows[row])
        assert segments == [(s, min(e, s + context)) for s, e in pairwise(offsets)]
        assert rows.truncated == sum(size > context for size in sizes)
        assert rows.lost == sum(max(0, size - context) for size in sizes)


@given(lengths, st.integers(2, 9))
@few
def test_what_is_cut_is_counted_as_by_hand(sizes, context):
    """A document is whole if one segment has all of it; a token without its predecessor in the row
    is no target, and one in a later part has lost the beginning.
    """
    offsets = offsets_of(sizes)
    total = sum(sizes)
    for rows, overlap in (
        (wrapped(offsets, context), 1),
        (best_fit(offsets, context), 0),
        (best_fit(offsets, context, "split"), 0),
        (singles(offsets, context), 0),
    ):
        segments = [s for row in range(len(rows)) for s in rows[row]]
        whole = sum((s, e) in segments for s, e in pairwise(offsets.tolist()))
        later = [(s, e) for s, e in segments if s not in offsets.tolist()]
        read = {token for s, e in segments for token in range(s, e)}
        found = rows.cuts(offsets)
        assert found.documents == pytest.approx(1 - whole / len(sizes))
        assert found.headless == pytest.approx(sum(e - s - 1 for s, e in later) / total)
        assert found.lost == pytest.approx(1 - len(read) / total)
        assert overlap or len(read) == sum(e - s for s, e in segments)


def test_best_fit_cuts_what_is_longer_than_a_row_and_nothing_else():
    """The promise of arXiv 2404.10830, in nearly as few rows as without a gap."""
    sizes = np.random.default_rng(0).geometric(1 / 300, 20_000)
    offsets = offsets_of(sizes)
    ends, fitted = wrapped(offsets, 512), best_fit(offsets, 512, "split")
    assert fitted.cuts(offsets).documents == pytest.approx((sizes > 512).mean())
    assert ends.cuts(offsets).documents > 2 * fitted.cuts(offsets).documents
    assert ends.cuts(offsets).headless > 2 * fitted.cuts(offsets).headless
    assert fitted.cuts(offsets).lost == 0
    assert len(fitted) < 1.01 * offsets[-1] / 512


@given(lengths, st.integers(1, 9))
@few
def test_examples_are_the_parts_of_documents(sizes, context):
    examples = cut(offsets_of(sizes), context, "split")
    wanted = [
        (start, min(start + context, end), number)
        for number, (first, end) in enumerate(pairwise(offsets_of(sizes).tolist()))
        for start in range(first, end, context)
    ]
    found = zip(examples.starts, examples.ends, examples.documents, strict=True)
    assert [tuple(map(int, one)) for one in found] == wanted


def test_a_batch_golden():
    stream = np.arange(10, 20, dtype=np.uint16)
    learned = np.array([0, 1, 1, 1, 0, 0, 1, 1, 0, 1], dtype=bool)
    batch = to_batch(
        PackedRows.of([[(0, 3), (3, 5)], [(5, 10)]]),
        lambda s, e: (stream[s:e], learned[s:e]),
        context=6,
        pad=7,
    )
    ig = IGNORED
    assert batch.tokens.tolist() == [[10, 11, 12, 13, 14, 7], [15, 16, 17, 18, 19, 7]]
    assert batch.targets.tolist() == [[11, 12, ig, ig, ig, ig], [16, 17, ig, 19, ig, ig]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 0]]
    assert batch.documents.tolist() == [[0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 0, 1]]
    assert batch.counts["targets"] == 5
    assert (batch.tokens.dtype, batch.targets.dtype) == (torch.int64, torch.int64)
    assert (batch.positions.dtype, batch.documents.dtype) == (torch.int64, torch.int32)


def token_by_token(rows, stream, learned, context, pad):
    """What `to_batch` gives, without arrays: (tokens, target, position, document) of each place."""
    found = []
    for number in range(len(rows)):
        row = []
        for document, (start, end) in enumerate(rows[number]):
            for place in range(start, end):
                known = place + 1 < end and learned[place + 1]
                target = stream[place + 1] if known else IGNORED
                row.append((stream[place], target, place - start, document))
        padding = (pad, IGNORED, 0, len(rows[number]))
        found.append(row + [padding] * (context - len(row)))
    return np.array(found)


@pytest.mark.parametrize("short", [0, 10**6])  # both ways to find positions
@pytest.mark.parametrize("masked", [False, True])
@few
@given(sizes=lengths, context=st.integers(2, 14), seed=st.integers(0, 99), kind=st.booleans())
def test_batches_are_what_one_token_after_the_other_gives(
    short, masked, sizes, context, seed, kind
):
    chance = np.random.default_rng(seed)
    stream = chance.integers(0, 99, sum(sizes))
    learned = chance.random(len(stream)) < 0.5 if masked else np.ones(len(stream), dtype=bool)
    offsets = offsets_of(sizes)
    rows = wrapped(offsets, context) if kind else best_fit(offsets, context)

    def read(start, end):
        return stream[start:end], learned[start:end] if masked else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("culm.data.tensors.SHORT", short)
        batch = to_batch(rows, read, context, pad=7)
    wanted = token_by_token(rows, stream, learned, context, 7)
    columns = (batch.tokens, batch.targets, batch.positions, batch.documents)
    assert [one.tolist() for one in columns] == [wanted[..., n].tolist() for n in range(4)]
    assert batch.counts == counts_of(batch.targets, batch.lengths)
    assert batch.lengths.tolist() == [sum(e - s for s, e in rows[n]) for n in range(len(rows))]


# ---------------------------------------------------------------------------------------------
# With a model: packed == separate


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    values = {"vocabulary": 40, "width": 32, "layers": 2, "attention": {"kind": "gqa", "heads": 4}}
    return parse(TransformerConfig, values).build(seed=1)


@pytest.fixture(scope="module")
def stream():
    return np.random.default_rng(0).integers(0, 40, 60)


def loss_of(model, batch):
    context = Context(batch.positions, batch.documents)
    return -model.logprobs(batch.tokens, batch.targets, context).sum()


def gradients(model, batches):
    model.zero_grad()
    total = sum(loss_of(model, batch) for batch in batches)
    total.backward()
    return total.item(), [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("backend", ["sdpa", "blocks"])
def test_packed_rows_are_their_documents_one_by_one(model, stream, backend):
    model.set_backend(backend)
    offsets = offsets_of([7, 12, 3, 20, 1, 9, 8])
    read = lambda s, e: (stream[s:e], None)  # noqa: E731
    rows = best_fit(offsets, 24)
    packed = to_batch(rows, read, 24, pad=0)
    alone = [
        to_batch(PackedRows.of([[(s, e)]]), read, e - s, pad=0, packed=False)
        for s, e in zip(offsets.tolist(), offsets[1:].tolist(), strict=False)
    ]
    counted = sum(batch.counts["targets"] for batch in alone)
    assert packed.counts["targets"] == counted == offsets[-1] - 7

    logits = model(packed.tokens, Context(packed.positions, packed.documents))
    places = {}
    for row in range(len(rows)):
        place = 0
        for start, end in rows[row]:
            places[start] = logits[row, place : (place := place + end - start)]
    for start, batch in zip(offsets.tolist(), alone, strict=False):
        torch.testing.assert_close(places[start], model(batch.tokens)[0], atol=1e-5, rtol=0)

    (one, first), (many, second) = gradients(model, [packed]), gradients(model, alone)
    assert one == pytest.approx(many, rel=1e-6)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "blocks"])
def test_a_change_in_one_document_never_reaches_another(model, stream, backend):
    model.set_backend(backend)
    read = lambda s, e: (stream[s:e], None)  # noqa: E731
    batch = to_batch(PackedRows.of([[(0, 7), (7, 15)]]), read, 20, pad=0)
    context = Context(batch.positions, batch.documents)
    before = model(batch.tokens, context)
    tokens = batch.tokens.clone()
    tokens[0, 3] = (tokens[0, 3] + 1) % 40
    after = model(tokens, context)
    assert torch.equal(before[0, 7:15], after[0, 7:15])
    assert torch.equal(before[0, :3], after[0, :3])
    assert not torch.allclose(before[0, 3:7], after[0, 3:7])
    tokens[0, 15:] = 5  # padding
    assert torch.equal(model(tokens, context)[0, :15], after[0, :15])
