"""ROUGE, BLEU and chrF of generated texts: golden numbers, of a corpus, in a suite and a run."""

import pytest
from suites import local, write

from culm.config import SettingError
from culm.eval import text_metrics as module
from culm.eval.measure.measure import Subject
from culm.eval.measure.scores import Scores
from culm.eval.suite import answer_suite
from culm.eval.text_metrics import require_packages, text_metrics
from culm.task.prompts import Prompts

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")
SAID, RIGHT = "the cat is on the mat", "the cat sat on the mat"
ALL = ("rouge", "bleu", "chrf")


def test_golden_numbers() -> None:
    found = text_metrics(ALL, [SAID], [RIGHT])
    assert found["rouge1"]["value"] == pytest.approx(0.83333, abs=1e-5)
    assert found["rouge2"]["value"] == pytest.approx(0.6)
    assert found["rougeL"]["value"] == pytest.approx(0.83333, abs=1e-5)
    assert found["bleu"] == pytest.approx(37.99178, abs=1e-5)
    assert found["chrf"] == pytest.approx(61.92515, abs=1e-5)


def test_bleu_is_of_the_corpus_and_no_mean_of_sentences() -> None:
    both = text_metrics(("bleu",), [SAID, RIGHT], [RIGHT, RIGHT])["bleu"]
    pooled = 11 / 12 * 8 / 10 * 5 / 8 * 3 / 6  # n-grams of both that are right
    assert both == pytest.approx(100 * pooled**0.25)
    assert both - (37.99178 + 100) / 2 > 0.1
    assert text_metrics(("bleu",), ["the dog barked"], [RIGHT]) == {"bleu": 0.0}


def test_rouge_has_an_interval_over_the_replies() -> None:
    found = text_metrics(("rouge",), [SAID, RIGHT, "no"], [RIGHT] * 3)["rouge1"]
    assert found["items"] == 3
    assert found["low"] <= found["value"] == pytest.approx((0.83333 + 1) / 3, abs=1e-5)
    assert found["value"] <= found["high"]


@pytest.mark.slow
def test_a_suite_and_a_run_give_the_same_metrics(tmp_path) -> None:
    records = [{"prompt": f"Say fox {n}.", "answer": "a warm fox"} for n in range(12)]
    path = str(write(tmp_path, "say.jsonl", records))
    task = Prompts(name="say", path=path, split="test")
    measure = Scores(tasks=(task,), questions=None, samples=2, temperature=1.0, metrics=ALL)
    responder = local()
    answers = answer_suite(responder, "m", measure, 0)
    found = answers.results()["metrics"]
    replies = [reply for one in answers.answered for reply in one.replies]
    assert found == {"say": text_metrics(ALL, replies, ["a warm fox"] * 24)}
    subject = Subject(responder.model, responder.tokenizer, seed=0)
    assert measure.measure(subject)["metrics"] == found


def test_a_missing_package_is_named_before_anything_is_asked(monkeypatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "sacrebleu" else name)
    require_packages(("rouge",))
    with pytest.raises(SettingError, match=r"metrics: chrf needs .*culm\[eval\]"):
        require_packages(ALL[::2])
