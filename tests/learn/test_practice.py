"""The corpus and the short runs of lessons."""

import torch

from culm.learn.practice import Windows, batch_of, held_out_loss, small, text, tokens, train
from culm.model.attention.gqa import GQA

STREAM = torch.arange(1000)
TINY = small(GQA(heads=2), width=16, layers=1)


def test_training_never_sees_what_is_held_out() -> None:
    data = Windows(STREAM, context=10, rows=64)
    read = {int(t) for n in range(30) for batch in data.step(n) for t in batch.targets.flatten()}
    kept = data.held_out(50)
    asked = {int(token) for token in torch.cat((kept.tokens, kept.targets)).flatten()}
    assert not read & asked
    assert max(read) == 899
    assert min(asked) == 900
    assert max(asked) >= 998


def test_a_step_is_a_function_of_its_number_however_it_is_divided() -> None:
    whole, parts = Windows(STREAM, 10, 8), Windows(STREAM, 10, 8, micro_rows=3)
    (batch,) = whole.step(5)
    assert [len(one.tokens) for one in parts.step(5)] == [3, 3, 2]
    assert torch.equal(torch.cat([one.tokens for one in parts.step(5)]), batch.tokens)
    assert not torch.equal(whole.step(6)[0].tokens, batch.tokens)
    assert not torch.equal(Windows(STREAM, 10, 8, seed=1).step(5)[0].tokens, batch.tokens)


def test_targets_are_one_token_later() -> None:
    batch = batch_of(torch.tensor([[3, 4, 5], [7, 8, 9]]))
    assert batch.tokens.tolist() == [[3, 4], [7, 8]]
    assert batch.targets.tolist() == [[4, 5], [8, 9]]
    assert batch.counts == {"tokens": 4, "targets": 4, "rows": 2}


def test_a_model_learns_and_one_without_steps_does_not() -> None:
    data = Windows(tokens("abcd" * 300), context=16, rows=8)
    untrained = TINY.build(seed=0).eval()
    before = held_out_loss(untrained, data)
    assert held_out_loss(train(TINY, data, steps=0).model, data) == before
    trained = train(TINY, data, steps=30, rate=1e-2)
    assert held_out_loss(trained.model, data) < before / 2
    assert [step for step, _ in trained.losses] == list(range(1, 31))
    assert not trained.model.training


def test_the_corpus_is_code_that_everybody_has() -> None:
    assert "class ArgumentParser" in text()
    assert len(tokens(text())) > 200_000
