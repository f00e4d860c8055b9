"""A linear classifier of texts on hashed words and pairs of words, as fastText (1607.01759) with a
vector of one dimension: it learns in seconds, and reads megabytes in a second.

The probability of a text is sigmoid(b + s / sqrt(n)), with s the sum of the weights of its n
distinct features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from culm.atomic import atomic
from culm.config import SettingError
from culm.data.words import hashes_of, runs_of, words_of
from culm.seed import keyed

FEATURES = 1 << 18
LENGTHS = (1, 2)  # words of a feature
EPOCHS, RATE = 5, 0.5
HELD_OUT = 5  # one text in this many is not trained on
KIND = "culm.text_classifier"


@dataclass(frozen=True)
class Accuracy:
    """Of texts that were not trained on: shares of the positive and of the negative ones that are
    right, and how many there are of each kind.
    """

    positive: float
    negative: float
    positives: int
    negatives: int

    @property
    def texts(self) -> int:
        """Of both kinds."""
        return self.positives + self.negatives

    @property
    def balanced(self) -> float:
        """The mean over both kinds, 0.5 for a classifier that always says the same."""
        return (self.positive + self.negative) / 2

    @property
    def interval(self) -> tuple[float, float]:
        """The balanced accuracy may be anywhere in it: 95 %, by the normal approximation with the
        estimate of Agresti and Coull (1998) for each share, which holds for few texts too.
        """
        shares = ((self.positive, self.positives), (self.negative, self.negatives))
        smooth = [((share * count + 2) / (count + 4), count + 4) for share, count in shares]
        middle = sum(share for share, _ in smooth) / 2
        width = 1.96 * math.sqrt(sum(share * (1 - share) / count for share, count in smooth)) / 2
        return max(0.0, middle - width), min(1.0, middle + width)

    @property
    def better_than_chance(self) -> bool:
        """Whether 0.5 is below the interval."""
        return self.interval[0] > 0.5


@dataclass(frozen=True)
class LinearClassifier:
    """weight: (262144,) float32; bias: one number."""

    weight: np.ndarray
    bias: float

    def probability(self, text: str) -> float:
        """That a text is like the positive ones."""
        return _sigmoid(self._score(features_of(text)))

    def _score(self, features: np.ndarray) -> float:
        total = self.weight[features].sum(dtype=np.float64)
        return self.bias + float(total) / math.sqrt(max(1, len(features)))

    def accuracy(self, positive: Sequence[np.ndarray], negative: Sequence[np.ndarray]) -> Accuracy:
        """On texts, by their features."""
        right = sum(self._score(one) >= 0 for one in positive)
        wrong = sum(self._score(one) >= 0 for one in negative)
        return Accuracy(
            right / len(positive), 1 - wrong / len(negative), len(positive), len(negative)
        )

    def save(self, path: Path, facts: dict[str, object]) -> None:
        """Write it with facts about its training."""
        metadata = {"kind": KIND, "facts": json.dumps(facts)}
        tensors = {"weight": self.weight, "bias": np.array([self.bias], dtype=np.float64)}
        with atomic(path) as fresh:
            save_file(tensors, fresh, metadata)

    @staticmethod
    def load(path: Path, setting: str) -> LinearClassifier:
        """As `save` wrote it. setting: what errors call it.

        Raises:
            SettingError: there is no such file, or another one.
        """
        try:
            with safe_open(path, "numpy") as file:
                if (file.metadata() or {}).get("kind") == KIND:
                    return LinearClassifier(
                        file.get_tensor("weight"), float(file.get_tensor("bias")[0])
                    )
        except (OSError, SafetensorError) as error:
            raise SettingError(f"{setting}: {path} cannot be read: {error}") from None
        raise SettingError(f"{setting}: {path} is no classifier; culm classifier writes one")


def features_of(text: str) -> np.ndarray:
    """(n,) the distinct features of a text, of 262144."""
    hashes = hashes_of(words_of(text))
    each = [runs_of(hashes, length) >> np.uint64(64 - 18) for length in LENGTHS]
    return np.unique(np.concatenate(each)).astype(np.int64)


def train(
    positive: Iterable[str], negative: Iterable[str], seed: int = 0
) -> tuple[LinearClassifier, Accuracy]:
    """A classifier, and how good it is on a fifth of the texts, which a hash of the text chooses.

    AdaGrad with the logistic loss, a text a step; both kinds weigh the same, however many they are.

    Raises:
        SettingError: a kind has too few texts to train and to measure, or most texts of one are
            texts of the other.
    """
    kinds = {"positive": _distinct(positive), "negative": _distinct(negative)}
    both = len(kinds["positive"].keys() & kinds["negative"].keys())
    for name, texts in kinds.items():
        if 2 * both > len(texts):
            raise SettingError(
                f"{name}: {both} of its {len(texts)} distinct texts are texts of the other kind "
                "too, which tells neither; give other texts"
            )
        if not all(_split(texts)):
            raise SettingError(
                f"{name}: {len(texts)} distinct texts are too few to train and to "
                "measure; give more, or shorter ones with data.format.max_characters=2000"
            )
    (good, good_test), (bad, bad_test) = map(_split, kinds.values())
    found = _fitted(good, bad, seed)
    return found, found.accuracy(good_test, bad_test)


Features = dict[bytes, np.ndarray]  # of texts, by their digests


def _distinct(texts: Iterable[str]) -> Features:
    """Without texts that have no word."""
    found: Features = {}
    for text in texts:
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest not in found and len(features := features_of(text)):
            found[digest] = features
    return found


def _split(texts: Features) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Texts to train on, and to measure with."""
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for digest, features in texts.items():
        parts[digest[0] % HELD_OUT == 0].append(features)
    return parts


def _fitted(good: Sequence[np.ndarray], bad: Sequence[np.ndarray], seed: int) -> LinearClassifier:
    weight, squares = np.zeros(FEATURES), np.full(FEATURES, 1e-2)
    bias, bias_square = 0.0, 1e-2
    count = len(good) + len(bad)
    texts = [(one, 1.0, count / (2 * len(good))) for one in good]
    texts += [(one, 0.0, count / (2 * len(bad))) for one in bad]
    for epoch in range(EPOCHS):
        keyed(seed, "classifier", epoch).shuffle(texts)
        for features, label, share in texts:
            scale = 1 / math.sqrt(len(features))
            slope = share * (_sigmoid(bias + weight[features].sum() * scale) - label)
            squares[features] += (slope * scale) ** 2
            weight[features] -= RATE * slope * scale / np.sqrt(squares[features])
            bias_square += slope**2
            bias -= RATE * slope / math.sqrt(bias_square)
    return LinearClassifier(weight.astype(np.float32), bias)


def _sigmoid(score: float) -> float:
    return 0.5 * (1 + math.tanh(score / 2))
