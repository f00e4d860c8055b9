"""Forms of answers: whatever is sampled has the form, and every text of the form can be written."""

import json
import random
import re

import pytest
import torch

pytest.importorskip("llguidance")

from culm.text.grammar import Grammars, of_choice, of_json, of_regex
from culm.text.tools import Tool, ToolUse
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.train import BPE

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "tags": {"type": "array", "items": {"enum": ["a", "é/\\"]}, "maxItems": 3},
        "n": {"type": "number", "minimum": 0, "maximum": 10},
    },
    "required": ["name", "tags", "n"],
    "additionalProperties": False,
}
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request):
    if request.param == "bytes":
        return Bytes(specials=True).build()
    text = '{"name": "x", "tags": ["a"], "n": 1}\nplain words and numbers 123\n' * 50
    return BPE(vocabulary=400).build([text])


def sampled(tokenizer, form: str, seed: int, limit: int = 300) -> str | None:
    """A random text of the form; None if it did not come to an end."""
    grammar = Grammars(tokenizer, tokenizer.vocabulary + 5).compile(form)
    chance, output = random.Random(seed), []
    for _ in range(limit):
        allowed = grammar.mask(output)
        if not torch.is_tensor(allowed):
            return tokenizer.decode(output)
        token = chance.choice(allowed.nonzero()[:, 0].tolist())
        if token in tokenizer.stop_ids:
            return tokenizer.decode(output)
        output.append(token)
    return None


def test_random_texts_have_the_form(tokenizer):
    texts = [sampled(tokenizer, of_json(SCHEMA), seed) for seed in range(30)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > 20
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert {sampled(tokenizer, of_choice(["yes", 'n"o']), seed) for seed in range(20)} == {
        "yes", 'n"o',
    }  # fmt: skip
    for seed in range(10):
        assert re.fullmatch(r"[a-c]{2}/\d\n", sampled(tokenizer, of_regex("[a-c]{2}/\\d\n"), seed))


def test_every_text_of_the_form_can_be_written(tokenizer):
    value = {"name": "Zoë", "tags": ["é/\\", "a"], "n": 2.5}
    ids = tokenizer.encode(json.dumps(value, ensure_ascii=False))
    grammar = Grammars(tokenizer, tokenizer.vocabulary).compile(of_json(SCHEMA))
    for place, token in enumerate(ids):
        assert bool(grammar.mask(ids[:place])[token])
    ending = grammar.mask(ids)
    assert not torch.is_tensor(ending) or bool(ending[list(tokenizer.stop_ids)].all())


def test_masks_do_not_depend_on_what_was_asked_before(tokenizer):
    """Drafts and other orders: the constraint is a function of the output alone."""
    ids = tokenizer.encode('{"name": "ab", "tags": ["a", "a"], "n": 7}')
    compiler = Grammars(tokenizer, tokenizer.vocabulary)
    one, chance = compiler.compile(of_json(SCHEMA)), random.Random(0)
    for _ in range(30):
        output = ids[: chance.randrange(len(ids))]
        if chance.random() < 0.3:
            assert not len(one.mask([*output, *tokenizer.encode("}}]]")]))  # breaks the form
        fresh = compiler.compile(of_json(SCHEMA)).mask(output)
        assert torch.equal(one.mask(output), fresh)
        assert torch.equal(one.copy().mask(output), fresh)
    assert one.failure is None


def test_a_form_is_compiled_once_and_its_answers_do_not_share_a_state(tokenizer):
    grammars = Grammars(tokenizer, tokenizer.vocabulary)
    form = of_regex("(abc)+")
    one, other = grammars.compile(form), grammars.compile(form)
    assert grammars._known.cache_info().misses == 1
    first = one.mask(())
    one.mask(tokenizer.encode("abc"))
    assert torch.equal(other.mask(()), first)
    assert torch.equal(grammars.compile(form).mask(()), first)
    for _ in range(2):  # an error is no form
        with pytest.raises(ValueError, match="unclosed group"):
            grammars.compile(of_regex("("))


def test_what_must_be_called_is_called(tokenizer):
    tools = [Tool("f", parameters=SCHEMA), Tool("g_2", parameters={"additionalProperties": False})]
    call = re.compile(r"<tool_call>\n?(.*?)\n?</tool_call>", re.DOTALL)
    for seed in range(5):
        form = ToolUse(tools, "required", several=False).form()
        found = call.fullmatch(sampled(tokenizer, form, seed, 900))
        called = json.loads(found[1])
        assert called["name"] in ("f", "g_2")
        if called["name"] == "f":
            jsonschema.validate(called["arguments"], SCHEMA)


def test_text_before_a_call_is_free_and_its_arguments_are_not(tokenizer):
    form = ToolUse([Tool("f", parameters=SCHEMA, strict=True)]).form()
    grammar = Grammars(tokenizer, tokenizer.vocabulary).compile(form)
    free = grammar.mask(tokenizer.encode("any text { <tool_cal"))
    assert bool(free[tokenizer.encode("x")[0]])
    assert bool(free[list(tokenizer.stop_ids)].all())
    begun = grammar.mask(tokenizer.encode("any text <tool_call>"))
    assert not bool(begun[tokenizer.encode("x")[0]])
    assert not bool(begun[list(tokenizer.stop_ids)].any())
