"""A real llama2.c checkpoint: 260 thousand parameters that tell stories."""

import math
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from culm.config import SettingError
from culm.convert import llama2c

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def files(data):
    return data / "weights" / "stories260K.bin", data / "weights" / "tok512.bin"


@pytest.fixture(scope="module")
def stories(files):
    return llama2c.load(*files)


@torch.no_grad()
def greedy(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids


def test_it_tells_a_story(stories):
    model, tokenizer = stories
    ids = greedy(model, tokenizer.start + tokenizer.encode(PROMPT), 100)
    text = tokenizer.decode(ids)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
        "Lily's mom said, \"Lily, let's go to the park.\""
    )


def by_hand(path, text):
    """The encoding of llama2.c, word for word: merge the best-scoring pair until none is left."""
    tokens, scores = llama2c._read_tokens(path, 512)
    ids = {token: index for index, token in enumerate(tokens)}
    parts = []
    for character in " " + text:
        found = ids.get(character.replace(" ", llama2c.SPACE))
        parts += [byte + 3 for byte in character.encode()] if found is None else [found]
    while True:
        pairs = [
            (scores[ids[pair]], -place)
            for place in range(len(parts) - 1)
            if (pair := tokens[parts[place]] + tokens[parts[place + 1]]) in ids
        ]
        if not pairs:
            return parts
        place = -max(pairs)[1]
        parts[place : place + 2] = [ids[tokens[parts[place]] + tokens[parts[place + 1]]]]


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        "Lily's mom said: \"Don't  run!\"\nThen 42 dogs\tcame.",
        "Ein Mädchen 🙂",
        " two  spaces ",
    ],
)
def test_tokenizer_equals_the_original_algorithm(files, stories, text):
    ids = stories[1].encode(text)
    assert ids == by_hand(files[1], text)
    assert stories[1].decode(ids) == text


def test_documents_begin_with_s_and_end_there(stories):
    tokenizer = stories[1]
    assert tokenizer.start == [1]
    assert {1, 2} <= set(tokenizer.stop_ids)
    assert tokenizer.vocabulary == 512


def test_bits_per_byte_of_its_own_story(stories):
    model, tokenizer = stories
    ids = greedy(model, tokenizer.start + tokenizer.encode(PROMPT), 100)
    story = torch.tensor([ids])
    with torch.no_grad():
        nats = -model.logprobs(story[:, :-1], story[:, 1:]).sum().item()
    bits = nats / math.log(2) / len(tokenizer.decode(ids).encode())
    assert bits == pytest.approx(0.2507, abs=0.001)


@pytest.fixture(scope="module")
def content(files):
    return files[0].read_bytes()


@pytest.mark.parametrize("cut", [0, 10, 28, 100_000, -4])
def test_truncated(files, content, tmp_path, cut):
    path = tmp_path / "cut.bin"
    path.write_bytes(content[:cut])
    with pytest.raises(SettingError, match=r"cut\.bin: truncated"):
        llama2c.load(path, files[1])


def test_longer_than_it_says(files, content, tmp_path):
    path = tmp_path / "long.bin"
    path.write_bytes(content + b"more")
    with pytest.raises(SettingError, match="too long for its header"):
        llama2c.load(path, files[1])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(numbers=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=7, max_size=7))
def test_headers_that_lie_are_refused_at_once(files, tmp_path, numbers):
    path = tmp_path / "lies.bin"
    path.write_bytes(struct.pack("<7i", *numbers) + bytes(2000))
    with pytest.raises(SettingError, match=r"lies\.bin"):
        llama2c.load(path, files[1])


def test_truncated_tokenizer(files, tmp_path):
    path = tmp_path / "tok.bin"
    path.write_bytes(files[1].read_bytes()[:2000])
    with pytest.raises(SettingError, match=r"tok\.bin: truncated or not a llama2\.c tokenizer: token"):
        llama2c.load(files[0], path)
    with pytest.raises(SettingError, match=r"none\.bin: there is no such file"):
        llama2c.load(files[0], tmp_path / "none.bin")


def test_untied(files, content, stories, tmp_path):
    """A negative vocabulary announces a head of its own at the end of the file."""
    header = list(struct.unpack_from("<7i", content))
    header[5] = -header[5]
    model, _ = stories
    head = (2 * model.embed.weight.detach()).numpy().tobytes()
    path = tmp_path / "untied.bin"
    path.write_bytes(struct.pack("<7i", *header) + content[28:] + head)
    untied, _ = llama2c.load(path, files[1])
    tokens = torch.arange(20)[None]
    assert not untied.config.tied
    assert torch.allclose(untied(tokens), 2 * model(tokens), atol=1e-5)
