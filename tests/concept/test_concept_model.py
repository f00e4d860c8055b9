"""The sentence autoencoder: each sentence from its own concept, packed as alone, and the engine."""

import pytest
import torch

from culm.concept.model import ConceptModel, ConceptsConfig
from culm.concept.normalizer import Normalizer
from culm.concept.squared_error import Base
from culm.config import SettingError, parse
from culm.convert.models import Model
from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.transformer import Transformer, TransformerConfig

ATTENTION = (GQA(heads=2, qk_norm="head"),)
CONFIG = ConceptsConfig(
    vocabulary=40, width=16, layers=2, encoder_layers=1, concept=8, context=32, attention=ATTENTION
)


@pytest.fixture
def model() -> ConceptModel:
    built = CONFIG.build(0)
    assert isinstance(built, ConceptModel)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return built.eval()


def sentence(*ids: int) -> list[int]:
    return [0, *ids, 0]


ONE, TWO, THREE = sentence(5, 6, 7), sentence(8), sentence(9, 5, 11, 12)


def packed(*sentences: list[int], length: int = 18) -> tuple[torch.Tensor, Context]:
    tokens = [token for one in sentences for token in one]
    positions = [place for one in sentences for place in range(len(one))]
    documents = [number for number, one in enumerate(sentences) for _ in one]
    rest = length - len(tokens)
    row = torch.tensor([tokens + [0] * rest])
    numbers = torch.tensor([documents + [len(sentences)] * rest])
    padding = torch.arange(length)[None] >= len(tokens)
    places = torch.tensor([positions + [0] * rest])
    return row, Context(places, numbers, padding=padding)


def test_packed_sentences_are_those_alone(model: ConceptModel) -> None:
    tokens, context = packed(ONE, TWO, THREE)
    with torch.no_grad():
        logits = model(tokens, context)[0]
        concepts, present = model.concepts(tokens, context)
        start = 0
        for number, one in enumerate((ONE, TWO, THREE)):
            alone = torch.tensor([one])
            torch.testing.assert_close(logits[start : start + len(one)], model(alone)[0])
            vector = model.concepts(alone, Context.plain(alone))[0][0, 0]
            torch.testing.assert_close(concepts[0, number], vector)
            start += len(one)
    assert present[0].tolist() == [True] * 3 + [False] * 15
    norms = concepts[0, :3].square().mean(-1)
    torch.testing.assert_close(norms, torch.ones(3), atol=1e-2, rtol=0)


def test_a_sentence_is_written_from_its_whole_self_but_read_left_to_right(model) -> None:
    """A later word changes the concept, and so all logits; of another sentence, none."""
    tokens, context = packed(ONE, TWO, THREE)
    with torch.no_grad():
        before = model(tokens, context)[0]
        changed = tokens.clone()
        changed[0, 3] = 20  # the last word of the first sentence
        after = model(changed, context)[0]
    assert not torch.allclose(after[0], before[0], atol=1e-4)
    torch.testing.assert_close(after[5:14], before[5:14])


def test_the_engine_writes_a_sentence_from_a_vector(model: ConceptModel) -> None:
    """Greedy decoding with a cache is that of the whole forward with the same vector."""
    vectors = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    requests = [
        Request((0,), 6, Sampling(temperature=0.0), embeddings=((0, model.written(v[None])[0]),))
        for v in vectors
    ]
    done = Engine(model, slots=2, length=8).generate(requests)
    assert len({one.tokens for one in done}) > 1  # equal prompts with other vectors
    for vector, one in zip(vectors, done, strict=True):
        tokens = torch.tensor([[0, *one.tokens]])
        given = torch.zeros(1, tokens.shape[1], dtype=torch.bool)
        given[0, 0] = True
        inputs = model.written(vector[None, None]).expand(1, tokens.shape[1], -1)
        context = Context.plain(tokens)
        context = Context(context.positions, embeddings=(given, inputs))
        with torch.no_grad():
            assert model(tokens, context)[0, :-1].argmax(-1).tolist() == list(one.tokens)


def test_an_engine_refuses_vectors_that_its_cache_could_not_hold(model) -> None:
    vector = torch.zeros(16)
    with pytest.raises(ValueError, match="embeddings: position 1 is outside"):
        Engine(model, 1, 8).add(Request((0,), 2, embeddings=((1, vector),)))
    with pytest.raises(ValueError, match="prefix_tokens=0"):
        Engine(model, 1, 8, prefix_tokens=64).add(Request((0,), 2, embeddings=((0, vector),)))


def test_vectors_stand_in_place_of_tokens_in_any_transformer() -> None:
    plain = TransformerConfig(vocabulary=40, width=16, layers=2, context=16, attention=ATTENTION)
    model = plain.build(0)
    tokens = torch.tensor([[1, 2, 3, 4]])
    given = torch.tensor([[False, True, False, False]])
    vectors = model.embed(torch.tensor([[7]])).expand(1, 4, -1)
    context = Context(torch.arange(4)[None], embeddings=(given, vectors))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, context), model(torch.tensor([[1, 7, 3, 4]])))
    request = Request((1, 2, 3, 4), 3, Sampling(temperature=0.0), embeddings=((1, vectors[0, 0]),))
    tokens = Request((1, 7, 3, 4), 3, Sampling(temperature=0.0))
    one, other = Engine(model, 2).generate([request, tokens])
    assert one.tokens == other.tokens


def test_the_normaliser_gives_the_concepts_back_and_normal_numbers_their_deviation() -> None:
    random = torch.Generator().manual_seed(0)
    concepts = 3 + 2 * torch.randn(20_000, 4, generator=random)
    concepts[:200] = 1e4  # outliers
    concepts[:, 3] = 1.5  # constant
    normalizer = Normalizer(4)
    normalizer.init_weights(lambda name: random, 0.0)
    assert torch.equal(normalizer(concepts), concepts)
    normalizer.fit(concepts)
    torch.testing.assert_close(normalizer.inverse(normalizer(concepts)), concepts)
    torch.testing.assert_close(normalizer.scale[:3], torch.full((3,), 2.0), atol=0.1, rtol=0)
    torch.testing.assert_close(normalizer.center[:3], torch.full((3,), 3.0), atol=0.1, rtol=0)
    assert normalizer(concepts)[:, 3].abs().max() == 0


def test_a_kind_chooses_the_model() -> None:
    plain = {"vocabulary": 40, "width": 16, "layers": 2, "attention": {"kind": "gqa", "heads": 2}}
    assert type(parse(Model, plain)) is TransformerConfig
    assert type(parse(Model, {**plain, "kind": "transformer"})) is TransformerConfig
    assert type(parse(Model, {**plain, "kind": "concepts"})) is ConceptsConfig
    for given, message in (
        ({"kind": "concept"}, r"kind: 'concept' is not one of 'transformer', "),
        ({"kind": "concepts", "mtp": {"depth": 1}}, "mtp: a model of concepts has none of this"),
        (
            {"kind": "concepts", "netwrk": "base"},
            r"netwrk: no such setting; did you mean 'network'",
        ),
    ):
        with pytest.raises(SettingError, match=message):
            parse(Model, {**plain, **given})


def test_a_network_is_a_part_of_the_saved_settings() -> None:
    config = CONFIG.model_copy(update={"network": Base()})
    again = parse(Model, config.model_dump(mode="json"))
    assert again == config
    model = config.build(0, "meta")
    assert isinstance(model, Transformer)
    assert "network.trunk.blocks.0.attention.q.weight" in model.state_dict()
