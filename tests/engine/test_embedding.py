"""Vectors of texts: those of each text alone, however they are read."""

import pytest
import torch

from culm.engine.embedding import embed_in_steps
from culm.engine.engine import Engine


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    lengths = [9, 2, 40, 1, 40, 3, 96, 17]
    return [torch.randint(0, 61, (n,), generator=generator).tolist() for n in lengths]


@torch.no_grad()
def alone(model, ids: list[int]) -> torch.Tensor:
    mean = model.hidden(torch.tensor([ids]))[0].float().mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("room", [1, 7, 64, 100, 8192])
def test_vectors_are_those_of_each_text_alone(model, room: int) -> None:
    parts = list(embed_in_steps(model, texts(), step_tokens=lambda: room))
    found = {index: vector for part in parts for index, vector in part.vectors.items()}
    assert sorted(found) == list(range(len(texts())))
    for index, ids in enumerate(texts()):
        torch.testing.assert_close(found[index], alone(model, ids), atol=1e-5, rtol=1e-4)
    assert all(part.tokens <= room for part in parts)


def test_short_texts_share_a_step_and_long_ones_take_several(model) -> None:
    parts = list(embed_in_steps(model, texts(), step_tokens=lambda: 40))
    assert [len(part.vectors) for part in parts] == [4, 1, 1, 1, 0, 0, 1]
    assert sum(part.tokens for part in parts) == 4 * 9 + 17 + 40 + 40 + 96


def test_the_engine_reads_vectors_in_its_own_steps(model) -> None:
    for step_tokens in (None, 16):
        engine = Engine(model, step_tokens=step_tokens)
        parts = list(engine.embed_in_steps(texts()))
        found = {index: vector for part in parts for index, vector in part.vectors.items()}
        torch.testing.assert_close(found[6], alone(model, texts()[6]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ids", [[], [61], [-1]])
def test_what_has_no_vector_is_refused(model, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="ids"):
        list(embed_in_steps(model, [[1, 2], ids]))
