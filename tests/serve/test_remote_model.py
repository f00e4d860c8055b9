"""A model behind an API is evaluated as it is in this process."""

import pytest
from judging import Stub
from reciter import Running

from culm.config import SettingError
from culm.endpoint import Endpoint, EndpointError
from culm.eval.remote import RemoteModel
from culm.eval.responder import Generation
from culm.serve.http.app import build
from culm.task.task import Option, Question
from culm.text.language_model import LanguageModel

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


def test_a_server_without_scores_of_prompts_is_refused(stub: Stub) -> None:
    model = RemoteModel(Endpoint(stub.url, "m", 5, 0))
    with pytest.raises(SettingError, match=r"^model: http.*"):
        model.likelihoods(OPTIONS[:1])
    with pytest.raises(EndpointError):
        Endpoint(stub.url, "m", 5, 0).names()
