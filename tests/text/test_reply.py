"""Tokens of a reply as text, in pieces."""

import pytest

from culm.text.reply import Reply


def shown(tokenizer, text: str, stops: list[str]) -> tuple[list[str], bool]:
    reply, ids = Reply(tokenizer, stops), tokenizer.encode(text)
    pieces = [reply.push(id) for id in ids]
    return [*pieces, reply.finish()], reply.stopped


def test_characters_are_held_until_complete(tokenizer):
    pieces, stopped = shown(tokenizer, "é🙂!", [])
    assert pieces == ["", "é", "", "", "", "🙂", "!", ""]
    assert not stopped


def test_an_unfinished_character_is_flushed(tokenizer):
    reply = Reply(tokenizer)
    assert reply.push(0xF0) == ""
    assert reply.push(0x9F) == ""
    assert reply.finish() == "\ufffd"


def test_stop_strings_match_over_tokens_and_are_held_back(tokenizer):
    assert shown(tokenizer, "ab\n\nUser: x", ["\n\nUser"]) == (["a", "b"] + [""] * 10, True)
    assert shown(tokenizer, "a\n\nUs!", ["\n\nUser"])[0] == ["a", "", "", "", "", "\n\nUs!", ""]
    assert shown(tokenizer, "aab", ["aab"]) == (["", "", "", ""], True)
    assert shown(tokenizer, "aaab", ["aab"]) == (["", "", "a", "", ""], True)
    assert shown(tokenizer, "xy", ["yz"]) == (["x", "", "y"], False)


def test_an_empty_stop_string_is_refused(tokenizer):
    with pytest.raises(ValueError, match="stop: "):
        Reply(tokenizer, [""])
