"""Tokenizers in GGUF: llama.cpp's vocabularies and vectors, its own reading of ours, and lies."""

import random
from contextlib import suppress

import gguf
import pytest
import tokenizers
import torch
from gguf import TokenType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from culm.config import SettingError
from culm.convert import gguf as ours
from culm.convert import gguf_header
from culm.convert.gguf_tokenizer import add_tokenizer, load_tokenizer
from culm.convert.gguf_vocabulary import read_tokenizer
from culm.convert.gguf_words import RULES
from culm.convert.llama2c import read_tokenizer as read_llama2c
from culm.tokenizer.alphabet import BYTES as ALPHABET
from culm.tokenizer.fast import GPT2
from culm.tokenizer.sentencepiece import BYTES, SPACE, merged_by_score
from culm.tokenizer.tokenizer import TEMPLATE, Tokenizer
from culm.tokenizer.train import BPE, splitter

VOCABULARIES = ("gpt-2", "falcon", "mpt", "gpt-neox", "phi-3", "bert-bge")
PARTS = [
    "Hello", " world", "camelCase", " HELLO", "don't", "'LL", "'s", " ", "  ", "     ", "\n",
    "\n\n", "\t", "\r\n", "1", "12", "3456789", " 99", "É", "é", " Été", "Москва", "東京",
    "こんにちは", "한국어", "🙂", "👨‍👩‍👧", "!", "?!", "...", " =>", "$", "^~", "|`", "_x", "-",
    "\\", "/", "</s>", "<s>", "ﬁ", "ß", "\u00a0", "\u3000", "مرحبا", "ไทย", "\u200b", "²",
    "<|end|>", "<|endoftext|>", "<0x41>", "a", "the",
]  # fmt: skip
CORPUS = [
    "The quick brown fox jumps over the lazy dog. They're 12 and 345, aren't they? " * 4,
    "def add(a, b):\n    return a + b\n\n\nprint(add(12, 345))\t# HELLO World\n" * 4,
    "Où est la gare? 東京 и Москва, こんにちは 🙂 camelCase...  two   three    four " * 4,
]


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    drawn = ("".join(draw.choices(PARTS, k=draw.randint(1, 12))) for _ in range(300))
    return ["", *PARTS, *CORPUS, *drawn]


def scored(prefix: bool) -> Tokenizer:
    """A vocabulary of SentencePiece's kind: words of the corpus, scored by when they were made."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    learned = sorted(inner.get_vocab().items(), key=lambda item: item[1])
    names = ["<unk>", "<s>", "</s>", *BYTES, *(name for name, _ in learned)]
    ids = {name: place for place, name in enumerate(names)}
    scores = {name: -float(place) for place, (name, _) in enumerate(learned)}
    made = merged_by_score(ids, scores, "<unk>", prefix)
    if not prefix:  # as Gemma has it
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(made, {"eos_token": "</s>", "bos_token": "<s>"})


def by_metaspace() -> Tokenizer:
    """The same, but that the space is put by what splits the text, and only where there is none."""
    made = tokenizers.Tokenizer.from_str(scored(prefix=True).json)
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return Tokenizer(made, {"eos_token": "</s>", "bos_token": "<s>"})


def byte_level(*words: str, whole: bool = False, normalizer=None) -> Tokenizer:
    """A vocabulary that was trained on words as these expressions cut them."""
    inner = tokenizers.Tokenizer(models.BPE(ignore_merges=whole))
    inner.pre_tokenizer = splitter(*words) if words else pre_tokenizers.ByteLevel(False)
    inner.decoder = decoders.ByteLevel()
    inner.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=list(ALPHABET),
        special_tokens=["<|endoftext|>", "<|end|>"],
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    inner.add_tokens([tokenizers.AddedToken("camelCase", normalized=False)])
    return Tokenizer(inner, template=TEMPLATE)


OURS = {
    "gpt-2": lambda: byte_level(),
    "qwen2": lambda: byte_level(*RULES["qwen2"].words, normalizer=normalizers.NFC()),
    "own": lambda: BPE(vocabulary=400).build(CORPUS),
    "llama-bpe": lambda: byte_level(*RULES["llama-bpe"].words, whole=True),
    "dbrx": lambda: byte_level(*RULES["dbrx"].words),
    "smollm": lambda: byte_level(*RULES["smollm"].words),
    "deepseek-v3": lambda: byte_level(*RULES["deepseek-v3"].words),
    "gpt-4o": lambda: byte_level(*RULES["gpt-4o"].words),
    "llama": lambda: scored(prefix=True),
    "llama without prefix": lambda: scored(prefix=False),
    "llama by metaspace": by_metaspace,
}


def alike(name: str, text: str) -> bool:
    """Whether llama.cpp can be told all that the tokenizer of this name does to a text."""
    if name == "qwen2":
        return normalizers.NFC().normalize_str(text) == text
    return "metaspace" not in name or text[:1] != " "


def written(tokenizer: Tokenizer, path, change=None):
    """A file that holds a tokenizer and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for add in (
        writer.add_context_length, writer.add_embedding_length, writer.add_block_count,
        writer.add_feed_forward_length, writer.add_head_count,
    ):  # fmt: skip
        add(1)
    writer.add_layer_norm_rms_eps(1e-5)
    add_tokenizer(writer, tokenizer, tokenizer.vocabulary + 3)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def metadata(path) -> dict:
    """All that a file of ours says, but for the tokenizer as we read it back."""
    hidden = ("tokenizer.huggingface.json", "culm.tokenizer")
    return {key: value for key, value in gguf_header.read(path).items() if key not in hidden}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vectors_of_llama_cpp(shared, name):
    path = shared(f"tokenizers/llama.cpp/ggml-vocab-{name}.gguf")
    tokenizer = read_tokenizer(gguf_header.read(path), path)
    if name == "gpt-neox":  # which comes without vectors
        assert tokenizer.decode(tokenizer.encode("12 Où?\n\n  x")) == "12 Où?\n\n  x"
        return
    texts = shared(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = shared(f"{path}.out").read_text().splitlines()
    assert len(lines) > 40
    for text, line in zip(texts, lines, strict=False):
        ids = tokenizer.encode(text)
        assert ids == [int(id) for id in line.split()], text
        if name != "bert-bge":  # which knows no capitals
            assert tokenizer.decode(ids) == text


def test_ends_and_types(shared):
    path = shared("tokenizers/llama.cpp/ggml-vocab-phi-3.gguf")
    tokenizer = read_tokenizer(gguf_header.read(path), path)
    assert (tokenizer.start, tokenizer.vocabulary) == ([1], 32064)
    assert (tokenizer.end_of_text, tokenizer.end_of_turn) == (32000, 32007)
    assert tokenizer.stop_ids == {2, 32000, 32007}
    assert tokenizer.specials["<|assistant|>"] == 32001
    assert tokenizer.chat.prompt([{"role": "user", "content": "Hi"}])[-1] == 32001
    assert 32001 not in tokenizer.encode("<|assistant|>")
    assert tokenizer.encode("<|assistant|>\n Hi", specials=True) == [32001, 6324]  # spaces are cut
    path = shared("tokenizers/llama.cpp/ggml-vocab-bert-bge.gguf")
    bert = read_tokenizer(gguf_header.read(path), path)
    assert (bert.start, bert.end_of_text) == ([101], 102)
    pieces = bert.encode("Unbelievably small")
    assert b"".join(map(bert.bytes_of, pieces)) == b" unbelievably small"


@pytest.mark.parametrize("name", OURS)
def test_metadata_alone_say_the_same(tmp_path, texts, name):
    """What any reader finds in our file makes the tokenizer that was written."""
    tokenizer = OURS[name]()
    path = written(tokenizer, tmp_path / "m.gguf")
    assert load_tokenizer(gguf_header.read(path), path).fingerprint == tokenizer.fingerprint
    again = read_tokenizer(metadata(path), path)
    for text in texts:
        if alike(name, text):
            for specials in (False, True)[: 1 if "metaspace" in name else 2]:
                assert again.encode(text, specials) == tokenizer.encode(text, specials)
    assert (again.start, again.vocabulary) == (tokenizer.start, tokenizer.vocabulary)
    assert (again.end_of_text, again.end_of_turn) == (tokenizer.end_of_text, tokenizer.end_of_turn)
    assert (again.stop_ids, again.template) == (tokenizer.stop_ids, tokenizer.template)
    assert again.specials == tokenizer.specials
    found = metadata(path)
    assert found["tokenizer.ggml.model"] == ("llama" if name.startswith("llama ") else "gpt2") or (
        name == "llama"
    )
    if name in RULES:
        assert found["tokenizer.ggml.pre"] == name


def test_a_model_of_others(tiny, tokens, tmp_path):
    """Without the whole tokenizer, that of the metadata comes with the weights."""
    words, model = scored(prefix=True), tiny(vocabulary=700)
    ours.export(model, words, tmp_path / "m.gguf", "f32")
    content = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(content.replace(b"culm.tokenizer", b"some.tokenizer"))
    again, found = ours.load(tmp_path / "m.gguf")
    assert torch.equal(again(tokens), model(tokens))
    assert found.fingerprint != words.fingerprint
    for text in CORPUS:
        assert found.encode(text) == words.encode(text)


def test_start_and_end_are_put(tmp_path):
    tokenizer = scored(prefix=True)
    path = written(tokenizer, tmp_path / "m.gguf")
    fields = metadata(path)
    assert read_tokenizer(fields, path).start == []
    fields["tokenizer.ggml.add_bos_token"] = fields["tokenizer.ggml.add_eos_token"] = True
    fields["tokenizer.ggml.bos_token_id"] = 1
    both = read_tokenizer(fields, path)
    assert both.start == [1]
    assert both._marked.encode("a").ids[-1] == 2
    del fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.bos_token_id"]
    assert read_tokenizer(fields, path).start == [1]  # what is taken where a file is silent


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "t5", r"model: a vocabulary of kind 't5' is not read here, only gpt2, llama"),
        ("model", None, "model: a vocabulary of kind None"),
        ("model", 3, "model: '3' is no str"),
        ("pre", "kimi-k2", "pre: a rule 'kimi-k2' to split text is not known here"),
        ("tokens", None, "tokens: there are none"),
        ("tokens", "a", "tokens: 'a' is no list"),
        ("tokens", [1, 2], "tokens: it does not hold str alone"),
        ("tokens", ["a", "a"], r"token_type: there are \d+ for 2 tokens"),
        ("token_type", [1.0], "token_type: it does not hold int alone"),
        ("scores", [0.0], r"scores: there are 1 for \d+ tokens"),
        ("merges", ["ab"], "merges: 'ab' is no pair"),
        ("merges", ["! ~"], "merges: '! ~' makes no token"),
        ("eos_token_id", 423, "eos_token_id: 423 is no token"),
        ("eos_token_id", True, "eos_token_id: 'True' is no int"),
        ("eos_token_id", None, "eos_token_id: no token ends a text"),
        ("add_bos_token", 1, "add_bos_token: '1' is no bool"),
    ],
)
def test_metadata_that_lie(tmp_path, key, value, message):
    path = written(byte_level(*RULES["qwen2"].words), tmp_path / "m.gguf")
    fields = metadata(path)
    fields[f"tokenizer.ggml.{key}"] = value
    if value is None:
        del fields[f"tokenizer.ggml.{key}"]
    if key == "tokens" and value is None:
        del fields["tokenizer.ggml.token_type"]
    with pytest.raises(SettingError, match=rf"m\.gguf: tokenizer\.ggml\.{message}.*; import this"):
        read_tokenizer(fields, path)


def test_more_metadata_that_lie(tmp_path):
    path = written(scored(prefix=True), tmp_path / "m.gguf")
    fields = metadata(path)
    names = list(fields["tokenizer.ggml.tokens"])
    names[5] = "<0xXY>"
    with pytest.raises(SettingError, match=r"tokens: byte <0x02> has no token; import this"):
        read_tokenizer({**fields, "tokenizer.ggml.tokens": names}, path)
    names[5] = names[300]
    with pytest.raises(SettingError, match=r"tokens: some token is there twice"):
        read_tokenizer({**fields, "tokenizer.ggml.tokens": names}, path)
    with pytest.raises(SettingError, match=r"m\.gguf: tokenizer\.chat_template: it is no text"):
        read_tokenizer({**fields, "tokenizer.chat_template": [1]}, path)
    whole = gguf_header.read(path)
    with pytest.raises(SettingError, match=r"m\.gguf: broken: tokenizer\.huggingface\.json or"):
        load_tokenizer({**whole, "culm.tokenizer": "{}"}, path)


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """The metadata of a small vocabulary that merges by score."""
    return metadata(written(scored(prefix=True), tmp_path_factory.mktemp("gguf") / "m.gguf"))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(
        ["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id",
         "add_bos_token", "add_space_prefix", "unknown_token_id"]
    ),
    value=st.one_of(
        st.none(), st.integers(), st.booleans(), st.floats(), st.text(max_size=3),
        st.sampled_from(["gpt2", "llama", "bert", "default"]),
        st.lists(st.text(max_size=2), max_size=4), st.lists(st.integers(0, 7), max_size=4),
    ),
    place=st.integers(0, 400),
)  # fmt: skip
def test_no_lie_escapes(fields, key, value, place):
    """A whole value or one element of a list is another one: refused, or some tokenizer."""
    old = fields.get(f"tokenizer.ggml.{key}")
    if isinstance(old, list) and not isinstance(value, list):
        value = [*old[:place], value, *old[place + 1 :]]
    with suppress(SettingError):
        read_tokenizer({**fields, f"tokenizer.ggml.{key}": value}, "m.gguf").encode("a b")


def test_what_llama_cpp_would_read_otherwise_is_refused(tmp_path):
    def refuse(inner: tokenizers.Tokenizer, message: str) -> None:
        inner.add_special_tokens(["</s>"])
        with pytest.raises(SettingError, match=message):
            written(Tokenizer(inner), tmp_path / "m.gguf")

    refuse(tokenizers.Tokenizer(models.Unigram([("a", 0.0)])), "only BPE can be written to GGUF")
    plain = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    refuse(plain, "only byte-level BPE, and BPE with bytes for unknown characters, can be")
    other = byte_level(r"\p{L}+")
    with pytest.raises(SettingError, match=r"no rule that splits text by '\\\\p\{L\}\+'$"):
        written(other, tmp_path / "m.gguf")
    with pytest.raises(SettingError, match=r"splits text by .*, whole words first"):
        written(byte_level(GPT2, whole=True), tmp_path / "m.gguf")
    few = tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, [], byte_fallback=True))
    refuse(few, "a token for each of the 256 bytes")
    names = {name: place for place, name in enumerate([*BYTES, "a", "b", "c", "ab", "bc", "abc"])}
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    apart = tokenizers.Tokenizer(models.BPE(names, merges, byte_fallback=True))
    apart.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    refuse(apart, "also 'a' and 'bc', which this one leaves apart")
    apart.pre_tokenizer = pre_tokenizers.Whitespace()
    refuse(apart, "no rule that writes spaces as this one does")


def test_merges_that_take_turns_score_alike(tmp_path):
    names = [*BYTES, "a", "b", SPACE, "aa", "bb", "aaa", "bbb", "</s>"]
    merges = [("a", "a"), ("b", "b"), ("aa", "a"), ("bb", "b"), ("a", "aa"), ("b", "bb")]
    ids = {name: place for place, name in enumerate(names)}
    inner = tokenizers.Tokenizer(models.BPE(ids, merges, byte_fallback=True))
    inner.normalizer = normalizers.Replace(" ", SPACE)
    inner.add_special_tokens(["</s>"])
    fields = metadata(written(Tokenizer(inner), tmp_path / "m.gguf"))
    assert fields["tokenizer.ggml.scores"][259:263] == [-1.0, -2.0, -3.0, -3.0]
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    assert fields["tokenizer.ggml.token_type"][255:260] == [TokenType.BYTE] + 4 * [1]


def peer(path):
    """llama.cpp's own tokenizer of a file."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return lambda text, specials=False: model.tokenize(text.encode(), False, specials)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OURS, "gpt2", "stories", "phi-3", "minimind"])
def test_llama_cpp_gives_our_ids(shared, tmp_path, texts, name):
    """Of tokenizers that we write; normal form C is the one thing that llama.cpp leaves out."""
    if name in OURS:
        tokenizer = OURS[name]()
    elif name == "stories":
        tokenizer = read_llama2c(shared("weights/tok512.bin"), 512)
    elif name == "phi-3":
        path = shared("tokenizers/llama.cpp/ggml-vocab-phi-3.gguf")
        tokenizer = read_tokenizer(gguf_header.read(path), path)
    else:
        tokenizer = Tokenizer.load(shared(f"tokenizers/{name}"))
    theirs = peer(written(tokenizer, tmp_path / "m.gguf"))
    for text in texts:
        if alike(name, text):
            assert theirs(text) == tokenizer.encode(text), text
            marked = "".join(f"{text}{special}" for special in list(tokenizer.specials)[:4])
            # Special tokens of Phi-3 take spaces away, which no key can say.
            if name != "phi-3" and "metaspace" not in name:
                assert theirs(marked, True) == tokenizer.encode(marked, True), marked


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES[:5])
def test_foreign_vocabularies_give_the_ids_of_llama_cpp(shared, texts, name):
    path = shared(f"tokenizers/llama.cpp/ggml-vocab-{name}.gguf")
    tokenizer, theirs = read_tokenizer(gguf_header.read(path), path), peer(path)
    for text in texts:
        assert theirs(text) == tokenizer.encode(text), text


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_rules_of_llama_cpp(shared, tmp_path, texts, name):
    """GPT-2's vocabulary under each rule."""
    fields = gguf_header.read(shared("tokenizers/llama.cpp/ggml-vocab-gpt-2.gguf"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(fields["tokenizer.ggml.tokens"])
    writer.add_token_types(fields["tokenizer.ggml.token_type"])
    writer.add_token_merges(fields["tokenizer.ggml.merges"])
    writer.add_bos_token_id(50256)
    writer.add_eos_token_id(50256)
    for add in (writer.add_context_length, writer.add_embedding_length, writer.add_block_count):
        add(1)
    writer.add_feed_forward_length(1)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    tokenizer = read_tokenizer(gguf_header.read(tmp_path / "m.gguf"), "m.gguf")
    theirs = peer(tmp_path / "m.gguf")
    for text in texts:
        assert theirs(text) == tokenizer.encode(text), text
