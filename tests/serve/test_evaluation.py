"""What evaluation harnesses ask for: scores over HTTP are those of the model in this process.

The requests are those of lm-eval's `local-completions`, and the answers are read as it reads them.
"""

import httpx2 as httpx
import pytest
import torch
from reciter import Running

from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.serve.http.app import build
from culm.text.language_model import LanguageModel
from culm.tokenizer.train import BPE

CONTEXTS = ["Once upon a time", "The fox and the stone", "A", "water by the green river,"]
ANSWERS = [" a fox", " the green house by the river", " é", " 12 stones", ""]
TEXT = "Once upon a time the little fox sat by the green river and the water was cold. " * 3


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """It often takes the end of the text for the most likely token."""
    torch.set_num_threads(1)
    tokenizer = BPE(vocabulary=320).build([TEXT])
    config = TransformerConfig(
        vocabulary=tokenizer.vocabulary, width=32, layers=2, context=64, attention=GQA(heads=2),
        tied=False,
    )  # fmt: skip
    built = config.build(seed=2).eval()
    with torch.no_grad():
        for weight in built.parameters():
            if weight.ndim == 2:
                weight.mul_(5)
        built.head.weight[tokenizer.end_of_text] = built.head.weight[tokenizer.encode(" the")[0]]
    return LanguageModel(built, tokenizer)


@pytest.fixture(scope="module")
def server(model):
    running = Running(build(model, "tiny"))
    yield running
    running.stop()


def scores(server, prompts, lengths):
    """Sum of log-probabilities and whether they are greedy, for each prompt after its context."""
    body = {
        "model": "tiny", "prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1,
        "seed": 1234, "echo": True,
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    for choice, length in zip(answer.json()["choices"], lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        greedy = all(one == max(top.values()) for one, top in zip(logprobs, tops, strict=True))
        yield sum(logprobs), greedy


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
def test_choices_are_scored_in_batches(server, model, answer, as_text):
    contexts = [model.encode(context) for context in CONTEXTS]
    whole = [model.encode(context + answer) for context in CONTEXTS]
    prompts = [context + answer for context in CONTEXTS] if as_text else whole
    found = list(scores(server, prompts, map(len, contexts)))
    for (total, greedy), context, ids in zip(found, contexts, whole, strict=True):
        exact = model.logprobs(ids)[len(context) - 1 :]
        assert total == pytest.approx(float(exact.sum()), abs=1e-5)
        best = model.logits(ids)[len(context) - 1 : -1].argmax(-1).tolist()
        assert greedy == (best == ids[len(context) :])


def test_texts_are_scored_from_their_first_token(server, model):
    """As for a perplexity: an end of text comes before the first token."""
    rows = [[model.tokenizer.end_of_text, *model.encode(context)] for context in CONTEXTS]
    for (total, _), ids in zip(scores(server, rows, [1] * len(rows)), rows, strict=True):
        assert total == pytest.approx(float(model.logprobs(ids).sum()), abs=1e-5)


def test_texts_are_generated_up_to_a_stop(server, model):
    body = {
        "model": "tiny", "prompt": [model.encode(context) for context in CONTEXTS],
        "max_tokens": 20, "temperature": 0, "stop": ["the", "\n", "<|endoftext|>"], "seed": 1234,
    }  # fmt: skip
    answer = httpx.post(f"{server.url}/v1/completions", json=body).json()
    for choice, context in zip(answer["choices"], CONTEXTS, strict=True):
        expected = model.generate(context, 20, temperature=0.0, stop=["the", "\n"])
        assert choice["text"] == expected
