"""Embeddings and similarities, by the official client."""

import numpy as np
import openai
import pytest
import torch


def test_vectors_are_those_of_the_model(client, running):
    model = running.app.state.service.model
    texts = ["ABC", "xyz", "ABD"]
    found = client.embeddings.create(model="reciter", input=texts)
    vectors = np.array([one.embedding for one in found.data])
    assert [one.index for one in found.data] == [0, 1, 2]
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    ids = [model.prompt_ids(text) for text in texts]
    for vector, one in zip(vectors, ids, strict=True):
        states = model.model.hidden(torch.tensor([one]))[0].float().mean(0)
        assert vector == pytest.approx((states / states.norm()).tolist(), abs=1e-6)
    assert found.usage.prompt_tokens == sum(map(len, ids))
    plain = client.embeddings.create(model="reciter", input=ids, encoding_format="float")
    assert np.array([one.embedding for one in plain.data]) == pytest.approx(vectors, abs=1e-6)
    near = client.post(
        "/score", body={"model": "reciter", "text_1": "ABC", "text_2": ["ABC", "xyz"]},
        cast_to=object,
    )  # fmt: skip
    assert [one["score"] for one in near["data"]] == pytest.approx(
        [1, vectors[0] @ vectors[1]], abs=1e-6
    )


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"dimensions": 7}, "dimensions"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [[999_999]]}, "prompt"),
        ({"input": "x" * 5000}, None),
        ({"encoding_format": "xml"}, "encoding_format"),
        ({"model": "other"}, "model"),
    ],
)
def test_what_has_no_vector_is_refused(client, change, param):
    body = {"model": "reciter", "input": "x", **change}
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.post("/embeddings", body=body, cast_to=object)
    assert caught.value.param == param
