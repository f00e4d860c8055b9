"""Which documents of a corpus are held out: a share of its bytes, chosen by a hash of the text.

short documents     each is in one split
long documents      one stretch is held out, the text before and after it is trained on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from culm.config import SettingError
from culm.data.example import Content, Dialogue, bytes_of
from culm.source.pieces import cut_before

Duplicates = Literal["drop", "keep"]

LONG = 1 << 15  # characters from which on a document is divided itself
STRETCH = 1 << 11  # characters that are held out of it, at least


@dataclass(frozen=True, slots=True)
class Unit:
    """Contents that belong together: one, a pair or a ranking. place: of their record. numbers: of
    each content (`RecordFormat.numbers`), or none. difficulty: the number in the record's field for
    a curriculum, if it has such a field. held_out: whether it is kept for evaluation.
    """

    contents: list[Content]
    place: str
    numbers: Sequence[tuple[float, ...]] = ()
    difficulty: tuple[float, ...] = ()
    held_out: bool = False

    @property
    def size(self) -> int:
        """Bytes of its text."""
        return sum(map(bytes_of, self.contents))


Divided = Iterator[tuple[str, Unit]]  # the split of each unit


class Divider:
    """A split for each unit that was not seen before.

    A key in [0, 1) comes from the content alone, so that a document stays in its split whatever
    stands around it. The text with the lowest key waits until the end: it is the one to hold out
    where no key is below the share, and the one to train on where all are.

    dropped: units that were seen before.
    """

    def __init__(self, held_out: float, seed: int, advice: str, duplicates: Duplicates) -> None:
        """advice: what to say of how one short document becomes several."""
        self._keep = duplicates == "keep"
        self._held_out, self._seed, self._advice = held_out, seed.to_bytes(8, "little"), advice
        self._seen: set[bytes] = set()
        self.dropped = 0

    def divide(self, units: Iterable[Unit], source: str) -> Divided:
        """Each new unit with its split.

        Raises:
            SettingError: there is only one, and it is short.
        """
        lowest, waiting = 1.0, list[Unit]()  # equal texts have one key, and belong in one split
        used = set[str]()
        for key, unit in self._keyed(units):
            if key == lowest:
                waiting.append(unit)
                continue
            ready = [(key, unit)]
            if key < lowest:
                ready = [(lowest, one) for one in waiting]
                lowest, waiting = key, [unit]
            for one in ready:
                for split, part in self._divided(*one):
                    used.add(split)
                    yield split, part
        for unit in waiting:
            yield from self._last(lowest, unit, used, source)

    def _divided(self, key: float, unit: Unit) -> Divided:
        parts = _parts(unit, key, self._held_out) if self._held_out else None
        if parts is not None:
            yield from parts
        else:
            yield "held_out" if key < self._held_out else "train", unit

    def _last(self, key: float, unit: Unit, used: set[str], source: str) -> Divided:
        """The unit with the lowest key, in the split that needs it."""
        if not self._held_out:
            yield "train", unit
        elif (parts := _parts(unit, key, self._held_out, always=True)) is not None:
            yield from parts
        elif not used:
            dropped = f" ({self.dropped} duplicates are dropped)" if self.dropped else ""
            raise SettingError(
                f"{source}: one document{dropped} cannot be divided into training and held-out "
                f"text; give more, or in a run file {self._advice}data.held_out=0 to hold out "
                "nothing"
            )
        else:
            yield "held_out" if "train" in used else "train", unit

    def _keyed(self, units: Iterable[Unit]) -> Iterator[tuple[float, Unit]]:
        """Each new unit with its key; duplicates are counted."""
        for unit in units:
            digest = _digest(unit.contents)
            # The same answer with another label is no duplicate, but belongs in the same split.
            known = _digest([digest.hex(), unit.numbers]) if unit.numbers else digest
            if known in self._seen and not self._keep:
                self.dropped += 1
                continue
            self._seen.add(known)
            keyed = hashlib.blake2b(digest, key=self._seed, digest_size=8).digest()
            yield int.from_bytes(keyed, "little") / 2**64, unit


def _digest(parts: Sequence[Any]) -> bytes:
    said = [
        one.messages if isinstance(one, Dialogue) and one.tools is None else one for one in parts
    ]
    written = json.dumps(said, sort_keys=True, default=str)
    return hashlib.blake2b(written.encode(), digest_size=16).digest()


def _parts(
    unit: Unit, key: float, share: float, always: bool = False
) -> list[tuple[str, Unit]] | None:
    """A long document before, in and after the stretch that is held out; None for a short one.

    The stretch is `share` of the text. Where that would be too short to measure on, it is longer
    and, unless `always`, fewer documents have one.
    """
    [text, *others] = unit.contents
    if others or not isinstance(text, str) or len(text) < LONG:
        return None
    wanted = share * len(text)
    length = max(wanted, STRETCH)
    place = key * length / wanted
    if place >= 1 and not always:
        return [("train", unit)]
    # Below 1 it is as random as the key, and independent of how many documents have a stretch.
    start = int(place % 1 * (len(text) - length))
    first = cut_before(text, 0, start)
    last = cut_before(text, first, start + int(length))
    parts = (("train", text[:first]), ("held_out", text[first:last]), ("train", text[last:]))
    return [(split, replace(unit, contents=[part])) for split, part in parts if part.strip()]
