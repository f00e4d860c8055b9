"""Every shape of record that the field writes, and errors that name what was found."""

import contextlib

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as trials
from hypothesis import strategies as st

from culm.config import SettingError, parse
from culm.data.format import Format
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.format.prompt import PromptFormat
from culm.data.settings import DataConfig
from culm.source import open_source
from culm.source.record import Record
from culm.tokenizer.tokenizer import Tokenizer

ASKED = "<|user|>q<|end|><|assistant|>a<|end|>"


def examples(format, record, tokenizer):
    return format.encode(list(format.contents(record)), tokenizer)


def text_of(tokenizer, example, learned=False):
    pairs = zip(example.tokens, example.learned, strict=True)
    return tokenizer.decode([id for id, mine in pairs if mine or not learned], specials=True)


def test_documents(tokenizer):
    [example] = examples(DocumentFormat(), {"text": "héllo", "id": 3}, tokenizer)
    assert text_of(tokenizer, example) == "héllo<|endoftext|>"
    assert all(example.learned)
    assert not list(examples(DocumentFormat(), {"text": " \n"}, tokenizer))
    cut = DocumentFormat(text="body", max_characters=8)
    parts = examples(cut, {"body": "one two six"}, tokenizer)
    assert [text_of(tokenizer, p) for p in parts] == ["one two<|endoftext|>", " six<|endoftext|>"]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "output": "a"},
        {"prompt": "q", "completion": "a<|endoftext|>"},
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
    ],
)
def test_dialogues(tokenizer, record):
    [example] = examples(ChatFormat(), record, tokenizer)
    assert text_of(tokenizer, example) == ASKED
    assert text_of(tokenizer, example, learned=True) == "a<|end|>"


def test_an_instruction_with_input_and_system(tokenizer):
    record = {"instruction": "i", "input": "x", "output": "o", "system": "s"}
    [example] = examples(ChatFormat(), record, tokenizer)
    expected = "<|system|>s<|end|><|user|>i\n\nx<|end|><|assistant|>o<|end|>"
    assert text_of(tokenizer, example) == expected


def dialogue(answer):
    return [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "input": "", "output": "z", "chosen": "a", "rejected": "b"},
        {"chosen": dialogue("a"), "rejected": dialogue("b")},
        {"prompt": "q", "chosen": dialogue("a"), "rejected": dialogue("b")},
        {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ],
)
def test_pairs(tokenizer, record):
    chosen, rejected = examples(PairFormat(), record, tokenizer)
    assert text_of(tokenizer, chosen) == ASKED
    assert text_of(tokenizer, chosen, learned=True) == "a<|end|>"
    assert text_of(tokenizer, rejected, learned=True) == "b<|end|>"


@pytest.mark.parametrize(
    ("format", "record"),
    [
        (PairFormat(), {"prompt": "q", "chosen": "a", "rejected": "bb"}),
        (LabelFormat(), {"prompt": "q", "completion": "a", "label": True}),
    ],
)
def test_an_answer_ends_where_a_completion_would(tokenizer, format, record):
    """Many templates write a line break behind the end token, which no completion has."""
    template = (
        "{%- for one in messages %}{{- '<|' + one.role + '|>' + one.content + '<|end|>\\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{% endif %}"
    )
    broken = Tokenizer(tokenizer._marked, {"eos_token": "<|end|>"}, template)
    for example in examples(format, record, broken):
        assert example.tokens[-1] in broken.stop_ids
        assert example.learned[-1]
        assert text_of(broken, example).startswith("<|user|>q<|end|>\n<|assistant|>")


def test_pairs_learn_from_the_last_turn_only(tokenizer):
    long, other = dialogue("first") + dialogue("a"), dialogue("first") + dialogue("b")
    chosen, _ = examples(PairFormat(), {"chosen": long, "rejected": other}, tokenizer)
    assert text_of(tokenizer, chosen, learned=True) == "a<|end|>"


def test_prompts(tokenizer):
    format = PromptFormat(prompt="question")
    record = {"question": "q", "answer": "a"}
    assert [turn["content"] for turn in next(format.contents(record)).messages] == ["q", "a"]
    [example] = examples(format, record, tokenizer)
    assert text_of(tokenizer, example) == ASKED


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        (DocumentFormat(), {"body": "x"}, "no text in 'text'; it has body"),
        (DocumentFormat(), {}, "it is empty"),
        (ChatFormat(), {"x": 1, "y": 2}, "no dialogue in it .*; it has x"),
        (ChatFormat(), {"messages": [{"content": "a"}]}, "a message has no role"),
        (ChatFormat(), {"messages": ["a"]}, "a message is text, not a role and a content"),
        (ChatFormat(), {"messages": dialogue("a")[:1]}, "nothing would be learned"),
        (PairFormat(), {"prompt": "q", "chosen": "a"}, "no answer in 'rejected'"),
        (PairFormat(), {"chosen": "a", "rejected": "b"}, "no question in 'prompt'"),
        (PairFormat(), {"messages": dialogue("a"), "label": True}, "culm train kto learns from"),
        (
            PairFormat(),
            {"prompt": "q", "completion": "a", "label": False},
            "one answer with a label",
        ),
        (PromptFormat(), {"prompt": "q"}, "no text or number in 'answer'; it has"),
        (PromptFormat(), {"prompt": [], "answer": 1}, "no text or number in 'prompt'"),
    ],
)
def test_other_shapes_are_named(tokenizer, format, record, message):
    with pytest.raises(ValueError, match=message):
        list(examples(format, record, tokenizer))


@pytest.mark.parametrize(
    ("file", "format", "learns"),
    [
        ("sft/instruction-data.json", ChatFormat(), True),
        ("sft/identity.json", ChatFormat(), True),
        ("sft/sft_sample.jsonl", ChatFormat(), True),
        ("preferences/preference_sample.jsonl", PairFormat(), True),
        ("preferences/instruction-data-with-preference.json", PairFormat(), True),
        ("preferences/dpo_en_demo.json.gz", PairFormat(), True),
        ("preferences/hh_harmless-base_test.jsonl.gz", PairFormat(), True),
        ("preferences/stack_exchange_paired_tiny.json", PairFormat(), True),
        (
            "preferences/stack_exchange_paired_tiny.json",
            PairFormat(prompt="question", chosen="response_j", rejected="response_k"),
            True,
        ),
        ("preferences/kto_en_demo.json.gz", LabelFormat(), True),
        ("rl_verifiable/gsm8k_train.jsonl.gz", PromptFormat(prompt="question"), True),
        ("web_c4_wiki/c4_demo.jsonl.gz", DocumentFormat(), False),
        ("novels/novels-08.jsonl.gz", DocumentFormat(), False),
    ],
)
def test_real_files(shared, tokenizer, file, format, learns):
    for number, record in enumerate(open_source(shared(file))):
        for example in examples(format, record, tokenizer):
            assert any(example.learned)
            ends = tokenizer.end_of_turn if learns else tokenizer.end_of_text
            assert example.tokens[-1] == ends
        if number == 20:
            break


def test_settings():
    data = parse(DataConfig, {"path": "stdlib"})
    assert data.path == ("stdlib",)
    assert data.format == DocumentFormat()
    assert data.open().name == "the Python standard library"
    assert parse(Format, "chat") == ChatFormat()
    with pytest.raises(SettingError, match=r"data\.path: give one of path, prepared and tasks"):
        parse(DataConfig, {}, "data")
    with pytest.raises(SettingError, match=r"data\.format\.kind: 'chta' is not one of"):
        parse(DataConfig, {"path": "x", "format": "chta"}, "data")
    with pytest.raises(SettingError, match=r"data\.held_out: "):
        parse(DataConfig, {"path": "x", "held_out": 0.9}, "data")


ROLES = st.sampled_from(["user", "assistant", "system", "tool"])
LEAVES = st.sampled_from(
    [None, "", "q", "\n\nHuman: q\n\nAssistant: a", 0, True, 1.5, [], {}, ["q"], [["q", "a"]]]
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES | LEAVES,
        "content": LEAVES,
        "from": ROLES | LEAVES,
        "value": LEAVES,
        "weight": LEAVES,
        "tool_calls": LEAVES,
    },
)
VALUES = LEAVES | MESSAGES | st.lists(MESSAGES, max_size=3)
DIALOGUE_KEYS = ["messages", "prompt", "instruction", "input", "completion", "history", "tools"]
KEYS = [*DIALOGUE_KEYS, "system", "chosen", "rejected", "label", "answer", "question", "text"]


@trials(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
    st.sampled_from([ChatFormat(), PairFormat(), LabelFormat(), PromptFormat(), DocumentFormat()]),
)
def test_any_record_is_read_or_refused(tokenizer, record, format):
    """Nothing but a ValueError: it alone gets the place of the record, and can be skipped."""
    read = Record(record, "records.jsonl: line 1")
    with contextlib.suppress(ValueError):
        format.numbers(read)
        list(examples(format, read, tokenizer))


@pytest.mark.parametrize("answer", [{}, {"content": None}, {"content": [3]}, {"content": 1.5}])
def test_an_answer_without_text_is_refused(answer):
    record = {"chosen": {"role": "assistant", **answer}, "rejected": "a"}
    with pytest.raises(ValueError, match=r"no question in 'prompt'|only text can be read"):
        list(PairFormat().contents(record))


def test_a_system_message_of_a_record_without_other_messages_stays(tokenizer):
    record = {"system": "s", "messages": [], "completion": "a"}
    with pytest.raises(ValueError, match="no assistant turn"):
        list(examples(ChatFormat(), record, tokenizer))
