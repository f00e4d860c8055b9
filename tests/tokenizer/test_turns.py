"""A base model with a chat template learns to end a turn, and stops there."""

import pytest

from culm.tokenizer.bytes import Bytes
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.turns import with_turn_end

CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
HARMONY = """\
{%- for m in messages %}{{ '<|start|>' + m.role + '<|message|>' + m.content }}
{%- if loop.last and not add_generation_prompt and m.role == 'assistant' %}{{ '<|return|>' }}
{%- else %}{{ '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|message|>' }}{% endif %}"""
DIALOGUE = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "4"}]


def made(names, template, stops):
    inner = Bytes().build()._marked
    inner.add_special_tokens(names)
    return Tokenizer(inner, {}, template, stops)


def test_the_end_of_a_template_becomes_a_stop(capsys):
    """As of a base model of Qwen2.5: its list of ends is <|endoftext|> alone."""
    base = made(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, [256])
    with pytest.raises(ValueError, match="no end token follows the content"):
        base.chat.encode(DIALOGUE)
    ours = with_turn_end(base, "base")
    assert (ours.stop_ids, ours.end_of_text, ours.end_of_turn) == ({256, 258}, 256, 258)
    assert "base: its chat template ends a turn with <|im_end|>" in capsys.readouterr().err
    ids, learned, *_ = ours.chat.encode(DIALOGUE)
    assert [id for id, wanted in zip(ids, learned, strict=True) if wanted] == [ord("4"), 258]
    assert with_turn_end(ours, "base") is ours


@pytest.mark.parametrize(
    ("names", "template", "stops"),
    [
        (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, [256, 258]),
        (["<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>"], HARMONY, [256, 260]),
        (["<|endoftext|>"], "{% for m in messages %}{{ m.content }}\n{% endfor %}", [256]),
        (["<|endoftext|>"], "{{ raise_exception('no') }}", [256]),
        (["<|endoftext|>"], None, [256]),
    ],
)
def test_a_list_that_is_enough_stays(names, template, stops):
    ours = made(names, template, stops)
    assert with_turn_end(ours, "base") is ours


GLM = """\
[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MARKS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"]


@pytest.mark.parametrize("stops", [[256], [256, 259, 261]])
@pytest.mark.parametrize("template", [GLM, GLM.replace("t|>{% endif", "t|>\n{% endif")])
def test_the_mark_of_the_next_turn_ends_an_answer(stops, template, capsys):
    """As in GLM-4. Every answer ends where generation stops, the last one too."""
    ours = with_turn_end(made(MARKS, template, stops), "base")
    assert ours.stop_ids == {*stops, 259}
    assert ("ends a turn with <|user|>" in capsys.readouterr().err) == (len(stops) == 1)
    ids, learned, *_ = ours.chat.encode([*DIALOGUE, *DIALOGUE])
    said = ours.decode([id for id, on in zip(ids, learned, strict=True) if on], specials=True)
    assert said.replace("\n", "") == "4<|user|>4<|user|>"
    assert ids[-1] in ours.stop_ids
    text = "[gMASK]<sop><|user|>\n2?<|assistant|>\n4"
    assert ours.decode(ours.chat.encode(DIALOGUE).ids, specials=True) == f"{text}<|user|>"
    asked = [*DIALOGUE, DIALOGUE[0]]
    assert ours.decode(ours.chat.encode(asked).ids, specials=True) == f"{text}<|user|>\n2?"
    assert ours.decode(ours.chat.encode([*DIALOGUE, *DIALOGUE], "last").ids, specials=True) == (
        f"{text}<|user|>\n2?<|assistant|>\n4<|user|>"
    )


@pytest.mark.parametrize("template", [CHATML, HARMONY])
def test_an_answer_that_has_an_end_gets_no_other(template):
    names = {CHATML: ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}.get(
        template, ["<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>"]
    )
    ours = made(names, template, [256, 257, 258])  # the mark of a turn is among the ends
    text = ours.decode(ours.chat.encode(DIALOGUE).ids, specials=True)
    assert text.rstrip().endswith(("<|im_end|>", "<|return|>"))
