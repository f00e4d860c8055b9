"""Numbers that a record carries, from its field to the batch."""

import json

import pytest
import torch

from culm.config import SettingError
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.format.steps import StepsFormat
from culm.data.loader import Loader
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.source import open_source


def loader(folder, records, format, tokenizer) -> Loader:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare(open_source([str(path)]), format, tokenizer, folder / "data", held_out=0)
    return Loader(Prepared.open(folder / "data"), 64, 4, 2, seed=0)


def test_margins_of_pairs_stand_in_both_rows(tmp_path, tokenizer) -> None:
    records = [
        {"prompt": f"q{n}", "chosen": "a" * (n + 1), "rejected": "b", "by": n / 4} for n in range(8)
    ]
    rows = loader(tmp_path, records, PairFormat(margin="by"), tokenizer)
    assert rows.gives == "pairs"
    seen = []
    for batch in (*rows.step(0), *rows.step(1)):
        margin = batch.extra["margin"]
        assert torch.equal(margin[0::2], margin[1::2])
        lengths = (batch.targets[0::2] >= 0).sum(1)
        for length, value in zip(lengths.tolist(), margin[0::2].tolist(), strict=True):
            seen.append((length, value))
        assert batch.counts["pairs"] == 2
        assert batch.counts["rows"] == 4
    assert sorted(value for _, value in seen) == [n / 4 for n in range(8)]
    assert sorted(seen) == sorted(seen, key=lambda pair: (pair[1], pair[0]))  # longer, further


def test_labels_of_single_answers(tmp_path, tokenizer) -> None:
    records = [
        {"prompt": f"q{n}", "completion": "good" if n % 2 else "bad", "label": bool(n % 2)}
        for n in range(8)
    ]
    rows = loader(tmp_path, records, LabelFormat(), tokenizer)
    assert rows.gives == "labels"
    for batch in (*rows.step(0), *rows.step(1)):
        assert batch.documents is None
        for targets, label in zip(batch.targets, batch.extra["label"], strict=True):
            said = tokenizer.decode(targets[targets >= 0].tolist())
            assert said == ("good" if label else "bad")


@pytest.mark.parametrize(("rare", "said"), [(None, True), (3, False)])
def test_labels_that_are_all_the_same_are_pointed_out(rare, said, tmp_path, tokenizer) -> None:
    records = [{"prompt": f"q{n}", "completion": "a", "label": n != rare} for n in range(8)]
    steps = [
        {"prompt": f"q{n}", "completions": ["a", "b"], "labels": [True, n != rare]}
        for n in range(8)
    ]
    for name, given, format in (("one", records, LabelFormat()), ("two", steps, StepsFormat())):
        (tmp_path / name).mkdir()
        remarks = loader(tmp_path / name, given, format, tokenizer).remarks
        assert any("All labels are 1," in remark for remark in remarks) is said, remarks


@pytest.mark.parametrize("value", [None, "much", float("nan"), [1]])
def test_a_record_without_its_number_is_refused(value, tmp_path, tokenizer) -> None:
    records = [{"prompt": "q", "chosen": "a", "rejected": "b", "by": value}]
    with pytest.raises(SettingError, match=r"line 1: no number in 'by'"):
        loader(tmp_path, records, PairFormat(margin="by"), tokenizer)
