"""The scripts that compare networks of concepts, on documents whose order is known."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import concept_space
import sentence_order
import thoughts
from gates import TRUNK, Grammar

from culm.concept.retrieval import other_texts
from culm.concept.squared_error import Base

BOOK = "Tom ran to the red {}. Ann saw a blue {} there. The {} was old and cold. "


@pytest.fixture
def novels(tmp_path: Path) -> list[str]:
    """Five books of 96 sentences."""
    words = ["house", "river", "garden", "tower", "forest", "castle", "harbour", "mill"]
    for number in range(5):
        text = "".join(
            BOOK.format(*(words[(number + at * step) % 8] for step in (1, 3, 5)))
            for at in range(32)
        )
        (tmp_path / f"{number}.txt").write_text(text)
    return [str(tmp_path / f"{number}.txt") for number in range(5)]


@pytest.mark.slow
def test_context_tells_the_order_of_a_grammar_of_two_concepts_back() -> None:
    """By far more than the last concept, and not with another document's concepts before it."""
    grammar = Grammar(0, concepts=12, dim=8)
    train = torch.cat([grammar.documents(step) for step in range(60)])[:, :8]
    test = grammar.documents(1000)[:, :8]
    found = sentence_order.accuracies(train, test, 120, 0)
    assert found["in context"] > 0.9
    assert found["in context"] > found["the one before"] + 0.05
    assert found["context of others"] < found["in context"] - 0.05


def test_networks_and_baselines_are_compared(novels, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(concept_space, "NETWORKS", {"base": Base(trunk=TRUNK)})
    monkeypatch.setattr(concept_space, "SENTENCES", 8)
    arguments = ["--steps", "2", "--seeds", "1", "--networks", "base", "--dim", "8"]
    monkeypatch.setattr(sys, "argv", ["bench", *novels, *arguments])
    concept_space.main()
    written = capsys.readouterr().out
    assert "4 books of training (48 rows), 1 held out (12 rows)" in written
    for name in ("last concept", "ridge on the last", "base", "base, context of another text"):
        assert f"| {name} |" in written


def test_other_texts_are_far_away() -> None:
    rows = torch.arange(6.0)[:, None, None]
    assert other_texts(rows).flatten().tolist() == [3, 4, 5, 0, 1, 2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_steps_in_words_lead_to_the_answer_and_a_guess_does_not() -> None:
    """Two hops are too far for two layers at once."""
    given = thoughts.settings().parse_args(["--steps", "450", "--rate", "0.003"])
    assert thoughts.measured(given, "words", 0)["accuracy"] > 0.9
    assert thoughts.measured(given, "none", 0)["accuracy"] < 0.7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thought_takes_the_place_of_a_step() -> None:
    """The first of two steps is a thought; the second one is still written."""
    given = thoughts.settings().parse_args(
        ["--steps", "450", "--rate", "0.003", "--stage-steps", "300", "--latents", "1"]
    )
    found = thoughts.measured(given, "latent", 0)
    assert found["accuracy"] > 0.9
    assert found["answer_tokens"] < 8  # 9 with both steps in words
