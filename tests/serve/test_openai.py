"""The official client against a real server."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from reciter import CONTEXT, TEXT, until

HI = [{"role": "user", "content": "hi"}]


def chat(client, **settings):
    given = {"model": "reciter", "messages": HI, "temperature": 0, **settings}
    return client.chat.completions.create(**given)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["reciter"]
    assert client.models.retrieve("reciter").owned_by == "culm"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_chat(client):
    answer = chat(client)
    choice = answer.choices[0]
    assert choice.message.content == TEXT
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    length = len(TEXT.encode()) + 1  # the end of the turn is generated too
    assert answer.usage.completion_tokens == length
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + length


def test_parts_and_developer_messages(client):
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
    ]
    assert chat(client, messages=messages).choices[0].message.content == TEXT


def test_stream_with_usage(client):
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    *body, last = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in body) == TEXT
    assert "\ufffd" not in TEXT
    assert [chunk.choices[0].finish_reason for chunk in body][-2:] == [None, "stop"]
    assert all(chunk.usage is None for chunk in body)
    assert last.choices == []
    assert last.usage.completion_tokens == len(TEXT.encode()) + 1
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chat(client, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_over_token_borders(client, stream):
    answer = chat(client, stop=["XYZé", "never"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert text == TEXT[: TEXT.index("X")]
    assert finish == "stop"


def test_length(client):
    for name in ("max_tokens", "max_completion_tokens"):
        choice = chat(client, **{name: 5}).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("ABCDE", "length")
    cut = len(TEXT[: TEXT.index("🙂")].encode()) + 2  # in the middle of a character
    assert chat(client, max_tokens=cut).choices[0].message.content.endswith("Zé\ufffd")


def test_seeds_and_several_choices(client):
    first, again, other = (
        [c.message.content for c in chat(client, n=3, seed=seed, temperature=1).choices]
        for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) == 3
    chunks = list(chat(client, n=2, stream=True, max_tokens=4))
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == "ABCD"
        assert [c.finish_reason for c in own].count("length") == 1


def test_logprobs(client):
    choice = chat(client, logprobs=True, top_logprobs=2, stop=["EF"]).choices[0]
    content = choice.logprobs.content
    assert [entry.token for entry in content] == list("ABCD")  # those of the stop string fall
    size = 262
    width = math.sqrt(size)  # of a one-hot vector after the norm
    expected = width / 2 - math.log(math.exp(width / 2) + size - 1)
    assert content[0].logprob == pytest.approx(expected, abs=1e-3)
    assert content[0].bytes == [65]
    assert content[1].top_logprobs[0].token == "B"
    assert len(content[1].top_logprobs) == 2
    streamed = [
        entry.token
        for chunk in chat(client, stream=True, logprobs=True, max_tokens=30)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert len(streamed) == 30
    assert chat(client).choices[0].logprobs is None


def test_bias_penalties_and_stop_tokens(client):
    ban = {str(ord("B")): -100}
    assert (
        not chat(client, logit_bias=ban, max_tokens=9).choices[0].message.content.startswith("AB")
    )
    answer = chat(client, extra_body={"stop_token_ids": [ord("D")], "top_k": 5})
    assert answer.choices[0].message.content == "ABC"
    endless = chat(client, max_tokens=60, extra_body={"ignore_eos": True}).choices[0]
    assert endless.finish_reason == "length"


def test_completions(client):
    make = client.completions.create
    answer = make(model="reciter", prompt="xyABC", max_tokens=3, temperature=0)
    assert answer.choices[0].text == "DEF"
    batch = make(model="reciter", prompt=["A", "K"], max_tokens=2, temperature=0, n=2)
    assert [(c.index, c.text) for c in batch.choices] == list(enumerate(["BC", "BC", "LM", "LM"]))
    ids = make(model="reciter", prompt=[65, 66], temperature=0)
    assert ids.choices[0].text == TEXT[2:18]  # 16 tokens unless said
    chunks = list(make(model="reciter", prompt="A", max_tokens=3, stream=True, temperature=0))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "BCD"


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_prompt_is_scored_for_evaluation_harnesses(client, tokens):
    answer = client.completions.create(
        model="reciter",
        prompt=[[65, 66, 67], [75]],
        max_tokens=tokens,
        echo=True,
        logprobs=1,
        temperature=0,
    )
    first, second = sorted(answer.choices, key=lambda choice: choice.index)
    assert first.text == "ABCD"[: 3 + tokens]
    logprobs = first.logprobs
    assert logprobs.tokens == list("ABCD")[: 3 + tokens]
    assert logprobs.token_logprobs[0] is None
    assert all(value > -0.2 for value in logprobs.token_logprobs[1:])
    assert logprobs.top_logprobs[1] == {"B": logprobs.token_logprobs[1]}
    assert logprobs.text_offset == [0, 1, 2, 3][: 3 + tokens]
    assert second.text == "KL"[: 1 + tokens]


def test_concurrent_clients_share_the_batch(running):
    answers: list[str] = []

    def ask() -> None:
        answers.append(chat(running.client()).choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [TEXT] * 8
    until(lambda: running.worker.idle)


ENDLESS = {"max_tokens": CONTEXT - 100, "extra_body": {"ignore_eos": True}}


def test_a_client_that_leaves_a_stream_frees_its_slot(running, client):
    with chat(client, stream=True, **ENDLESS) as stream:
        next(iter(stream))
        assert running.worker.open == 1
    until(lambda: running.worker.idle and not running.worker._engine.busy)


def test_clients_whose_answers_end_early_do_not_disturb_the_others(running, client):
    """Wherever they stand in the batch: one meets a stop string, one leaves."""
    with ThreadPoolExecutor(3) as pool:
        for _ in range(4):
            whole = pool.submit(chat, client)
            cut = pool.submit(chat, client, stop=TEXT[5:8])
            with chat(client, stream=True, **ENDLESS) as stream:
                next(iter(stream))
            assert whole.result().choices[0].message.content == TEXT
            assert cut.result().choices[0].message.content == TEXT[:5]


def test_a_client_that_does_not_wait_frees_its_slot(running):
    impatient = running.client().with_options(timeout=0.3)
    with pytest.raises(openai.APITimeoutError):
        chat(impatient, **ENDLESS)
    until(lambda: running.worker.idle and not running.worker._engine.busy)


def test_a_full_queue_refuses_with_a_time_to_retry(running, client):
    streams = [chat(client, stream=True, n=3, **ENDLESS) for _ in range(3)]
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client, n=3)
    assert caught.value.status_code == 503
    assert caught.value.code == "overloaded"
    assert caught.value.response.headers["retry-after"] == "2"
    for stream in streams:
        stream.close()
    until(lambda: running.worker.idle, 3)


def test_a_failing_engine_ends_its_requests_only(running, client, monkeypatch):
    def broken():
        raise RuntimeError("out of luck")

    with chat(client, stream=True, **ENDLESS) as stream:
        chunks = iter(stream)
        next(chunks)
        with monkeypatch.context() as patch:
            patch.setattr(running.worker._engine, "step", broken)
            with pytest.raises(openai.APIError, match="its log says why"):
                for _ in chunks:
                    pass
    assert chat(client).choices[0].message.content == TEXT
