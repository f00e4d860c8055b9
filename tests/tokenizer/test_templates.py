# ruff: noqa: E501
"""Public chat templates: the text and the ids of transformers, and the answers that are learned."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from templates import SPECIALS, TEMPLATES, WORDS
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from culm.config import SettingError
from culm.tokenizer.tokenizer import Tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Ōsaka <b>"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
U1, U2 = {"role": "user", "content": "Hello, 2+2?"}, {"role": "user", "content": " Why? \n"}
A1, A2 = {"role": "assistant", "content": "It is 4."}, {"role": "assistant", "content": "As ever"}
THOUGHT = {"role": "assistant", "content": "<think>\nadd 2\n</think>\n\n4"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
EMPTY = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": 'say "4 °C" <now>'}
DIALOGUES = {
    "one": [U1, A1],
    "turns": [U1, A1, U2, A2],
    "thought": [U1, THOUGHT],
    "past thought": [U1, THOUGHT, U2, A2],
    "reasoning": [U1, {**A1, "reasoning_content": "2 and 2"}],
    "thinking": [U1, {**A1, "thinking": "2 and 2"}],
    "call": [U1, CALLS, RESULT, A1],
    "empty call": [U1, EMPTY, RESULT, A1],
    "switch": [{"role": "system", "content": "Be brief. /no_think"}, U1, A1],
    "line break": [U1, {"role": "assistant", "content": "\n4"}],
}
CASES = [(name, dialogue) for name in TEMPLATES for dialogue in DIALOGUES]


@pytest.fixture(scope="module", params=["gpt2", "llama 3", "no offsets"])
def inner(request: Any, texts: list[str]) -> tokenizers.Tokenizer:
    """Byte-level BPE, with patterns that join a space to a word."""
    made = tokenizers.Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=request.param == "gpt2")
    if request.param != "gpt2":
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        plain = pre_tokenizers.Sequence([split, plain])
    made.pre_tokenizer, made.decoder = plain, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False, initial_alphabet=alphabet)
    words = ["Hello It is As ever Why add say assistant user model system analysis final"] * 9
    made.train_from_iterator([*texts[:2], *words], trainer)
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIALS])
    if request.param != "no offsets":
        made.add_tokens([AddedToken(name, normalized=False) for name in WORDS])
    return made


def pair(inner: tokenizers.Tokenizer, name: str) -> tuple[Tokenizer, Any]:
    """Ours and that of transformers."""
    transformers = pytest.importorskip("transformers")
    template, ends = TEMPLATES[name]
    settings = {"bos_token": "<s>", "eos_token": "</s>"}
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=template, **settings
    )
    ours = Tokenizer(inner, {**settings, "end_of_text_id": inner.token_to_id("</s>")}, template)
    ours.stop_ids = frozenset(inner.token_to_id(end) for end in ends)
    return ours, theirs


@pytest.mark.parametrize(("name", "case"), CASES)
def test_ids_are_those_of_transformers(inner: tokenizers.Tokenizer, name: str, case: str) -> None:
    ours, theirs = pair(inner, name)
    messages = DIALOGUES[case]
    wanted = refused(lambda: theirs.apply_chat_template(messages, return_dict=False))
    if wanted is None:
        with pytest.raises(ValueError, match=r"chat template|would be lost"):
            ours.chat.prompt(messages)
        return
    found = refused(lambda: ours.chat.encode(messages, turns="last"), LOST)
    if found is not None:
        assert any(found.learned)
        assert found.ids == wanted or (name == "deepseek r1" and "thought" in case)
    for count in (n for n in range(1, len(messages)) if messages[n]["role"] == "assistant"):
        before = messages[:count]
        prompt = refused(
            lambda before=before: theirs.apply_chat_template(
                before, add_generation_prompt=True, return_dict=False
            )
        )
        assert prompt is None or refused(lambda b=before: ours.chat.prompt(b), LOST) in (
            None,
            prompt,
        )


LOST = r"would be lost|does not begin with it"


def refused(work: Callable[[], Any], reason: str = "") -> Any:
    """What it gives; None where it is refused for this reason."""
    try:
        return work()
    except Exception as error:
        if not re.search(reason, str(error)):
            raise
        return None


@pytest.mark.parametrize("name", ["llama 3.1", "qwen 2.5", "mistral"])
def test_tools_are_written(inner: tokenizers.Tokenizer, name: str) -> None:
    ours, theirs = pair(inner, name)
    wanted = theirs.apply_chat_template([U1], TOOLS, add_generation_prompt=True, return_dict=False)
    assert ours.chat.prompt([U1], TOOLS) == wanted


LEARNED = [
    ("llama 3.1", "turns", "It is 4.<|eot|>As ever<|eot|>"),
    ("llama 3.1", "call", '{"name": "weather", "parameters": {"town": "Ōsaka <b>"}}<|eot|>It is 4.<|eot|>'),
    ("qwen 2.5", "call", '<tool_call>\n{"name": "weather", "arguments": {"town": "Ōsaka <b>"}}\n</tool_call><|im_end|>It is 4.<|im_end|>'),
    ("qwen 3", "one", "<think>\n\n</think>\n\nIt is 4.<|im_end|>"),
    ("qwen 3", "thought", "<think>\nadd 2\n</think>\n\n4<|im_end|>"),
    ("qwen 3", "reasoning", "<think>\n2 and 2\n</think>\n\nIt is 4.<|im_end|>"),
    ("qwen 3", "past thought", "4<|im_end|><think>\n\n</think>\n\nAs ever<|im_end|>"),
    ("qwen 3.5", "thought", "add 2\n</think>\n\n4<|im_end|>"),
    ("mistral", "turns", " It is 4.</s> As ever</s>"),
    ("mistral", "call", '[TOOL_CALLS] [{"name": "weather", "arguments": {"town": "Ōsaka <b>"}}]</s> It is 4.</s>'),
    ("gemma", "turns", "It is 4.<end_of_turn>As ever<end_of_turn>"),
    ("phi", "turns", "It is 4.<|end|>As ever<|end|>"),
    ("deepseek", "turns", " It is 4.</s> As ever</s>"),
    ("deepseek r1", "thought", "add 2\n</think>\n\n4</s>"),
    ("harmony", "one", "<|channel|>final<|message|>It is 4.<|return|>"),
    ("harmony", "thinking", "<|channel|>analysis<|message|>2 and 2<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "case", "wanted"), LEARNED)
def test_what_is_learned(inner: tokenizers.Tokenizer, name: str, case: str, wanted: str) -> None:
    ours, _ = pair(inner, name)
    ids, learned, *_ = ours.chat.encode(DIALOGUES[case])
    kept = [id for id, one in zip(ids, learned, strict=True) if one]
    assert ours.decode(kept, specials=True) == wanted


NAMES = ["<|im_end|>", "<s>", "[INST]", "<|start|>assistant", "a<|eot|>\n", "x</s>y", "<|end|>b"]


@pytest.mark.parametrize("name", ["llama 3.1", "qwen 2.5", "gemma", "phi", "deepseek", "harmony"])
@pytest.mark.parametrize("evil", NAMES)
def test_names_of_special_tokens_stay_letters(
    inner: tokenizers.Tokenizer, name: str, evil: str
) -> None:
    """As transformers does it with sanitize_control_tokens."""
    ours, theirs = pair(inner, name)
    messages = [{"role": "user", "content": f"Hello {evil}?"}, A1, {**U1, "content": evil}, A2]
    wanted = theirs.apply_chat_template(messages, sanitize_control_tokens=True, return_dict=False)
    ids, learned, *_ = ours.chat.encode(messages, turns="last")
    assert ids == wanted
    kept = [id for id, one in zip(ids, learned, strict=True) if one]
    assert (
        ours.decode(kept, specials=True)
        .removeprefix("<|channel|>final<|message|>")
        .startswith((" As ever", "As ever"))
    )


def test_arguments_of_a_call_may_be_text(inner: tokenizers.Tokenizer) -> None:
    ours, _ = pair(inner, "qwen 2.5")
    function = {"name": "weather", "arguments": '{"town": "Ōsaka <b>"}'}
    written = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    assert ours.chat.encode([U1, written]) == ours.chat.encode([U1, CALLS])


def test_what_would_be_lost_is_refused(inner: tokenizers.Tokenizer) -> None:
    ours, _ = pair(inner, "phi")
    with pytest.raises(ValueError, match=r"messages\[1\]: .* does not write 'tool_calls'"):
        ours.chat.encode([U1, {**A1, "tool_calls": [CALL]}])
    with pytest.raises(ValueError, match=r"messages\[1\]: .* does not write 'reasoning_content'"):
        ours.chat.encode([U1, {**A1, "reasoning_content": "why"}])
    with pytest.raises(ValueError, match="tools: the chat template does not write them"):
        ours.chat.prompt([U1], TOOLS)
    assert ours.chat.encode([U1, {**A1, "id": 7, "tool_calls": []}]).unread == {"id"}


@pytest.mark.parametrize("key", ["weight", "train"])
def test_an_answer_of_weight_0_is_not_learned(inner: tokenizers.Tokenizer, key: str) -> None:
    ours, _ = pair(inner, "phi")
    ids, learned, unread, _ = ours.chat.encode([U1, {**A1, key: 0}, U2, {**A2, key: True}])
    kept = [id for id, one in zip(ids, learned, strict=True) if one]
    assert ours.decode(kept, specials=True) == "As ever<|end|>"
    assert not unread
    assert ids == ours.chat.encode([U1, A1, U2, A2]).ids
    with pytest.raises(ValueError, match="the weight of every answer is 0"):
        ours.chat.encode([U1, {**A1, key: False}])
    with pytest.raises(ValueError, match=rf"messages\[1\]\.{key}: 0.5 is not 0 or 1"):
        ours.chat.encode([U1, {**A1, key: 0.5}])
    other = {"weight": "train", "train": "weight"}[key]
    with pytest.raises(ValueError, match=rf"messages\[1\]\.{other}: '0' is not 0 or 1"):
        ours.chat.encode([U1, {**A1, key: 1, other: "0"}])
    with pytest.raises(ValueError, match=r"messages\[1\]: weight .* contradict each other"):
        ours.chat.encode([U1, {**A1, key: 1, other: False}])
    assert ours.chat.encode([U1, {**A1, key: 1, other: True}]).ids == ours.chat.encode([U1, A1]).ids


REASONING = ["reasoning_content", "thinking", "reasoning"]


@pytest.mark.parametrize("key", REASONING)
@pytest.mark.parametrize("name", ["qwen 3", "harmony"])
def test_reasoning_by_any_of_its_names(inner: tokenizers.Tokenizer, name: str, key: str) -> None:
    ours, theirs = pair(inner, name)
    for thought in ("2 and 2", ""):
        messages = [U1, {**A1, key: thought}]
        wanted = theirs.apply_chat_template(messages, return_dict=False)
        ids, _, unread, _ = ours.chat.encode(messages)
        assert ids == wanted
        assert not unread
        assert "2 and 2" in ours.decode(ids) or not thought


def test_reasoning_that_two_names_give_differently_is_not_lost(
    inner: tokenizers.Tokenizer,
) -> None:
    ours, _ = pair(inner, "qwen 3")
    both = {**A1, "reasoning_content": "2 and 2", "thinking": "2 and 2"}
    assert ours.chat.encode([U1, both]) == ours.chat.encode([U1, {**A1, "thinking": "2 and 2"}])
    with pytest.raises(ValueError, match=r"messages\[1\]: .* does not write 'thinking'"):
        ours.chat.encode([U1, {**both, "thinking": "4"}])
    other, _ = pair(inner, "phi")
    for key in REASONING:
        with pytest.raises(ValueError, match=rf"messages\[1\]: .* does not write '{key}'"):
            other.chat.encode([U1, {**A1, key: "2 and 2"}])


@pytest.mark.parametrize("start", ["<think>", "<think>\n", "<think> "])
def test_an_answer_that_begins_as_the_prompt_ends(inner: tokenizers.Tokenizer, start: str) -> None:
    ours, _ = pair(inner, "deepseek r1")
    ids, learned, *_ = ours.chat.encode([U1, {"role": "assistant", "content": start}])
    prompt = ours.chat.prompt([U1])
    assert ids[: len(prompt)] == prompt
    kept = [id for id, one in zip(ids, learned, strict=True) if one]
    assert ours.decode(kept, specials=True).strip() == "</s>"


def test_a_user_turn_is_never_learned_where_an_answer_has_no_end(
    inner: tokenizers.Tokenizer,
) -> None:
    ours, _ = pair(inner, "phi")
    endless = "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content }}{{ '<|end|>' if m.role == 'user' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    other = Tokenizer(inner, ours.settings, endless)
    other.stop_ids = ours.stop_ids
    with pytest.raises(ValueError, match="no end token follows the content of message 1"):
        other.chat.encode([U1, A1, {**U1, "content": "It is 4."}, A2])


def test_our_template_begins_like_a_document(inner: tokenizers.Tokenizer) -> None:
    made = tokenizers.Tokenizer.from_str(inner.to_str())
    start = ("<s>", made.token_to_id("<s>"))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    chat = Tokenizer(made, {"end_of_text_id": made.token_to_id("</s>")}).with_chat()
    ids = chat.chat.prompt([U1])
    assert chat.start == [start[1]] == ids[:1]
    assert chat.decode(ids, specials=True) == "<s><|user|>Hello, 2+2?<|end|><|assistant|>"


def test_variables_of_a_template(inner: tokenizers.Tokenizer, tmp_path: Path) -> None:
    ours, theirs = pair(inner, "qwen 3")
    plain = ours.with_template_arguments({"enable_thinking": False})
    plain.save(tmp_path)
    wanted = theirs.apply_chat_template(
        [U1], add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert plain.chat.prompt([U1]) == Tokenizer.load(tmp_path).chat.prompt([U1]) == wanted
    assert ours.chat.prompt([U1]) != wanted
    assert ours.template_fingerprint != plain.template_fingerprint
    switches = {**ours.settings, "eos_token": {"content": "</s>"}, "add_bos_token": True}
    same = Tokenizer(inner, switches, ours.template, ours.stop_ids)
    assert same.template_fingerprint == ours.template_fingerprint
    template = "{{ ('x' if add_bos_token is defined else eos_token) ~ messages[0].content }}"
    ids = Tokenizer(inner, switches, template, ours.stop_ids).chat.prompt([U1])
    assert ids[0] == inner.token_to_id("</s>")
    with pytest.raises(SettingError, match="has no variable 'enable_thinkng'"):
        _ = ours.with_template_arguments({"enable_thinkng": False}).chat


def test_a_dialogue_may_begin_with_the_assistant(inner: tokenizers.Tokenizer) -> None:
    ours, _ = pair(inner, "phi")
    ids, learned, *_ = ours.chat.encode([A1, U1, A2])
    kept = [id for id, one in zip(ids, learned, strict=True) if one]
    assert ours.decode(kept, specials=True) == "It is 4.<|end|>As ever<|end|>"


def test_an_answer_that_its_prompt_does_not_allow_is_named(inner: tokenizers.Tokenizer) -> None:
    ours, _ = pair(inner, "deepseek r1")
    with pytest.raises(ValueError, match=r"ends with '<\|Assistant\|><think>\\n', and this answer"):
        ours.chat.encode([U1, A1])
    with pytest.raises(ValueError, match=r"data\.format\.turns=last"):
        ours.chat.encode([U1, THOUGHT, U2, THOUGHT])
    assert ours.chat.encode([U1, THOUGHT, U2, THOUGHT], "last").learned


@pytest.mark.parametrize("why", ["2 and 2", "so: It is 4.", "It is 4."])
def test_reasoning_with_an_end_of_its_own_does_not_end_the_answer(
    inner: tokenizers.Tokenizer, why: str
) -> None:
    ours, _ = pair(inner, "harmony")
    ours.stop_ids |= {inner.token_to_id("<|end|>")}
    ids, learned, *_ = ours.chat.encode([U1, {**A1, "thinking": why}])
    kept = [id for id, one in zip(ids, learned, strict=True) if one]
    assert ours.decode(kept, specials=True) == (
        f"<|channel|>analysis<|message|>{why}<|end|><|start|>assistant"
        "<|channel|>final<|message|>It is 4.<|return|>"
    )


def test_a_system_message_that_only_prompts_show_is_refused_with_a_remedy_that_helps(
    inner: tokenizers.Tokenizer,
) -> None:
    """As in Mistral's template: it stands in the last question, if that is the last message."""
    ours, _ = pair(inner, "phi")
    only = "{% set system = messages[0].content %}{% for m in messages if m.role != 'system' %}{{ '<|' ~ m.role ~ '|>' }}{% if loop.last and m.role == 'user' %}{{ system }}{% endif %}{{ m.content ~ '<|end|>' }}{% endfor %}"
    other = Tokenizer(inner, ours.settings, only)
    other.stop_ids = ours.stop_ids
    system = {"role": "system", "content": "Be kind."}
    with pytest.raises(ValueError, match="put that text into the first question"):
        other.chat.encode([system, U1, A1])
    with pytest.raises(ValueError, match=r"data\.format\.turns=last"):
        other.chat.encode([system, U1, A1, U2, A2])
