"""Concepts that follow a text without end: the network reads as many at once as it has learned."""

import pytest
import torch
from gates import DIM, KINDS, NETWORKS, network_of

from culm.concept.model import ConceptModel, ConceptsConfig
from culm.concept.network import NetworkConfig
from culm.config import SettingError, parse
from culm.convert.weights import set_precision
from culm.data.format.sentences import SentencesFormat
from culm.model.attention.gqa import GQA
from culm.model.backend import place
from culm.text.concepts import ConceptLanguageModel
from culm.tokenizer import TokenizerConfig


@pytest.fixture
def model(config: NetworkConfig, monkeypatch) -> ConceptLanguageModel:
    """One whose texts do not end."""
    monkeypatch.setattr("culm.text.concepts.END_COSINE", 2)
    monkeypatch.setattr("culm.text.concepts.STUCK_COSINE", 2)
    trunk = config.trunk.model_copy(update={"context": 4})
    settings = ConceptsConfig(
        vocabulary=262, width=16, layers=1, context=32, concept=DIM, attention=(GQA(heads=2),),
        network=config.model_copy(update={"trunk": trunk}),
    )  # fmt: skip
    built = settings.build(0).eval()
    assert isinstance(built, ConceptModel)
    built.network = network_of(built.config.network)
    return ConceptLanguageModel(built, parse(TokenizerConfig, {"kind": "bytes"}).build([]))


@pytest.mark.parametrize("config", NETWORKS, ids=KINDS)
def test_a_text_without_end_is_continued(model: ConceptLanguageModel, monkeypatch) -> None:
    network = model.model.network
    lengths, predict = [], network.next

    def noted(history, sampler, noise):
        lengths.append(history.length)
        return predict(history, sampler, noise)

    monkeypatch.setattr(network, "next", noted)
    known = torch.randn(7, DIM, generator=torch.Generator().manual_seed(0))
    concepts = [one for one, _ in zip(model.following(network, known, 0), range(9), strict=False)]
    assert all(one.isfinite().all() for one in concepts)
    assert lengths[:8] == [3, 2] * 4  # of 4 sentences in a row, 3 were read in training


@pytest.mark.parametrize("config", NETWORKS[:1], ids=KINDS[:1])
def test_a_text_ends_with_the_concept_that_training_puts_there(model, monkeypatch) -> None:
    """No setting of the data changes it, as a loaded model could not know it."""
    monkeypatch.setattr("culm.text.concepts.END_COSINE", 0.9)
    [*said, end] = SentencesFormat().contents({"text": "Tom ran. Ann sang!"})
    assert said == ["Tom ran. ", "Ann sang!"]
    network, concepts = model.model.network, model.concepts([*said, end])
    following = iter([*model.model.normalizer(concepts), None])
    monkeypatch.setattr(network, "next", lambda *given: next(following)[None])
    found = list(model.following(network, concepts[:1], 0))
    torch.testing.assert_close(torch.stack(found), concepts[:2])
    with pytest.raises(SettingError, match="end: "):
        parse(SentencesFormat, {"end": "Fin."})


@pytest.mark.parametrize("config", NETWORKS, ids=KINDS)
def test_a_sentence_in_context_is_read_where_the_network_has_learned(model) -> None:
    """The state after a sentence is that after three in a row, never after a fourth."""
    text = [f"{one}. " for one in "abcdefgh"]
    states = model.in_context(text)
    assert len(states) == 8
    network = model.model.network
    given = model.model.normalizer(model.concepts(text[5:8]))
    history = network.begin(1, 4)
    with torch.no_grad():
        network.read(given[None], history)
    torch.testing.assert_close(states[-1], history.states[0, -1])


@pytest.mark.parametrize("config", NETWORKS, ids=KINDS)
def test_a_network_stays_in_fp32(model: ConceptLanguageModel) -> None:
    """As in training; what writes and reads sentences does not."""
    set_precision(model.model, torch.bfloat16)
    place(model.model, torch.device("cpu"), torch.bfloat16)
    assert {weight.dtype for weight in model.model.network.parameters()} == {torch.float32}
    assert model.model.encoder.blocks[0].attention.q.weight.dtype == torch.bfloat16
    assert model.generate("a. b. c. d.", max_tokens=9, seed=0)


def test_a_row_has_a_sentence_to_read_and_one_to_predict() -> None:
    with pytest.raises(SettingError, match=r"trunk\.context: .*greater than or equal to 2"):
        parse(type(NETWORKS[0]), {"trunk": {"context": 1}})
