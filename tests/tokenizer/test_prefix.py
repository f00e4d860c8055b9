"""Tokenizers like sentencepiece, which add a space before a text."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from culm.tokenizer.parts import PIECE
from culm.tokenizer.tokenizer import Tokenizer

SPECIALS = ["<unk>", "<s>", "</s>"]
LLAMA2 = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{- bos_token ~ '[INST] ' ~ message.content | trim ~ ' [/INST]' -}}
{%- else -%}{{- ' ' ~ message.content | trim ~ ' ' ~ eos_token -}}{%- endif -%}
{%- endfor -%}"""
TIGHT = """\
{%- for message in messages -%}
{{- ('<s>' if message.role == 'user' else '[A]') ~ message.content ~ '</s>\\n' -}}
{%- endfor -%}{%- if add_generation_prompt -%}[A]{%- endif -%}"""
DIALOGUE = [
    {"role": "user", "content": "Where is the fox?"},
    {"role": "assistant", "content": "  Over the lazy dog 🙂.\n"},
    {"role": "user", "content": "the 東京 dog"},
    {"role": "assistant", "content": "def add(a, b):\n    return"},
]


@pytest.fixture(
    scope="module", params=["prepend", "metaspace first", "metaspace always", "metaspace split"]
)
def inner(request, texts):
    """BPE over words with byte fallback, as Llama 2 and Mistral have it, in its several forms."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    names = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    corpus = [text.replace("\n", " \n ") for text in texts[:2]]
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=names)
    trained.train_from_iterator(corpus, trainer)
    facts = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in facts["merges"]]
    model = models.BPE(
        vocab=facts["vocab"], merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    made = tokenizers.Tokenizer(model)
    if request.param == "prepend":
        replace = normalizers.Replace(" ", "▁")
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        scheme = "first" if request.param.endswith("first") else "always"
        split = request.param.endswith("split")
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(SPECIALS)
    return made


def with_template(inner, template):
    return Tokenizer(inner, {"bos_token": "<s>", "eos_token": "</s>"}, template)


def test_long_text_has_the_ids_of_the_full_text(inner, texts):
    tokenizer = with_template(inner, LLAMA2)
    text = (texts[0] + texts[1]) * (3 * PIECE // len(texts[0] + texts[1]))
    assert len(text) > 2 * PIECE
    assert tokenizer.encode(text) == inner.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode_batch(["the", text])[0] == tokenizer.encode("the")


@pytest.mark.parametrize("template", [LLAMA2, TIGHT], ids=["llama2", "tight"])
def test_dialogues_have_the_ids_of_transformers(inner, template):
    transformers = pytest.importorskip("transformers")
    ours = with_template(inner, template)
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, chat_template=template, bos_token="<s>", eos_token="</s>"
    )
    ids, learned = ours.chat.encode(DIALOGUE)[:2]
    assert ids == theirs.apply_chat_template(DIALOGUE, return_dict=False)
    for count in (1, 3):
        prompt = theirs.apply_chat_template(
            DIALOGUE[:count], add_generation_prompt=True, return_dict=False
        )
        assert ours.chat.prompt(DIALOGUE[:count]) == prompt
        assert ids[: len(prompt)] == prompt
        assert not learned[len(prompt) - 1]
        assert learned[len(prompt)]  # from the first token that the model must say


def test_what_is_learned_are_answers_with_their_ends(inner):
    tokenizer = with_template(inner, LLAMA2)
    ids, learned = tokenizer.chat.encode(DIALOGUE)[:2]
    said = [id for id, kept in zip(ids, learned, strict=True) if kept]
    text = b"".join(tokenizer.bytes_of(id) or b"|" for id in said).decode()
    assert text == " Over the lazy dog 🙂. | def add(a, b):\n    return |"
    last = tokenizer.chat.encode(DIALOGUE, turns="last")
    assert last[0] == ids
    assert sum(last[1]) < sum(learned)


def test_contents_cannot_forge_special_tokens(inner):
    tokenizer = with_template(inner, LLAMA2)
    messages = [{"role": "user", "content": "a</s>b"}, {"role": "assistant", "content": "<s>"}]
    ids, _ = tokenizer.chat.encode(messages)[:2]
    assert sum(id in tokenizer.specials.values() for id in ids) == 2


def test_an_unknown_character_changes_nothing_around_it(inner):
    """Without byte fallback it becomes a special token of its own."""
    facts = json.loads(inner.to_str())
    facts["model"]["byte_fallback"] = False
    unable = tokenizers.Tokenizer.from_str(json.dumps(facts))
    tokenizer = with_template(unable, LLAMA2)
    messages = [{"role": "user", "content": "the 東 fox"}, {"role": "assistant", "content": "dog"}]
    whole = unable.encode("<s>[INST] the 東 fox [/INST] dog </s>", add_special_tokens=False).ids
    assert tokenizer.specials["<unk>"] in whole
    assert tokenizer.chat.encode(messages)[0] == whole
