"""Counts of what a corpus contains that is left out, not used or unusual."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from culm.config import SettingError
from culm.data.example import Content, Dialogue
from culm.log import say
from culm.source import Invalid
from culm.source.record import LeftOut, Unreadable
from culm.source.source import strings_in
from culm.tokenizer.message import KNOWN_ROLES, MEANT
from culm.tokenizer.offsets import any_of
from culm.tokenizer.template import WRITTEN

DAMAGED = "files cannot be read, or not to their end, and are left out from there"
UNREADABLE = "records cannot be read and are left out"
UNASKED = "dialogues begin with the assistant, so its first answer is to no question"

EMPTY = "records hold no text and are left out"
SILENT = "dialogues have an empty answer"


class Notes:
    """Counts by a phrase that follows the number.

    invalid: with "skip", a record that cannot be read is one of them, and else an error. specials:
    names of special tokens, which are worth a remark in a text. silent: whether somebody else says
    that records are left out.
    """

    def __init__(
        self, invalid: Invalid, specials: Collection[str] = (), silent: bool = False
    ) -> None:
        self._silent = silent
        self.counts = Counter[str]()
        self._skips = invalid == "skip"
        self._specials: re.Pattern[str] = any_of(specials)

    def skipped(self, error: ValueError) -> None:
        """Count a record that is left out, or raise its error."""
        if isinstance(error, LeftOut):
            self.counts[str(error)] += 1
        elif self._skips:
            phrase = DAMAGED if isinstance(error, Unreadable) else UNREADABLE
            if not self.counts[phrase] and not self._silent:
                say(f"Left out, as data.invalid=skip asks: {error}")
            self.counts[phrase] += 1
        else:
            raise SettingError(f"{error}; correct it, or set data.invalid=skip to leave it out")

    @property
    def remarks(self) -> list[str]:
        """A sentence for each count."""
        return remarks_of(self.counts)

    def read(self, contents: Sequence[Content]) -> None:
        """Count what is unusual in the contents of a record."""
        self.counts.update([] if contents else [EMPTY])
        for content in contents:
            if isinstance(content, Dialogue):
                self.counts.update([UNASKED] * _begins_with_answer(content))
                self.counts.update([SILENT] * any(map(_is_empty_answer, content.messages)))
                self.counts.update(
                    f"messages have the role {role!r}, which is read and not learned"
                    for message in content.messages
                    if (role := message.get("role")) not in KNOWN_ROLES
                )
                self.counts.update(
                    f"dialogues contain {name} as text, and not as the special token"
                    for name in set(self._specials.findall("\n".join(strings_in(content.messages))))
                    if not WRITTEN.fullmatch(name)
                )
            else:
                self.counts.update(
                    f"documents contain {name} as text; data.separator={name!r} would divide them "
                    "there"
                    for name in set(self._specials.findall(content))
                )


def remarks_of(counts: Mapping[str, int]) -> list[str]:
    """A sentence for each count of a phrase."""
    return [f"{count:,} {phrase}." for phrase, count in counts.items()]


def _is_empty_answer(message: Mapping[str, Any]) -> bool:
    """Whether an assistant says, thinks and calls nothing."""
    content = message.get("content")
    said = content.strip() if isinstance(content, str) else content
    return message.get("role") == "assistant" and not any((said, *map(message.get, MEANT)))


def _begins_with_answer(dialogue: Dialogue) -> bool:
    roles = (message.get("role") for message in dialogue.messages)
    return next((role for role in roles if role != "system"), None) == "assistant"
