"""A run that begins from weights of Hugging Face, and a vocabulary that grows for it."""

import json
import re

import pytest
import tokenizers
import torch
import yaml

from culm.adapt.grow import grow
from culm.config import SettingError, parse
from culm.convert import native, peft
from culm.convert.load import load_model
from culm.run.settings import RunConfig, read_run
from culm.run.start import Pretrained, start_of
from culm.run.train import train
from culm.tokenizer.chat import SPECIALS
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE
from culm.verbs.plan import show_plan

transformers = pytest.importorskip("transformers")
ALSO = "train.adapter.train_also"
TOKENS = torch.arange(30).view(2, 15)


@pytest.fixture(scope="module")
def words(texts) -> Tokenizer:
    """A tokenizer of somebody else: one special token, which ends a text, and no chat template."""
    inner = tokenizers.Tokenizer.from_str(BPE(vocabulary=290).build(texts).json)
    plain = json.loads(inner.to_str())
    plain["added_tokens"] = [t for t in plain["added_tokens"] if t["content"] == SPECIALS[0]]
    for name in SPECIALS[1:]:
        id = plain["model"]["vocab"].pop(name)
        plain["model"]["vocab"][f"unused{id}"] = id
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(plain)))


@pytest.fixture
def there(words, tmp_path):
    """Writes a folder with transformers, and gives its model."""

    def write(vocabulary=None, tied=True, tokenizer=words):
        torch.manual_seed(0)
        config = transformers.Qwen3Config(
            vocab_size=vocabulary or words.vocabulary, hidden_size=32, intermediate_size=64,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            max_position_embeddings=128, tie_word_embeddings=tied,
        )  # fmt: skip
        kind = transformers.Qwen3ForCausalLM
        kind(config).to(torch.bfloat16).save_pretrained(tmp_path / "there")
        tokenizer.save(tmp_path / "there")
        return kind.from_pretrained(tmp_path / "there", dtype=torch.float32)

    return write


def settings(tmp_path, corpora, **start):
    return {
        "folder": str(tmp_path / "run"),
        "device": "cpu",
        "start": {"hf": str(tmp_path / "there"), **start},
        "data": {"path": str(corpora / "chat.jsonl"), "format": "chat"},
        "train": {"steps": 2, "batch_size": 4, "precision": "fp32", "optimizer": {"kind": "adamw"}},
        "eval": {"measures": {"held_out": {"tokens": 100}}},
    }


def test_a_run_begins_with_their_logits(there, tmp_path):
    theirs = there()
    model, tokenizer = start_of(Pretrained(hf=str(tmp_path / "there")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS), theirs(TOKENS).logits, atol=1e-5, rtol=1e-5)
    assert tokenizer.template is None


@pytest.mark.parametrize("adapter", [None, {"kind": "lora", "rank": 2}])
def test_training_from_there_on_dialogues(there, corpora, tmp_path, capsys, adapter):
    there(tied=adapter is None)
    values = settings(tmp_path, corpora, chat=True)
    values["train"]["adapter"] = adapter
    config = parse(RunConfig, values)
    show_plan(config, {}, 1)
    assert "5 tokens are new to the model" in capsys.readouterr().err.replace("\n", " ")
    assert train(config).finished
    assert train(config).finished  # at its end already
    model, tokenizer = load_model(tmp_path / "run")
    assert model.config.vocabulary == tokenizer.vocabulary == 295
    assert tokenizer.chat.prompt([{"role": "user", "content": "hi"}])[0] == 290 + 1
    if adapter:
        told = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == str(tmp_path / "there")
        assert peft.is_adapter(tmp_path / "run" / "adapter")


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_the_old(there, words, tmp_path, monkeypatch, tied):
    theirs, told = there(tied=tied), []
    monkeypatch.setattr("culm.log.say", told.append)
    model, tokenizer = start_of(Pretrained(hf=str(tmp_path / "there"), chat=True))
    assert len(told) == 1
    words = "5 tokens are new to the model; their embeddings start as the mean of the other 290. "
    also = "embed" if tied else "[embed,head]"
    assert told[0].endswith(f"{words}With an adapter they are trained only with {ALSO}={also}.")
    ends = {model.embed.weight: theirs.model.embed_tokens, model.head.weight: theirs.lm_head}
    assert len(ends) == 2 - tied
    for ours, module in ends.items():
        assert ours.shape == (295, 32)
        assert ours.requires_grad
        assert torch.equal(ours[:290], module.weight)
        mean = module.weight.mean(0).expand(5, -1)
        torch.testing.assert_close(ours[290:], mean, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(
            model(TOKENS)[..., :290], theirs(TOKENS).logits, atol=1e-5, rtol=1e-5
        )
    native.save(model, tokenizer, tmp_path / "out")
    again, _ = load_model(tmp_path / "out")
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_rows_that_were_padding_begin_anew(there, tmp_path):
    theirs = there(vocabulary=320)
    model, _ = start_of(Pretrained(hf=str(tmp_path / "there"), chat=True))
    weight = theirs.model.embed_tokens.weight
    assert model.embed.weight.shape == (320, 32)
    mean = weight[:290].mean(0).expand(5, -1)
    torch.testing.assert_close(model.embed.weight[290:295], mean, atol=1e-6, rtol=0)
    assert torch.equal(model.embed.weight[295:], weight[295:])


def test_a_folder_whose_tokenizer_was_added_to(there, words, tmp_path):
    """Here and there such a model is not run, but it can be trained on."""
    there(vocabulary=280)
    with pytest.raises(SettingError, match="the tokenizer has 290 ids, the model's vocabulary"):
        load_model(tmp_path / "there")
    model, _ = start_of(Pretrained(hf=str(tmp_path / "there")))
    assert model.config.vocabulary == 290


def test_a_quantised_head_does_not_grow(tmp_path):
    model = native_model()
    model.head = torch.nn.Identity()
    with pytest.raises(SettingError, match="a quantised head cannot grow"):
        grow(model, 10, 20)


def native_model():
    values = {"vocabulary": 16, "width": 16, "layers": 1, "attention": "gqa", "tied": False}
    values["attention"] = {"kind": "gqa", "heads": 2}
    return parse(RunConfig.model_fields["model"].annotation, values).build()


def test_marks_are_added_once(words):
    chat = words.with_chat()
    assert chat.with_chat() is chat
    assert [chat.specials[name] for name in SPECIALS[1:]] == [290, 291, 292, 293, 294]
    assert chat.end_of_text == words.end_of_text
    assert chat.stop_ids == {words.end_of_text, chat.specials["<|end|>"]}
    assert chat.encode("a fox") == words.encode("a fox")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"hf": "nowhere/at-all"}, "start.hf: nowhere/at-all: no such folder, and not downloaded; "
         "the hub is not reachable: go online once, or give a folder"),
        ({"hf": "/no/such/folder"}, "not a Hugging Face folder: it contains no config.json"),
        ({"hf": ""}, "start.hf: string should have at least 1 character"),
        ({"hub": "a/b"}, "start.hub: no such setting; known: chat, fim, hf"),
        ([1], "start: this is not text"),
    ],
)  # fmt: skip
def test_what_cannot_be_begun_from(tmp_path, corpora, start, words):
    values = settings(tmp_path, corpora) | {"start": start}
    with pytest.raises(SettingError, match=re.escape(words)):
        train(parse(RunConfig, values))
    assert not (tmp_path / "run" / "model").exists()


def test_without_a_template_the_sentence_says_how_to_get_one(there, corpora, tmp_path):
    there()
    with pytest.raises(SettingError, match=r"no chat template.*start.path=MODEL start.chat=true"):
        train(parse(RunConfig, settings(tmp_path, corpora)))


def test_the_command_line_replaces_a_path(tmp_path):
    config, _ = read_run("sft", ["start.hf=Qwen/Qwen3-0.6B", "start.chat=true"])
    assert config.start == Pretrained(hf="Qwen/Qwen3-0.6B", chat=True)
    config, _ = read_run("sft", ["start.path=runs/other", "start.chat=true"])
    assert config.start == Pretrained(path="runs/other", chat=True)
    config, _ = read_run("sft", ["start.chat=true"])
    assert config.start == Pretrained(path="runs/pretrain", chat=True)
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert read_run(str(path))[0] == config
    assert read_run("sft")[0].start == "runs/pretrain"
    assert read_run("sft", ["start=5"])[0].start == "5"


def test_a_model_of_our_own_is_given_a_chat_template(there, tmp_path):
    there()
    model, words = start_of(Pretrained(hf=str(tmp_path / "there")))
    native.save(model, words, tmp_path / "ours")
    again, tokenizer = start_of(Pretrained(path=str(tmp_path / "ours"), chat=True))
    assert again.config.vocabulary == tokenizer.vocabulary == 295
    assert tokenizer.chat.prompt([{"role": "user", "content": "hi"}])[0] == 290 + 1
    assert torch.equal(again.embed.weight[:290], model.embed.weight[:290])
    with pytest.raises(SettingError, match=r"start: give hf or path, one of them"):
        parse(Pretrained, {"chat": True}, "start")
    with pytest.raises(SettingError, match=r"start\.path: .*none: "):
        start_of(Pretrained(path=str(tmp_path / "none")))


@pytest.mark.parametrize("way", ["path", "settings"])
def test_a_base_model_with_a_template_learns_to_end_a_turn(there, tmp_path, way):
    """Its list of ends has the end of a document alone, as of a base model of Qwen2.5."""
    inner = tokenizers.Tokenizer.from_str(BPE(vocabulary=290).build(["a b c"] * 9).json)
    template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    base = Tokenizer(inner, {"eos_token": SPECIALS[0]}, template, [0])
    there(tokenizer=base)
    path = tmp_path / "there"
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    assert load_model(path)[1].stop_ids == {0}
    start = str(path) if way == "path" else Pretrained(path=str(path))
    assert start_of(start)[1].stop_ids == {0, base.specials["<|end|>"]}
