import pytest
import torch
from patch_models import TEXT, patch_model, tokens_of

from culm.adapt.quantize.int8 import Int8
from culm.adapt.quantize.linear import quantized_layers
from culm.bytelatent.ngrams import PRIMES, NgramEmbedding
from culm.bytelatent.reading import Reading
from culm.convert import native
from culm.convert.weights import set_precision
from culm.model import backend
from culm.model.context import Context
from culm.model.precision import full_precision
from culm.tokenizer.bytes import Bytes


def reading(tokens: torch.Tensor) -> Reading:
    return Reading(tokens, Context.plain(tokens))


def wrapped(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def test_ngrams_are_hashed_like_a_loop_in_64_bits():
    tables = NgramEmbedding((2, 3, 6), 2, 101, 4)
    tokens = tokens_of(TEXT)
    for prime in PRIMES[:2]:
        found = tables.rows(reading(tokens), prime)
        for size, row in zip((2, 3, 6), found, strict=True):
            for place in range(len(TEXT)):
                total = sum(TEXT[place - j] * wrapped(prime**j) for j in range(size) if place >= j)
                assert int(row[0, place]) == wrapped(total) % 101


def test_ngrams_do_not_reach_into_another_document():
    tables = NgramEmbedding((3,), 1, 4096, 4)
    tokens = tokens_of(b"abcxyz")
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    packed = tables.rows(Reading(tokens, Context(positions, (positions * 0).int())), PRIMES[0])[0]
    alone = tables.rows(reading(tokens_of(b"xyz")), PRIMES[0])[0]
    assert torch.equal(packed[:, 3:], alone)


def test_patches_end_where_the_entropy_is_high_or_the_length_is_reached():
    model = patch_model("blt")
    patcher = model.bridge.patcher
    tokens = tokens_of(TEXT)
    high = (patcher.entropies(tokens) > patcher.threshold)[0].tolist()
    at, lengths, _ = patcher.ends(reading(tokens))
    since = 0
    for place, ended in enumerate(at[0].tolist()):
        natural = high[place] or place == 0
        expected = natural or (since + 1) % patcher.config.max_bytes == 0
        since = 0 if natural else since + 1
        assert ended == expected, place
    assert int(lengths[at].max()) <= patcher.config.max_bytes
    assert int(lengths[at].sum()) == int(at[0].nonzero().max()) + 1


@pytest.mark.parametrize("monotonic", [False, True])
def test_the_threshold_gives_patches_of_the_size_that_was_asked_for(monotonic):
    small = patch_model("blt").config.patching.model
    model = patch_model(
        "blt", patching={"model": small, "bytes_per_patch": 3.0, "monotonic": monotonic}
    )
    text = tokens_of(TEXT * 8)[:, :480].view(5, 96)
    size = model.bridge.patcher.fit(text)
    assert size == pytest.approx(3.0, rel=0.1)
    assert text.numel() / int(model.ends(text).sum()) == pytest.approx(size)


def test_the_small_model_is_frozen_and_stored_with_the_weights(tmp_path):
    model = patch_model("blt").train()
    assert not any(p.requires_grad for p in model.bridge.patcher.parameters())
    assert not model.bridge.patcher.model.training
    native.save(model, Bytes(specials=True).build(), tmp_path / "model")
    loaded, _ = native.load(tmp_path / "model")
    assert not any(p.requires_grad for p in loaded.bridge.patcher.parameters())
    assert loaded.bridge.patcher.threshold == model.bridge.patcher.threshold
    with torch.no_grad():
        tokens = tokens_of(TEXT)
        assert torch.equal(loaded.eval()(tokens), model.eval()(tokens))


@pytest.mark.parametrize("seed", range(3))
def test_patches_end_at_the_same_bytes_in_every_dtype(seed: int) -> None:
    """The small model decides in fp32, whatever the model around it computes and stores in."""
    model, tokens = patch_model("blt", seed), torch.tensor([list(TEXT)])
    before = model.ends(tokens)
    assert before.any()
    weights = {name: one.clone() for name, one in model.bridge.patcher.named_parameters()}
    set_precision(model, torch.bfloat16)
    backend.place(model, torch.device("cpu"), torch.bfloat16)
    assert torch.equal(model.ends(tokens), before)
    for name, weight in model.bridge.patcher.named_parameters():
        assert torch.equal(weight, weights[name]), name
    kept = full_precision(model)
    assert {p.dtype for n, p in model.named_parameters() if n not in kept} == {torch.bfloat16}


def test_the_small_model_is_not_quantised() -> None:
    model, tokens = patch_model("blt"), torch.tensor([list(TEXT)])
    before = model.ends(tokens)
    Int8(targets=("*",)).apply(model)
    assert quantized_layers(model)
    assert not any(name.startswith("bridge.patcher") for name in quantized_layers(model))
    assert torch.equal(model.ends(tokens), before)
