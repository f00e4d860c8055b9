"""Ends, the begin token and sampling settings of GGUF files: as llama.cpp reads them."""

import random

import gguf
import pytest
from vocabularies import metadata, written

from culm.convert.gguf import header as gguf_header
from culm.convert.gguf.metadata import FILE_MARKS, STOPS
from culm.convert.gguf.tokenizer import load_tokenizer
from culm.convert.gguf.vocabulary import read_tokenizer
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.chat import TEMPLATE
from culm.tokenizer.tokenizer import Tokenizer

OTHERS = ["<|start|>", "<|over|>", "<|eos|>", "<s>", "<|plamo:eos|>", "<|user|>"]


def vocabulary(*names, **more):
    """Bytes and these special tokens, from id 256 on."""
    inner = Bytes().build()._marked
    inner.add_special_tokens(list(names))
    return Tokenizer(inner, **more)


def llama_cpp_reads(path):
    """llama.cpp's ends, begin token and vocabulary of a file."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    ends = {id for id in range(count) if llama_cpp.llama_vocab_is_eog(vocab, id)}
    return ends, llama_cpp.llama_vocab_bos(vocab), llama_cpp.llama_vocab_eos(vocab)


@pytest.mark.parametrize("seed", range(40))
def test_a_file_stops_where_llama_cpp_stops(seed, tmp_path):
    """Any names, and the ends as a file can give them."""
    draw = random.Random(seed)
    marks = [draw.choice(names) for names in FILE_MARKS.values()]
    pool = sorted(STOPS) + OTHERS + marks
    names = draw.sample(pool, draw.randint(2, 14))
    ids = [256 + place for place in range(len(names))]
    stops = draw.sample(ids, draw.randint(1, len(ids)))
    ours = vocabulary(*names, stops=stops)
    path = written(ours, tmp_path / "m.gguf")
    ends, _, eos = llama_cpp_reads(path)
    assert eos == ours.end_of_text
    foreign = read_tokenizer(metadata(path), path)
    assert foreign.stop_ids == ends | {eos}  # llama.cpp ignores </s> next to some names
    again = load_tokenizer(gguf_header.read(path), path)
    assert (again.stop_ids, again.end_of_text) == (ours.stop_ids, ours.end_of_text)


def test_what_a_file_cannot_say_is_reported(tmp_path, capsys):
    names = ["<|a|>", "<|b|>", "<|c|>", "<|d|>", "<|im_end|>"]
    ours = vocabulary(*names, stops=[256, 257, 258, 259])
    ends, *_ = llama_cpp_reads(written(ours, tmp_path / "m.gguf"))
    said = capsys.readouterr().err
    assert ends == {256, 257, 258, 260}
    assert "GGUF: llama.cpp does not stop at <|d|>." in said
    assert "GGUF: llama.cpp also stops at <|im_end|>." in said


def test_reasoning_in_parts_goes_on(tmp_path):
    """The list of GPT-OSS, in which `<|end|>` ends a part of a turn."""
    names = ["<|endoftext|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>"]
    ours = vocabulary(*names, settings={"eos_token": "<|return|>"}, stops=[259, 256, 260])
    path = written(ours, tmp_path / "m.gguf")
    assert llama_cpp_reads(path)[0] == ours.stop_ids == {256, 259, 260}
    assert read_tokenizer(metadata(path), path).stop_ids == {256, 259, 260}


@pytest.mark.parametrize("place", ["settings", "generation"])
def test_a_begin_token_that_only_the_template_writes(tmp_path, place):
    llama_cpp = pytest.importorskip("llama_cpp")
    begin = {"settings": {"bos_token": "<|bos|>"}} if place == "settings" else {
        "generation": {"bos_token_id": 257}}  # fmt: skip
    ours = vocabulary("</s>", "<|bos|>", "<|turn_over|>", template=TEMPLATE, stops=[256, 258],
                      **begin)  # fmt: skip
    path = written(ours, tmp_path / "m.gguf")
    ends, bos, eos = llama_cpp_reads(path)
    assert (ends, bos, eos) == ({256, 258}, 257, 256)
    assert metadata(path)["tokenizer.ggml.add_bos_token"] is False
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    assert model.tokenize(b"a", add_bos=False) == [ord("a")]
    foreign = read_tokenizer(metadata(path), path)
    assert (foreign.begin, foreign.start) == (257, [])


def test_sampling_settings_are_in_the_file(tmp_path):
    given = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05,
             "repetition_penalty": 1.05}  # fmt: skip
    ours = vocabulary("</s>", generation={**given, "length_penalty": 2.0})
    path = written(ours, tmp_path / "m.gguf")
    found = metadata(path)
    assert found[gguf.Keys.General.SAMPLING_TEMP] == pytest.approx(0.6)
    assert found[gguf.Keys.General.SAMPLING_TOP_K] == 20
    assert found[gguf.Keys.General.SAMPLING_PENALTY_REPEAT] == pytest.approx(1.05)
    assert read_tokenizer(found, path).generation == given
    again = load_tokenizer(gguf_header.read(path), path)
    assert again.generation == {**given, "length_penalty": 2.0}
    greedy = vocabulary("</s>", generation={"temperature": 0.6})
    found = metadata(written(greedy, tmp_path / "g.gguf"))
    assert not any(key.startswith("general.sampling") for key in found)


def test_templates_are_in_the_file_by_name(tmp_path):
    listed = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    ours = vocabulary("</s>", template="a", settings={"chat_template": listed})
    path = written(ours, tmp_path / "m.gguf")
    found = metadata(path)
    assert found["tokenizer.chat_template"] == "a"
    assert found["tokenizer.chat_template.tool_use"] == "b"
    for again in (read_tokenizer(found, path), load_tokenizer(gguf_header.read(path), path)):
        assert again.template == "a"
        assert again.settings["chat_template"] == listed
