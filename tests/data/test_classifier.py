"""A trained classifier tells texts apart that it has not read, and its file is checked."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from culm.config import SettingError
from culm.data.clean.classifier import Classifier
from culm.data.clean.cleaner import Cleaner
from culm.data.clean.linear import Accuracy, LinearClassifier, features_of, train
from culm.data.clean.stage import Dropped
from culm.verbs.classifier import train_classifier

SHARED = [f"word{n}" for n in range(300)]
GOOD, BAD = [f"good{n}" for n in range(40)], [f"bad{n}" for n in range(40)]


def text(chance: random.Random, own: list[str], share: float = 0.1) -> str:
    return " ".join(chance.choice(own if chance.random() < share else SHARED) for _ in range(60))


def corpus(folder: Path, name: str, own: list[str], count: int, seed: int) -> Path:
    chance, path = random.Random(seed), folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text(chance, own)}) + "\n" for _ in range(count)))
    return path


def test_it_learns_what_differs_and_says_how_well() -> None:
    chance = random.Random(0)
    good = [text(chance, GOOD) for _ in range(400)]
    bad = [text(chance, BAD) for _ in range(200)]
    model, accuracy = train(good, bad)
    assert accuracy.balanced > 0.9
    assert 80 < accuracy.texts < 160
    fresh = [model.probability(text(chance, GOOD)) for _ in range(100)]
    assert np.mean(np.array(fresh) > 0.5) > 0.9
    again, same = train(good, bad)
    assert np.array_equal(again.weight, model.weight)
    assert same == accuracy


def test_where_nothing_differs_it_is_no_better_than_chance() -> None:
    chance = random.Random(1)
    same = [[text(chance, GOOD) for _ in range(500)] for _ in range(2)]
    assert train(*same)[1].balanced == pytest.approx(0.5, abs=0.15)


def test_order_of_words_counts() -> None:
    chance = random.Random(2)
    pairs = [("red", "stone"), ("blue", "river")]
    good = [
        " ".join(w for _ in range(9) for w in chance.choice(pairs)) + f" {n}" for n in range(200)
    ]
    bad = [
        " ".join(w for _ in range(9) for w in reversed(chance.choice(pairs))) + f" {n}"
        for n in range(200)
    ]
    assert train(good, bad)[1].balanced > 0.95


def test_command_stage_and_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = corpus(tmp_path, "good", GOOD, 300, 3), corpus(tmp_path, "bad", BAD, 300, 4)
    out = tmp_path / "quality.safetensors"
    train_classifier([str(good)], [str(bad)], str(out))
    assert "held-out texts" in capsys.readouterr().out
    with pytest.raises(SettingError, match="already exists"):
        train_classifier([str(good)], [str(bad)], str(out))
    stage, chance = Classifier(model=out), random.Random(5)
    step = stage.build()
    found = [step.apply([text(chance, own)], Counter()) for own in (GOOD, BAD) for _ in range(50)]
    dropped = [isinstance(one, Dropped) for one in found]
    assert sum(dropped[:50]) <= 3
    assert sum(dropped[50:]) >= 47
    assert found[-1] == Dropped("a probability below 0.5")
    [digest] = Cleaner([stage]).facts[0].digests
    train_classifier([str(good)], [str(bad)], str(out), ["data.max_documents=200"], overwrite=True)
    assert Cleaner([stage]).facts[0].digests != [digest]
    loaded = LinearClassifier.load(out, "x")
    assert loaded.probability(text(chance, GOOD)) > 0.5


def test_unusable_files_and_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data\.clean: classifier: there is no file"):
        Cleaner([Classifier(model=tmp_path / "none")])
    other = tmp_path / "other.safetensors"
    save_file({"x": np.zeros(2)}, other)
    with pytest.raises(SettingError, match="is no classifier; culm classifier writes one"):
        Classifier(model=other).build()
    other.write_text("broken")
    with pytest.raises(SettingError, match="cannot be read"):
        Classifier(model=other).build()
    with pytest.raises(SettingError, match="negative: 1 distinct texts are too few"):
        train([f"text {n}" for n in range(50)], ["one", "one"])
    assert len(features_of("...")) == 0


def test_the_same_texts_on_both_sides_are_refused(tmp_path):
    for name, start in (("good", 0), ("bad", 10)):
        lines = [json.dumps({"text": f"text of number {n}"}) for n in range(start, start + 100)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    good, bad = str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl")
    with pytest.raises(SettingError, match="positive: 90 of its 100 distinct texts are texts"):
        train_classifier([good], [bad], str(tmp_path / "c"))


def test_what_is_not_better_than_chance_is_told(tmp_path, capsys):
    chance = random.Random(0)
    for name in ("good", "bad"):
        lines = [
            json.dumps({"text": " ".join(chance.choices("abcdefgh", k=30))}) for _ in range(300)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    good, bad = str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl")
    train_classifier([good], [bad], str(tmp_path / "c"))
    assert "That is not better than chance" in capsys.readouterr().out


def test_the_interval_of_an_accuracy():
    low, high = Accuracy(0.5, 0.5, 1000, 1000).interval
    assert (low, high) == pytest.approx((0.5 - 0.0219, 0.5 + 0.0219), abs=1e-3)
    assert not Accuracy(1.0, 1.0, 1, 1).better_than_chance  # two texts prove nothing
    assert Accuracy(0.9, 0.8, 40, 40).better_than_chance
