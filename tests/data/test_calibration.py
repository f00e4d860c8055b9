"""Rows to calibrate on: the text in order, a fifth of it held out."""

import pytest
import torch

from culm.config import SettingError
from culm.data.calibration import LENGTH, ROWS, calibration_rows


@pytest.fixture
def file(tmp_path, texts):
    def write(text: str, name: str = "text.txt") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_rows_are_the_text_and_do_not_overlap(file, texts, tokenizer):
    rows = calibration_rows([file(texts[0])], tokenizer, 16)
    count = len(rows.seen) + len(rows.held_out)
    assert rows.seen.shape[1] == rows.held_out.shape[1] == 16
    assert len(rows.held_out) == sum(i % 5 == 1 for i in range(count))
    ids = tokenizer.encode(texts[0])
    together = torch.cat((rows.seen[:1], rows.held_out[:1])).flatten().tolist()
    start = together.index(ids[0])  # a token that begins a document may stand before
    assert together[start:] == ids[: 32 - start]


def test_the_same_text_gives_the_same_rows(file, texts, tokenizer):
    paths = [file(texts[0], "a.txt"), file(texts[1], "b.txt")]
    one, other = (calibration_rows(paths, tokenizer, 16) for _ in range(2))
    assert torch.equal(one.seen, other.seen)
    assert torch.equal(one.held_out, other.held_out)
    only = calibration_rows(paths[:1], tokenizer, 16)
    assert len(one.seen) > len(only.seen)


def test_long_text_and_context_are_cut(file, texts, tokenizer):
    path = file(texts[2] * 60)
    rows = calibration_rows([path], tokenizer, 16)
    assert len(rows.seen) + len(rows.held_out) == ROWS
    assert calibration_rows([path], tokenizer, 1 << 20).seen.shape[1] == LENGTH


def test_less_than_two_rows_are_refused(file, texts, tokenizer):
    path = file(texts[0])
    total = len(tokenizer.encode(texts[0]))
    rows = calibration_rows([path], tokenizer, total // 2)
    assert len(rows.seen) == len(rows.held_out) == 1
    with pytest.raises(SettingError, match=r"calibrate: [\d,]+ tokens of text are too few; .* at"):
        calibration_rows([path], tokenizer, total)


def test_missing_and_empty_text(file, tmp_path, tokenizer):
    with pytest.raises(SettingError, match=r"no-such\.txt"):
        calibration_rows([str(tmp_path / "no-such.txt")], tokenizer, 16)
    with pytest.raises(SettingError):
        calibration_rows([file("")], tokenizer, 16)
