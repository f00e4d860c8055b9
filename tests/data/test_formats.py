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
from culm.data.format.ranking import RankingFormat
from culm.data.format.steps import StepsFormat
from culm.data.settings import DataConfig
from culm.source import open_source
from culm.source.record import LeftOut, Record
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


def test_an_instruction_with_several_instances(tokenizer):
    """Each is a dialogue of its own."""
    instances = [{"input": "", "output": "a"}, {"input": "x", "output": "b"}]
    record = Record({"id": "seed_task_0", "instruction": "q", "instances": instances}, "line 1")
    texts = [text_of(tokenizer, one) for one in examples(ChatFormat(), record, tokenizer)]
    assert texts == [ASKED, "<|user|>q\n\nx<|end|><|assistant|>b<|end|>"]
    assert record.unread == {"id"}
    for wrong in ([], ["a"], [{"input": "x"}], [{"output": "a", "label": 0}]):
        with pytest.raises(ValueError, match=r"instances: (not a list|'label')|no dialogue in it"):
            list(ChatFormat().contents({"instruction": "q", "instances": wrong}))


def test_turns_of_a_user_with_their_answers(tokenizer):
    record = Record({"question_id": 1, "turns": ["q", "r"], "reference": ["a", "b"]}, "line 1")
    [example] = examples(ChatFormat(), record, tokenizer)
    assert text_of(tokenizer, example) == f"{ASKED}<|user|>r<|end|><|assistant|>b<|end|>"
    assert record.unread == {"question_id"}
    with pytest.raises(LeftOut, match="questions without answers"):
        list(ChatFormat().contents({"turns": ["q"]}))
    for wrong in (["a", "b"], "a", [1]):
        with pytest.raises(ValueError, match="turns and reference: not"):
            list(ChatFormat().contents({"turns": ["q"], "reference": wrong}))


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


@pytest.mark.parametrize("graded", [{"scores": [2, 7, 2]}, {"ranks": [2, 1, 2]}])
def test_pairs_of_ranked_lists(tokenizer, graded):
    """Each answer with each worse one; two that are equally good are not compared."""
    record = {"prompt": "q", "responses": ["b", "a", "c"], **graded}
    found = [
        text_of(tokenizer, one, learned=True) for one in examples(PairFormat(), record, tokenizer)
    ]
    assert found == ["a<|end|>", "b<|end|>", "a<|end|>", "c<|end|>"]
    with pytest.raises(ValueError, match="no number in 'margin'"):
        PairFormat(margin="margin").numbers(record)


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


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "completions": ["a", "b", "c"], "scores": [1, 3, 0.5]},
        {"prompt": dialogue("")[:1], "responses": ["a", "b", "c"], "ranks": [2, 1, 3]},
        {
            "instruction": "q",
            "completions": [[{"role": "assistant", "content": one}] for one in "abc"],
            "ranks": [2, 1, 3],
        },
    ],
)
def test_rankings(tokenizer, record):
    """Higher is better, whether it came from scores or from ranks."""
    format = RankingFormat()
    found = list(examples(format, record, tokenizer))
    assert text_of(tokenizer, found[0]) == ASKED
    assert [text_of(tokenizer, one, learned=True)[0] for one in found] == ["a", "b", "c"]
    numbers = format.numbers(record)
    assert [place for _, place in numbers] == [0, 1, 2]
    assert sorted(range(3), key=lambda n: -numbers[n][0]) == [1, 0, 2]


WHOLE = [dialogue(one) for one in "abc"]


@pytest.mark.parametrize(
    ("format", "record"),
    [
        (RankingFormat(), {"prompt": "q", "responses": WHOLE, "ranks": [1, 2, 3]}),
        (RankingFormat(), {"prompt": dialogue("")[:1], "responses": WHOLE, "ranks": [1, 2, 3]}),
        (RankingFormat(), {"responses": WHOLE, "ranks": [1, 2, 3]}),
        (PairFormat(), {"prompt": "q", "responses": WHOLE, "ranks": [1, 2, 3]}),
        (PairFormat(), {"prompt": " q ", "chosen": WHOLE[0], "rejected": WHOLE[1]}),
        (LabelFormat(), {"prompt": dialogue("")[:1], "completion": WHOLE[0], "label": True}),
        (ChatFormat(), {"prompt": "q", "completion": WHOLE[0]}),
    ],
)
def test_a_question_that_its_answer_repeats_is_read_once(tokenizer, format, record):
    first, *_ = examples(format, record, tokenizer)
    assert text_of(tokenizer, first) == ASKED


def test_rankings_of_different_questions_are_left_out():
    other = [{"role": "user", "content": "another"}, WHOLE[1][1]]
    with pytest.raises(LeftOut, match="different questions"):
        list(RankingFormat().contents({"responses": [WHOLE[0], other], "ranks": [1, 2]}))


@pytest.mark.parametrize(("score", "kind"), [("3", "text"), (None, "null"), ([1], "a list")])
def test_scores_that_are_no_numbers_are_named(score, kind):
    record = {"prompt": "q", "responses": ["a", "b"], "scores": [1, score]}
    for format in (RankingFormat(), PairFormat()):
        with pytest.raises(ValueError, match=f"no number in 'scores', but {kind} in its list"):
            list(format.contents(record))


def test_a_file_may_have_pairs_and_ranked_lists(tokenizer):
    """Tables have a column for each field, with null where a record has none."""
    listed = {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2], "scores": None}
    paired = {"prompt": "q", "chosen": "a", "rejected": "b"}
    empty = dict.fromkeys((*listed, *paired))
    for record in (listed, paired):
        first, other = examples(PairFormat(), {**empty, **record}, tokenizer)
        assert text_of(tokenizer, first) == ASKED
        assert text_of(tokenizer, other, learned=True) == "b<|end|>"


@pytest.mark.parametrize("field", ["label", "score", "rating"])
def test_a_number_of_an_answer(field):
    record = {"prompt": "q", "completion": "a", field: 2.5}
    assert LabelFormat().numbers(record) == [(2.5,)]
    with pytest.raises(ValueError, match="no number in 'stars'"):
        LabelFormat(label="stars").numbers(record)


@pytest.mark.parametrize("separator", ["\n", "\n\n", " ки "])
def test_steps_end_with_their_separator_and_the_last_with_the_turn(tokenizer, separator):
    """What is read up to each end is the answer up to that step, and nothing of the next."""
    steps = ["1 + 1 = 2", "ки 2 + 1 = 3", "so 3"]
    format = StepsFormat(separator=separator)
    record = {"prompt": "1 + 1 + 1?", "completions": steps, "labels": [True, 0.5, False]}
    assert format.numbers(record) == [(1.0, 0.5, 0.0)]
    [example] = examples(format, record, tokenizer)
    ends = [place for place, end in enumerate(example.learned) if end]
    assert len(ends) == 3
    asked = "<|user|>1 + 1 + 1?<|end|><|assistant|>"
    for number, end in enumerate(ends[:2], start=1):
        read = tokenizer.decode(example.tokens[: end + 1], specials=True)
        whole = asked + separator.join(steps[:number]) + separator
        assert whole.startswith(read)
        assert len(read) >= len(whole) - 1  # a space may belong to the next word
    assert ends[2] == len(example.tokens) - 1
    assert tokenizer.decode(example.tokens, specials=True) == (
        asked + separator.join(steps) + "<|end|>"
    )


def test_steps_that_end_in_one_token_are_refused(tokenizer):
    record = {"prompt": "q", "completions": ["a\n", "\n", "b"], "labels": [1, 1, 0]}
    with pytest.raises(ValueError, match="a step that is no text, or empty"):
        list(examples(StepsFormat(), record, tokenizer))
    record = {"prompt": "q", "completions": ["the", "t", "he"], "labels": [1, 1, 0]}
    with pytest.raises(ValueError, match="two steps end in one token"):
        list(examples(StepsFormat(separator=""), record, tokenizer))


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
        (
            StepsFormat(),
            {"prompt": [{"role": "assistant", "content": "x"}], "steps": ["a"], "labels": [1]},
            "its question ends with an answer",
        ),
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
        (RankingFormat(), {"prompt": "q", "completions": "a"}, "no list of answers in completions"),
        (RankingFormat(), {"prompt": "q", "completions": ["a", "b"]}, "no list of numbers in 'sco"),
        (RankingFormat(), {"completions": ["a", "b"], "ranks": [1, 2]}, "no question in 'prompt'"),
        (
            RankingFormat(),
            {"prompt": "q", "completions": ["a", "b"], "ranks": [1]},
            "it has 2 answers and 1 scores or ranks",
        ),
        (
            RankingFormat(),
            {"prompt": "q", "completions": ["a", 3], "ranks": [1, 2]},
            "'completions' has something other than a text or messages",
        ),
        (
            RankingFormat(),
            {"prompt": "q", "completions": ["a", "b"], "ranks": [1, "x"]},
            "no number",
        ),
        (
            RankingFormat(),
            {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]},
            "no answer that",
        ),
        (
            RankingFormat(),
            {"prompt": "q", "responses": ["a", "a"], "scores": [1, 2]},
            "same answer tw",
        ),
        (StepsFormat(), {"prompt": "q", "completions": "a"}, "no list of steps in completions"),
        (StepsFormat(), {"prompt": "q", "steps": ["a", ""], "labels": [1, 0]}, "no text, or empty"),
        (
            StepsFormat(),
            {"prompt": "q", "steps": ["a"], "labels": [-1]},
            "the label -1 in 'labels'",
        ),
        (StepsFormat(), {"prompt": "q", "steps": ["a"], "labels": [1, 0]}, "1 steps and 2 labels"),
        (StepsFormat(), {"prompt": "q", "steps": [], "labels": []}, "answers have no steps"),
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
        ("sft/alpaca_en_demo.json", ChatFormat(), True),
        ("sft/seed_tasks.jsonl", ChatFormat(), True),
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
KEYS += ["completions", "responses", "scores", "ranks", "labels", "score", "rating"]


@trials(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6),
    st.sampled_from(
        [
            ChatFormat(),
            PairFormat(),
            LabelFormat(),
            PromptFormat(),
            DocumentFormat(),
            RankingFormat(),
            StepsFormat(),
        ]
    ),
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
