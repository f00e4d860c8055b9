"""How close generated texts are to their references: ROUGE, BLEU and chrF."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, Literal

from culm.config import SettingError
from culm.eval.interval import bootstrap

TextMetric = Literal["rouge", "bleu", "chrf"]
ROUGE = ("rouge1", "rouge2", "rougeL")
PACKAGES: dict[TextMetric, str] = {
    "rouge": "rouge_score", "bleu": "sacrebleu", "chrf": "sacrebleu",
}  # fmt: skip


def require_packages(names: Iterable[TextMetric]) -> None:
    """Whether all metrics can be computed here.

    Raises:
        SettingError: a package is not installed.
    """
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            raise SettingError(f"metrics: {name} needs a further package; pip install 'culm[eval]'")


def text_metrics(
    names: Iterable[TextMetric], replies: Sequence[str], references: Sequence[str]
) -> dict[str, Any]:
    """Results by name, of replies and the reference of each.

    rouge1, rouge2, rougeL: mean F1 over the replies with its 95 % interval, without stemming
    (Lin 2004, as the package rouge-score). bleu, chrf: from 0 to 100, of all replies as one corpus:
    counts of n-grams are added before they are divided, since a mean over sentences is another
    number (sacrebleu with its defaults, 1804.08771).
    """
    found: dict[str, Any] = {}
    for name in names:
        if name == "rouge":
            found |= _rouge(replies, references)
        else:
            found[name] = _corpus(name, replies, references)
    return found


def _rouge(replies: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    from rouge_score.rouge_scorer import RougeScorer  # an extra

    scorer = RougeScorer(list(ROUGE))
    each = [scorer.score(right, said) for said, right in zip(replies, references, strict=True)]
    return {name: asdict(bootstrap([one[name].fmeasure for one in each])) for name in ROUGE}


def _corpus(name: TextMetric, replies: Sequence[str], references: Sequence[str]) -> float:
    import sacrebleu  # an extra

    metric = sacrebleu.BLEU() if name == "bleu" else sacrebleu.CHRF()
    return float(metric.corpus_score(list(replies), [list(references)]).score)
