import itertools

import numpy as np
import pytest
import torch

from culm.config import SettingError
from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.text.language_model import LanguageModel
from culm.text.load import load


def test_encode_and_decode_are_inverse(model):
    text = "Größe 東京 🙂 <|end|>\n"
    assert model.decode(model.encode(text)) == text


def test_logits_and_logprobs_agree(model):
    ids = model.encode("hello")
    logits = model.logits(ids)
    assert logits.shape == (5, model.tokenizer.vocabulary)
    assert logits.dtype == torch.float32
    picked = logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(model.logprobs(ids), picked, atol=1e-5, rtol=0)
    assert model.logprobs(ids[:1]).shape == (0,)


@pytest.mark.parametrize("ids", [[], [3, 9999], [-1]])
def test_bad_ids_are_refused(model, ids):
    with pytest.raises(ValueError, match="ids: "):
        model.logits(ids)


def test_generate_text_ids_and_batches(model):
    one = model.generate("abc", max_tokens=12, temperature=0)
    assert isinstance(one, str)
    assert one == model.generate(model.encode("abc"), max_tokens=12, temperature=0)
    assert [one, model.generate("x", max_tokens=12, temperature=0)] == model.generate(
        ["abc", "x"], max_tokens=12, temperature=0
    )
    assert model.generate([model.encode("abc")], max_tokens=12, temperature=0) == [one]
    assert model.generate("", max_tokens=3, temperature=0) is not None


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_keys_and_values_in_few_bits(model, kind):
    small = LanguageModel(model.model, model.tokenizer, cache=kind)
    exact = [m.generate("abc", max_tokens=20, temperature=0) for m in (small, model)]
    assert exact[0][:3] == exact[1][:3]  # the newest tokens are kept as they are
    with pytest.raises(SettingError, match="cache: 'int2' is not one of plain, int8, int4"):
        LanguageModel(model.model, model.tokenizer, cache="int2").generate("abc")


def test_ids_may_be_arrays_and_tensors(model):
    ids = model.encode("abc")
    said = model.generate(ids, max_tokens=12, temperature=0)
    for row in (np.array(ids), torch.tensor(ids), tuple(ids), list(np.array(ids, np.int32))):
        assert model.generate(row, max_tokens=12, temperature=0) == said
        assert "".join(model.stream(row, max_tokens=12, temperature=0)) == said
        assert model.decode(row) == "abc"
        assert torch.equal(model.logits(row), model.logits(ids))
        assert torch.equal(model.logprobs(row), model.logprobs(ids))
    for batch in (np.array([ids, ids]), torch.tensor([ids, ids]), [np.array(ids), ids]):
        assert model.generate(batch, max_tokens=12, temperature=0) == [said, said]
    assert model.generate([]) == []


def test_prompts_may_come_one_by_one(model):
    said = model.generate(["abc", "x"], max_tokens=12, temperature=0)
    assert model.generate(iter(["abc", "x"]), max_tokens=12, temperature=0) == said


@pytest.mark.parametrize("prompt", [b"abc", {"abc": 1}, 3, None])
def test_what_is_no_prompt_is_refused_in_a_sentence(model, prompt):
    with pytest.raises(ValueError, match=r"^prompt: give a text, token ids, or a list of either"):
        model.generate(prompt)


@pytest.mark.parametrize("messages", [[], ["hi"], {"role": "user"}, None])
def test_what_is_no_dialogue_is_refused_in_a_sentence(model, messages):
    for ask in (model.chat, model.chat_stream):
        with pytest.raises(ValueError, match=r"^messages: give a question, or a list of"):
            ask(messages)


@pytest.mark.parametrize("ids", [[0.5], [1, "a"], np.array([1.0]), torch.ones(2), [[[1]]], [None]])
def test_what_is_no_id_is_refused_in_a_sentence(model, ids):
    with pytest.raises(ValueError, match=r"^ids: these are not token ids; give a flat list"):
        model.generate(ids)


@pytest.mark.parametrize(
    ("ids", "words"), [([3, 9999], "prompt: token 9999"), ([[]], "empty"), (np.array([]), "empty")]
)
def test_ids_that_cannot_be_continued_are_refused(model, ids, words):
    with pytest.raises(ValueError, match=words):
        model.generate(ids, max_tokens=2)


def test_more_tokens_than_the_context_are_scored(model):
    ids = model.encode("ab" * 100)
    assert model.logits(ids).shape[0] == 200 > model.context
    assert model.logits(ids).isfinite().all()
    torch.testing.assert_close(model.logits(ids)[:100], model.logits(ids[:100]))
    assert model.logprobs(np.array(ids)).shape == (199,)


def test_seeds_decide_and_differ_in_a_batch(model):
    first = model.generate("abc", max_tokens=20, seed=4)
    assert first == model.generate("abc", max_tokens=20, seed=4)
    assert first != model.generate("abc", max_tokens=20, seed=5)
    batch = model.generate(["abc", "abc"], max_tokens=20, seed=4)
    assert batch == [first, model.generate("abc", max_tokens=20, seed=5)]


def test_stream_joins_to_generate(model):
    complete = model.generate("abc", max_tokens=40, seed=2)
    assert "".join(model.stream("abc", max_tokens=40, seed=2)) == complete


def test_stop_strings_end_the_text(model):
    complete = model.generate("abc", max_tokens=60, seed=2)
    stop = complete[9:12]
    cut = model.generate("abc", max_tokens=60, seed=2, stop=["never there", stop])
    assert cut == complete[: complete.index(stop)]


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_stop_string_ends_its_own_text_of_a_batch(model, first):
    """In whatever slot it stands: the others move up."""
    prompts = ["abc", "xyz!", "hello there"]
    complete = model.generate(prompts, max_tokens=12, temperature=0)
    stop = complete[first][3:5]
    cut = model.generate(prompts, max_tokens=12, temperature=0, stop=stop)
    assert cut == [text.split(stop)[0] for text in complete]
    assert len(cut[first]) < len(complete[first])


def test_the_context_may_be_shorter_than_the_models(model, tmp_path):
    native.save(model.model, model.tokenizer, tmp_path / "model")
    short = load(tmp_path / "model", context=16)
    assert short.context == 16
    said = short.generate("abc", max_tokens=None, temperature=0)
    assert model.generate("abc", max_tokens=13, temperature=0) == said
    with pytest.raises(ValueError, match="do not fit into the context of 16"):
        short.generate("abc", max_tokens=14)
    for wrong in (1, 129):
        with pytest.raises(ValueError, match=f"context: {wrong} is not between 2 and"):
            load(tmp_path / "model", context=wrong)


def test_chat_takes_a_text_or_messages(model):
    messages = [{"role": "user", "content": "hi"}]
    answer = model.chat("hi", max_tokens=15, temperature=0)
    assert answer == model.chat(messages, max_tokens=15, temperature=0)
    assert answer == "".join(model.chat_stream("hi", max_tokens=15, temperature=0))
    assert isinstance(model.chat("hi", seed=1), str)  # to the end of the context


def test_every_chat_is_greedy_unless_given(model):
    """As on the command line and on the chat page."""
    greedy = model.chat("hi", max_tokens=15, temperature=0)
    assert model.chat("hi", max_tokens=15) == greedy
    assert "".join(model.chat_stream("hi", max_tokens=15)) == greedy
    assert any(model.chat("hi", max_tokens=15, temperature=1.0, seed=s) != greedy for s in range(3))


def test_what_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match="context of 128"):
        model.generate("a" * 100, max_tokens=64)
    with pytest.raises(ValueError, match="context of 128"):
        model.generate("a" * 200, max_tokens=None)


def test_generation_ends_at_a_stop_token(model, tokenizer):
    class Says(torch.nn.Module):
        """A head that spells out a text and ends it."""

        def __init__(self, ids: list[int]) -> None:
            super().__init__()
            self.ids = iter(ids)

        def forward(self, x):
            scores = torch.zeros(*x.shape[:-1], tokenizer.vocabulary)
            scores[..., next(self.ids)] = 9.0
            return scores

    head, model.model.head = model.model.head, Says([*b"fine.", tokenizer.end_of_turn, *b"no"])
    try:
        assert model.chat("how are you?", temperature=0) == "fine."
    finally:
        model.model.head = head


# -- options ----------------------------------------------------------------------------------


def test_every_method_takes_every_sampling_setting(model):
    settings = {
        "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.97,
        "repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1, "seed": 3,
        "stop": "@@", "adapter": None,
    }  # fmt: skip
    text = model.generate("abc", 20, **settings)
    assert text == "".join(model.stream("abc", 20, **settings))
    assert model.chat("abc", 20, **settings) == "".join(model.chat_stream("abc", 20, **settings))
    for name in ("temperature", "top_k", "min_p", "repetition_penalty", "seed"):
        changed = {name: 100} if name in ("top_k", "seed") else {name: 0.99}
        assert model.generate("abc", 60, **{**settings, **changed}) != model.generate(
            "abc", 60, **settings
        ), name


def test_an_unknown_or_impossible_setting_is_named(model):
    for ask in (model.generate, model.stream, model.chat, model.chat_stream):
        with pytest.raises(TypeError, match=r"'tokens'; known: max_tokens, temperature, top_k"):
            ask("abc", tokens=3)
        with pytest.raises(ValueError, match=r"^top_p: 2 is outside 0.0..1.0"):
            ask("abc", top_p=2)


# -- dialogues -----------------------------------------------------------------------------------


def dialogue(turns: int) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": f"line {i} of it"} for i in range(2 * turns - 1)]


def test_a_dialogue_is_read_once(tokenizer):
    """The next turn reads what is new; the answers are those of a model that reads all of it."""
    attention = GQA(heads=2, kv_heads=1, window=16, qk_norm="head")
    config = TransformerConfig(
        vocabulary=tokenizer.vocabulary, width=32, layers=2, context=512, attention=(attention,)
    )
    kept = LanguageModel(config.build(seed=1), tokenizer)
    for turns in (1, 2, 3):
        fresh = LanguageModel(kept.model, tokenizer)
        for temperature in (0.0, 1.0):
            options = {"max_tokens": 20, "temperature": temperature, "seed": 3}
            assert kept.chat(dialogue(turns), **options) == fresh.chat(dialogue(turns), **options)
    prompt = tokenizer.chat.prompt(dialogue(3))
    engine = kept.dialogue_engine(len(prompt) + 20)
    read = engine.runner.tokens_read
    kept.chat(dialogue(3), max_tokens=20)
    assert engine.runner.tokens_read - read <= 32


def test_dialogues_side_by_side(model):
    """A stream keeps its engine to itself until it ends or is left."""
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 4}
    said = [model.chat(text, **options) for text in ("abc", "x")]
    assert all(said)
    streams = [model.chat_stream(text, **options) for text in ("abc", "x")]
    pieces = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(parts) for parts in zip(*pieces, strict=True)] == said
    left = model.chat_stream("abc", **options)
    next(left)
    engine = model._kept
    assert engine.busy
    left.close()
    assert not engine.busy
    assert model.chat("x", **options) == said[1]


def test_a_dialogue_after_the_weights_have_changed(tokenizer, model):
    config = model.model.config.model_copy(update={"context": 256})
    changed = LanguageModel(config.build(seed=1), tokenizer)
    options = {"max_tokens": 20, "temperature": 1.0, "seed": 4}
    before = changed.chat(dialogue(3), **options)
    changed.model.load_state_dict(config.build(seed=2).state_dict())
    expected = LanguageModel(config.build(seed=2), tokenizer).chat(dialogue(3), **options)
    assert changed.chat(dialogue(3), **options) == expected != before
