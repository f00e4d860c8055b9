"""A model behind an API is evaluated as it is in this process."""

import json

import pytest
from judging import Stub
from reciter import Running

from culm.agent.api import APIChat
from culm.config import SettingError
from culm.endpoint import ContextExceeded, Endpoint, EndpointError
from culm.engine.continuations import likelihoods
from culm.eval.dialogue import converse
from culm.eval.local import encoded_pair
from culm.eval.questions import answer_questions, distinct
from culm.eval.remote import RemoteModel
from culm.eval.responder import CUT, Generation
from culm.serve.http.app import build
from culm.task.guess import Guess
from culm.task.task import Option, Question
from culm.text.language_model import LanguageModel
from culm.text.reply import NoRoom

OPTIONS = [
    Option("Question: Which fox?\nAnswer:", " the green river"),
    Option("Question: Which fox?\nAnswer:", " a fox"),
    Option("Ends in a space: ", "stone"),
    Option("é ", "è ü"),
]


@pytest.fixture(scope="module")
def local():
    from suites import local

    return local()


@pytest.fixture(scope="module")
def remote(local):
    patch = pytest.MonkeyPatch()
    patch.setenv("no_proxy", "127.0.0.1")
    running = Running(build(LanguageModel(local.model, local.tokenizer), "tiny"))
    endpoint = Endpoint(f"{running.url}/v1", "", 30, 0)
    assert endpoint.names() == ["tiny"]
    yield RemoteModel(Endpoint(f"{running.url}/v1", "tiny", 30, 0))
    running.stop()
    patch.undo()


def test_likelihoods_are_those_of_the_model(local, remote) -> None:
    for ours, theirs in zip(local.likelihoods(OPTIONS), remote.likelihoods(OPTIONS), strict=True):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-3)
        assert (theirs.tokens, theirs.greedy) == (ours.tokens, ours.greedy)


def test_replies_are_those_of_the_model(local, remote) -> None:
    asked = [Question("Which fox", "x", plain=True), Question("Which river?", "x")]
    asked.append(Question("Which river?", "x", before=({"role": "system", "content": "Be kind."},)))
    how = Generation(8)
    ours, theirs = local.replies(asked, how), remote.replies(asked, how)
    assert [one.text for (one,) in theirs] == [one.text for (one,) in ours]
    stop = ours[0][0].text[2:4]
    (ended,) = remote.replies([Question("Which fox", "x", plain=True, stops=(stop,))], how)
    assert ended[0].text == ours[0][0].text.split(stop)[0]


@pytest.fixture(scope="module")
def short():
    """A model whose context ends a game, in this process and behind a server."""
    from suites import local

    patch = pytest.MonkeyPatch()
    patch.setenv("no_proxy", "127.0.0.1")
    model = local(context=72)
    running = Running(build(LanguageModel(model.model, model.tokenizer), "tiny"))
    yield model, RemoteModel(Endpoint(f"{running.url}/v1", "tiny", 30, 0))
    running.stop()
    patch.undo()


def test_a_dialogue_ends_where_the_context_of_a_server_does(short) -> None:
    """As it does in this process: the last reply is scored, and the dialogue is counted."""
    asked, how = distinct([Guess()], 3, 0), Generation(8)
    ours, theirs = (answer_questions(one, asked, how) for one in short)
    assert [one.cut for one in theirs] == [1, 1, 1]
    assert [(one.replies, one.scores) for one in theirs] == [
        (one.replies, one.scores) for one in ours
    ]
    said = converse(short[1], asked, how)
    assert [one.answered.cut for one in said if one.turn == max(o.turn for o in said)] == [1, 1, 1]
    long = (Guess(), Question("Which river? " * 40, "x"))
    with pytest.raises(SettingError, match=r"^model: .*HTTP 400.*maximum context length is 72"):
        answer_questions(short[1], [long], how)


def test_an_option_beyond_the_context_loses_its_beginning(short) -> None:
    """By the ids that the server gives; two tokens of its context stay free."""
    local, remote = short
    story = "The fox ran along the river and met é"
    options = [Option(story * 9, end) for end in (" a stone", "ü", " ")] + [Option("The fox", " r")]
    pairs = [encoded_pair(local.tokenizer, one) for one in options]
    kept = [((context + end)[-70 : -len(end)], end) for context, end in pairs]
    for ours, theirs in zip(
        likelihoods(local.model, kept), remote.likelihoods(options), strict=True
    ):
        assert theirs.logprob == pytest.approx(ours.logprob, abs=1e-3)
        assert (theirs.tokens, theirs.greedy) == (ours.tokens, ours.greedy)
    local.likelihoods(options)
    assert dict(remote.notes) == dict(local.notes) == {CUT.format(context=72): 3}
    with pytest.raises(SettingError, match=r"'The fox ran.* leave no room in the context of 72 at"):
        remote.likelihoods([Option("x", story * 9)])


@pytest.mark.parametrize("given", [None, b'{"tokens": [1, 2]}', b"<html>"])
def test_a_server_that_gives_no_ids_cannot_cut_an_option(monkeypatch, given) -> None:
    def post(self: Endpoint, name: str, body: object) -> bytes:
        if name == "tokenize" and given is not None:
            assert self.url == "http://here"
            return given
        raise EndpointError("404") if name == "tokenize" else ContextExceeded("too long")

    monkeypatch.setattr(Endpoint, "post", post)
    monkeypatch.setattr(Endpoint, "contexts", lambda self: {"m": None})
    with pytest.raises(SettingError, match="gives no ids to shorten it"):
        RemoteModel(Endpoint("http://here/v1", "m", 5, 0)).likelihoods(OPTIONS[:1])


REFUSALS = [  # of vLLM, old and new; of SGLang; of llama.cpp
    {"object": "error", "message": "This model's maximum context length is 40 tokens. However"},
    {"error": {"message": "This model's maximum context length is 40 tokens.", "code": 400}},
    {"message": "The input (61 tokens) is longer than the model's context length (40 tokens)."},
    {"error": {"message": "request (61 tokens) exceeds the available context size (40 tokens)"}},
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_server_that_counts_the_limit_of_a_reply_is_asked_without(stub: Stub, refusal) -> None:
    """And one that has no room for any reply says so; other refusals end the evaluation."""
    endpoint, how = Endpoint(stub.url, "m", 5, 0), Generation(32)
    model = RemoteModel(endpoint)

    def reply(prompt: str):
        if "max_tokens" in stub.bodies[-1] or prompt == "long":
            return 400, refusal
        return f"{prompt}?"

    stub.reply = reply
    (short,), (long,) = (model.replies([Question(one, "x")], how) for one in ("short", "long"))
    assert [one.text for one in short] == ["short?"]
    assert endpoint.answer("short", 32) == "short?"
    asked = [{"role": "user", "content": "short"}]
    assert APIChat(endpoint).answer(asked, (), 32, 5).content == "short?"
    with pytest.raises(ContextExceeded):
        endpoint.answer("long", 32)
    assert isinstance(long, NoRoom)
    assert str(long).startswith("model: http://127.0.0.1")
    assert str(long).endswith(refusal.get("error", refusal)["message"])
    stub.reply = lambda prompt: (400, {"error": {"message": "temperature: too high"}})
    with pytest.raises(SettingError, match="too high"):
        model.replies([Question("short", "x")], how)


def test_a_server_without_scores_of_prompts_is_refused(stub: Stub) -> None:
    model = RemoteModel(Endpoint(stub.url, "m", 5, 0))
    with pytest.raises(SettingError, match=r"^model: http.*"):
        model.likelihoods(OPTIONS[:1])
    with pytest.raises(EndpointError):
        Endpoint(stub.url, "m", 5, 0).names()


def answers_with(monkeypatch, **logprobs) -> RemoteModel:
    """A model whose server answers this."""
    body = json.dumps({"choices": [{"text": "", "logprobs": logprobs}]}).encode()
    monkeypatch.setattr(Endpoint, "post", lambda self, name, asked: body)
    return RemoteModel(Endpoint("http://here/v1", "m", 1, 0))


COUNTED = [
    # characters; bytes; with a first token that is no part of the text, counted or not
    (["é", " b", " c"], [0, 1, 3]),
    (["?", "?", "?"], [0, 2, 4]),
    (["<s>", "é", " b", " c"], [0, 3, 4, 6]),
    (["<s>", "\ufffd", "\ufffd", " b", " c"], [0, 3, 3, 4, 6]),
    (["<s>", "é", " b", " c"], [0, 0, 1, 3]),
    (["<s>", "é", " b"], [0, 0, 1]),  # nothing was generated
]


@pytest.mark.parametrize(("tokens", "offsets"), COUNTED)
def test_places_of_tokens_are_read_as_a_server_counts_them(monkeypatch, tokens, offsets) -> None:
    values = [None, *(-float(i) for i in range(1, len(tokens)))]
    scored = tokens.index(" b") if " b" in tokens else 1
    model = answers_with(
        monkeypatch, tokens=tokens, text_offset=offsets, token_logprobs=values,
        top_logprobs=[None, *({"x": -0.5} for _ in tokens[1:])],
    )  # fmt: skip
    (found,) = model.likelihoods([Option("é", " b")])
    assert found == (-float(scored), 1, False)


@pytest.mark.parametrize("offsets", [[0, 9, 17], [0, 1, 2], [0], []])
def test_places_that_do_not_fit_the_text_are_refused(monkeypatch, offsets) -> None:
    count = len(offsets)
    model = answers_with(
        monkeypatch, tokens=["?"] * count, text_offset=offsets, token_logprobs=[-1.0] * count,
        top_logprobs=[{"x": -0.5}] * count,
    )  # fmt: skip
    with pytest.raises(SettingError, match="gives no log-probabilities of a prompt"):
        model.likelihoods([Option("é", " b")])


@pytest.mark.parametrize("choices", [[], [{"text": "a"}], [{"text": "a"}] * 3])
def test_a_server_must_give_as_many_replies_as_are_asked_for(monkeypatch, choices) -> None:
    body = json.dumps({"choices": choices}).encode()
    monkeypatch.setattr(Endpoint, "post", lambda self, name, asked: body)
    model = RemoteModel(Endpoint("http://here/v1", "m", 1, 0))
    with pytest.raises(SettingError, match=f"gave {len(choices)} of 2 replies"):
        model.replies([Question("?", "x", plain=True)], Generation(samples=2))


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"choices": [1]}', b'{"choices": 1}', b"<html>"])
def test_what_is_no_completion_is_refused(monkeypatch, body: bytes) -> None:
    monkeypatch.setattr(Endpoint, "post", lambda self, name, asked: body)
    model = RemoteModel(Endpoint("http://here/v1", "m", 1, 0))
    for ask in (lambda: model.replies([Question("?", "x")], Generation()),
                lambda: model.likelihoods(OPTIONS[:1])):  # fmt: skip
        with pytest.raises(SettingError, match="an answer is not a completion"):
            ask()


def test_an_interrupt_asks_nothing_further(monkeypatch) -> None:
    asked = []

    def post(self, name, body):
        asked.append(body)
        raise KeyboardInterrupt

    monkeypatch.setattr(Endpoint, "post", post)
    model = RemoteModel(Endpoint("http://here/v1", "m", 1, 0), concurrent=2)
    with pytest.raises(KeyboardInterrupt):
        model.replies([Question(f"{n}", "x") for n in range(500)], Generation())
    assert len(asked) <= 2
