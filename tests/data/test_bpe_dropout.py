import json

import numpy as np
import pytest

from culm.config import parse
from culm.data.format import Format
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.source import open_source
from culm.tokenizer import BPE

TEXT = "the quick brown fox jumps over a lazy dog and sleeps"


def test_training_text_has_many_spellings_and_held_out_text_one(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{TEXT} {n}"}) for n in range(60)))
    tokenizer = BPE(vocabulary=330).build([TEXT] * 50)
    format = parse(Format, {"kind": "document", "bpe_dropout": 0.3})
    prepare(open_source(str(path)), format, tokenizer, tmp_path / "corpus", held_out=0.3)
    longer = {}
    for split in ("train", "held_out"):
        ids = np.concatenate(list(Prepared.open(tmp_path / "corpus", split).shards()))
        documents = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_text) + 1)[:-1]
        plain = [tokenizer.encode(tokenizer.decode(one.tolist())) for one in documents]
        longer[split] = [len(a) - 1 - len(b) for a, b in zip(documents, plain, strict=True)]
        assert all(tokenizer.decode(one).startswith(TEXT) for one in plain)
    assert len(longer["train"]) + len(longer["held_out"]) == 60
    assert min(longer["train"]) > 0
    assert set(longer["held_out"]) == {0}


def test_it_does_not_go_with_fim():
    with pytest.raises(ValueError, match="bpe_dropout: it does not go with fim"):
        parse(Format, {"kind": "document", "bpe_dropout": 0.1, "fim": {}})
