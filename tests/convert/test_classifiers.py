"""Reward models as AutoModelForSequenceClassification: the same rewards there and here."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
import torch
from answers import answered
from family_models import FAMILIES, peer_of, saved, strong

from culm.adapt.heads import with_scalar_head
from culm.adapt.lora import LoRA
from culm.config import SettingError, parse
from culm.convert import hf, native, peft
from culm.convert.export import export, write_export
from culm.convert.family import NoFamilyError
from culm.convert.load import read
from culm.files import read_json, write_json
from culm.model.transformer import Transformer
from culm.rollout.reward.model import ModelScore
from culm.rollout.trajectory import Trajectory
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.tokenizer.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
DIALOGUES = ["Is it a fox?", "One.", "There were twelve little foxes, and a longer answer follows."]


def rewards_there(folder: Path, tokenizer: Tokenizer) -> list[float]:
    """Of a batch that their tokenizer pads on the right, as the folder says."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.num_labels == 1
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert words.pad_token_id == model.config.pad_token_id
    texts = [tokenizer.decode(ids, specials=True) for ids in dialogues(tokenizer)]
    given = words(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    assert not given.attention_mask.all()
    with torch.no_grad():
        return model(**given).logits[:, 0].tolist()


def dialogues(tokenizer: Tokenizer) -> list[list[int]]:
    found = []
    for text in DIALOGUES:
        turns = [{"role": "user", "content": "Tell me."}, {"role": "assistant", "content": text}]
        found.append(tokenizer.chat.encode(turns, "last")[0])
        assert found[-1][-1] == tokenizer.end_of_turn
    return found


def rewards_here(model: Transformer, rows: Sequence[Sequence[int]]) -> list[float]:
    """Row by row, at the last token."""
    with torch.no_grad():
        return [model.scores(torch.tensor([row]))[0, -1].item() for row in rows]


def judge(tiny, scores: int = 1, **settings) -> Transformer:
    model = tiny(**settings)
    with_scalar_head(model, 0, scores)
    return model.eval()


SHAPES = {
    "llama": {},
    "qwen2": {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "bias": True}},
    "qwen3": {
        "attention": {
            "kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 24, "qk_norm": "head",
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("family", SHAPES)
def test_rewards_are_equal_there_and_after_reading_back(family, tiny, tokenizer, tmp_path):
    model = judge(tiny, **SHAPES[family])
    native.save(model, tokenizer, tmp_path / "reward")
    out = export(tmp_path / "reward", tmp_path / "out", "float32")
    settings, card = read_json(out / "config.json"), (out / "README.md").read_text()
    assert "A reward model made with Culm" in card
    assert "pipeline_tag: text-classification" in card
    assert "culm.load" not in card
    assert settings["model_type"] == family
    assert settings["architectures"][0].endswith("ForSequenceClassification")
    wanted = rewards_here(model, dialogues(tokenizer))
    assert max(wanted) - min(wanted) > 0.01
    assert rewards_there(out, tokenizer) == pytest.approx(wanted, abs=1e-5)
    back, _ = read(out, "cpu", torch.float32)
    assert back.config.resolved() == model.config.resolved()
    assert rewards_here(back, dialogues(tokenizer)) == pytest.approx(wanted, abs=1e-6)


def played(tokens: list[int]) -> Trajectory:
    one = answered("", "a")
    one.tokens = tokens
    return one


def test_a_folder_is_a_reward(tiny, tokenizer, tmp_path):
    model = judge(tiny)
    write_export(model, tokenizer, tmp_path / "out", "float32")
    config = ModelScore(path=str(tmp_path / "out"))
    score = config.build(lambda _, path: read(path, "cpu", torch.float32)[0], 0)
    rows = dialogues(tokenizer)
    assert score([played(row) for row in rows]) == pytest.approx(
        rewards_here(model, rows), abs=1e-5
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_of_theirs_is_read(name, tokenizer, tmp_path):
    """Of every family, and it is written again as they wrote it."""
    config = peer_of(name).config
    config.num_labels, config.pad_token_id = 1, 0
    kind = transformers.AutoModelForSequenceClassification
    peer = strong(kind.from_config(config, attn_implementation="eager"))
    folder = saved(peer, tokenizer, tmp_path / "theirs")
    model, _ = hf.load(folder)
    assert model.config.head == "scalar"
    tokens = torch.randint(3, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = peer(tokens).logits[:, 0]
        assert (model.eval().scores(tokens)[:, -1] - wanted).abs().max() <= 1e-4
    hf.export(model, tokenizer, tmp_path / "out", family=FAMILIES[name][0])
    again = kind.from_pretrained(tmp_path / "out")
    assert type(again) is type(peer)
    own = peer.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in again.state_dict().items())


def test_several_heads_are_written_as_their_mean(tiny, tokenizer, tmp_path, capsys):
    model = judge(tiny, scores=3)
    write_export(model, tokenizer, tmp_path / "out", "float32")
    assert "its 3 heads are written as one, their mean" in capsys.readouterr().err
    wanted = rewards_here(model, dialogues(tokenizer))
    assert rewards_there(tmp_path / "out", tokenizer) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("pad", ["<|end|>", "<|endoftext|>"])
def test_padding_is_no_end_of_a_turn(pad, tiny, tokenizer, tmp_path):
    """They find the last token of a row by the id of the padding."""
    settings = {**tokenizer.settings, "pad_token": pad}
    inner = tokenizers.Tokenizer.from_str(tokenizer.json)
    own = Tokenizer(inner, settings, tokenizer.template, tokenizer.stop_ids)
    model = judge(tiny)
    write_export(model, own, tmp_path / "out", "float32")
    there = rewards_there(tmp_path / "out", own)
    assert there == pytest.approx(rewards_here(model, dialogues(own)), abs=1e-5)


def test_padding_that_only_ends_of_turns_are_left_for_is_refused(tiny, tokenizer, tmp_path):
    settings = {**tokenizer.settings, "pad_token": "<|end|>"}
    inner = tokenizers.Tokenizer.from_str(tokenizer.json)
    own = Tokenizer(inner, settings, tokenizer.template, tokenizer.specials.values())
    with pytest.raises(SettingError, match=r"pad_token: <\|end\|> ends a turn too"):
        write_export(judge(tiny), own, tmp_path / "out", "float32")


def test_a_classifier_of_several_labels_is_refused(tiny, tokenizer, tmp_path):
    write_export(judge(tiny), tokenizer, tmp_path / "out", "float32")
    settings = read_json(tmp_path / "out" / "config.json")
    for changed, count in (({"id2label": {"0": "a", "1": "b"}}, 2), ({"id2label": None}, 2)):
        write_json(tmp_path / "out" / "config.json", {**settings, **changed})
        with pytest.raises(SettingError, match=f"id2label: a classifier of {count} labels is not"):
            hf.load(tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"architectures": "LlamaForSequenceClassification"}, ""),
        ({"architectures": ["LlamaForCausalLM", "LlamaForSequenceClassification"]}, ""),
        ({"id2label": None, "num_labels": 1}, ""),
        ({"architectures": 3}, r"unknown: score\.weight"),
        ({"architectures": {"a": 1}}, r"unknown: score\.weight"),
        ({"architectures": "MyLlamaForSequenceClassification"}, r"unknown: score\.weight"),
        ({"id2label": None, "num_labels": "1"}, "a classifier of '1' labels is not read"),
    ],
)
def test_settings_of_odd_types_are_read_or_refused(changed, says, tiny, tokenizer, tmp_path):
    write_export(judge(tiny), tokenizer, tmp_path / "out", "float32")
    path = tmp_path / "out" / "config.json"
    write_json(path, {**read_json(path), **changed})
    if not says:
        assert hf.load(tmp_path / "out")[0].config.head == "scalar"
        return
    with pytest.raises(SettingError, match=says):
        hf.load(tmp_path / "out")


def test_what_has_no_classifier_is_refused(tiny, tokenizer, tmp_path):
    model = judge(tiny)
    with pytest.raises(NoFamilyError, match="GGUF files hold language models"):
        write_export(model, tokenizer, tmp_path / "m.gguf", "")
    odd = judge(tiny, attention={"kind": "deltanet", "heads": 2})
    with pytest.raises(NoFamilyError, match="llama models have no 'deltanet'"):
        write_export(odd, tokenizer, tmp_path / "odd", "float32")
    LoRA(rank=2).apply(model, 0)
    with pytest.raises(NoFamilyError, match=r"model\.head: adapter files are for language models"):
        peft.save(model, LoRA(rank=2), tmp_path / "adapter", None)
    assert not list(tmp_path.iterdir())


def first_reward(path: Path, stage, folder: Path) -> float:
    """What a run of reinforcement learning reports at its first step."""
    settings = stage("grpo", steps=1)
    settings["train"]["reward"] = {"kind": "model", "path": str(path)}
    run = train(parse(RunConfig, {**settings, "folder": str(folder)}))
    first, *_ = (run.folder / "metrics.jsonl").read_text().splitlines()
    return json.loads(first)["reward"]


@pytest.mark.slow
def test_an_exported_run_rewards_and_is_trained_further(stage, tmp_path):
    reward = tmp_path / "reward"
    train(parse(RunConfig, {**stage("reward", steps=2), "folder": str(reward)}))
    out = export(reward, tmp_path / "out", "float32")
    found = [first_reward(path, stage, tmp_path / path.name / "rl") for path in (reward, out)]
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    further = {**stage("reward", steps=1), "start": str(out), "folder": str(tmp_path / "further")}
    results = train(parse(RunConfig, further)).results
    assert "accuracy" in json.dumps(results)
