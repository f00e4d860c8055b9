"""One base in memory, several adapters in one server, chosen by the request's model name."""

import openai
import pytest
import torch
from reciter import Running

from culm import load
from culm.adapt.lora import LoRA, adapters_of
from culm.config import SettingError
from culm.convert import native, peft
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.serve.http.app import build
from culm.tokenizer.bytes import Bytes
from culm.verbs.serve import named_adapters

NAMES = ("poet", "judge")
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two adapters for it, one for another base, and one that trained the embedding."""
    folder = tmp_path_factory.mktemp("adapters")
    tokenizer = Bytes(specials=True).build()
    for number, name in enumerate((*NAMES, "other", "whole")):
        config = TransformerConfig(
            vocabulary=tokenizer.vocabulary, width=32, layers=2, context=256,
            attention=(GQA(heads=2),),
        )  # fmt: skip
        model = config.build(seed=1 + (name == "other"))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(6 if weight.ndim == 2 else 1)
        if number == 0:
            native.save(model, tokenizer, folder / "base")
        also = ("embed",) if name == "whole" else ()
        settings = LoRA(rank=4, dora=name == "judge", train_also=also)
        settings.apply(model, seed=number)
        torch.manual_seed(number)
        for layer in adapters_of(model).values():
            torch.nn.init.normal_(layer.b, std=0.3)
        peft.save(model, settings, folder / name, str(folder / "base"))
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load(folder / "base", "cpu", adapters={name: folder / name for name in NAMES})


@pytest.fixture(scope="module")
def client(model):
    server = Running(build(model, "base"))
    yield server.client()
    server.stop()


def said(model, **settings):
    return model.chat("hi", max_tokens=12, temperature=0, **settings)


def test_python_chooses_by_name(folder, model):
    assert model.adapters == NAMES
    merged = {name: load(folder / name, "cpu") for name in NAMES} | {None: load(folder / "base")}
    for name, alone in merged.items():
        assert said(model, adapter=name) == said(alone)
        assert "".join(model.chat_stream("hi", 12, temperature=0.0, adapter=name)) == said(alone)
        texts = model.generate(["ab", "c"], 12, temperature=0, adapter=name)
        assert texts == alone.generate(["ab", "c"], 12, temperature=0)
        assert "".join(model.stream("ab", 12, temperature=0.0, adapter=name)) == texts[0]
        ids = model.encode("some text")
        torch.testing.assert_close(model.logits(ids, name), alone.logits(ids), atol=1e-3, rtol=0)
        torch.testing.assert_close(
            model.logprobs(ids, name), alone.logprobs(ids), atol=1e-3, rtol=0
        )
    assert len({said(alone) for alone in merged.values()}) == 3
    for call in (model.generate, model.chat, model.logits):
        with pytest.raises(ValueError, match="adapter: 'x' is not loaded; known: poet"):
            call("a" if call != model.logits else [1], adapter="x")


def test_adapters_that_do_not_fit_the_base_are_refused(folder):
    for adapters, words in (
        ({"poet": folder / "poet", "x": folder / "other"}, "an adapter for another base: its base"),
        ({"x": folder / "whole"}, "embed was trained in full, so it cannot share the model"),
        ({"x": folder / "nowhere"}, "no adapter folder"),
        ({"": folder / "poet"}, "adapters: a name is empty"),
    ):
        with pytest.raises(SettingError, match=words):
            load(folder / "base", "cpu", adapters=adapters)
    with pytest.raises(SettingError, match="adapters: cannot be combined with adapter"):
        load(folder / "base", "cpu", adapter=folder / "poet", adapters={"x": folder / "judge"})


def test_an_adapted_head_is_refused(folder, tmp_path):
    model, settings = load(folder / "base", "cpu").model, LoRA(targets=("head", "blocks.0.*"))
    settings.apply(model, seed=0)
    peft.save(model, settings, tmp_path / "head", None)
    with pytest.raises(
        SettingError, match=r"adapters\.x: it adapts head, which is outside the blocks"
    ):
        load(folder / "base", "cpu", adapters={"x": tmp_path / "head"})
    loaded = load(folder / "base", "cpu", adapters={"x": folder / "poet"})
    with pytest.raises(SettingError, match="it has adapters; merge them first"):
        native.save(loaded.model, loaded.tokenizer, tmp_path / "out")


def test_the_server_lists_and_serves_them(client, model):
    cards = client.models.list().data
    assert [card.id for card in cards] == ["base", *NAMES]
    assert [card.to_dict()["parent"] for card in cards] == [None, "base", "base"]
    assert client.models.retrieve("judge").id == "judge"
    for name in ("base", *NAMES):
        answer = client.chat.completions.create(
            model=name, messages=HI, temperature=0, max_tokens=12
        )
        adapter = None if name == "base" else name
        assert answer.choices[0].message.content == said(model, adapter=adapter)
        assert answer.model == name
        scored = client.completions.create(
            model=name, prompt="ab", max_tokens=0, echo=True, logprobs=0
        )
        (logprob,) = model.logprobs(model.prompt_ids("ab"), adapter).tolist()
        assert scored.choices[0].logprobs.token_logprobs[-1] == pytest.approx(logprob, abs=1e-3)
    with pytest.raises(openai.NotFoundError, match=r"this server has 'base', 'poet', 'judge'") as e:
        client.chat.completions.create(model="novelist", messages=HI)
    assert e.value.code == "model_not_found"


def test_adapter_names_are_unique(model):
    with pytest.raises(SettingError, match="'poet' is the name of the model"):
        build(model, "poet")
    assert named_adapters(["a=runs/x", "b=c=d"]) == {"a": "runs/x", "b": "c=d"}
    for pairs, words in ((["a"], "is not NAME=FOLDER"), (["a=x", "a=y"], "'a' is given twice")):
        with pytest.raises(SettingError, match=words):
            named_adapters(pairs)
