"""Personal data that a pattern can find, replaced by a placeholder.

Patterns are strict rather than complete: what has a checksum must pass it, and digits that nothing
shows to be a phone number are none. Names and postal addresses have no pattern and stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from culm.config import listed
from culm.data.clean.stage import Changes, Rewriter, Stage, Step

Personal = Literal["email", "iban", "card", "ipv6", "ipv4", "phone"]
NOUNS: dict[Personal, str] = {
    "email": "email addresses", "iban": "IBANs", "card": "numbers of credit cards",
    "ipv6": "IPv6 addresses", "ipv4": "IPv4 addresses", "phone": "phone numbers",
}  # fmt: skip

BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
PATTERNS: dict[Personal, re.Pattern[str]] = {
    "email": re.compile(
        r"(?<![\w.+-])\w[\w.+%-]{0,63}@(?:[\w](?:[\w-]{0,61}\w)?\.){1,8}[^\W\d_]{2,24}(?![\w-])"
    ),
    "iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b"),
    "card": re.compile(
        r"(?<![\w.-])(?:[2-6]\d{3}[ -]?(?:\d{4}[ -]?){2}\d{1,7}|3\d{3}[ -]?\d{6}[ -]?\d{5})"
        r"(?![\w-])"
    ),
    "ipv6": re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])"),
    "ipv4": re.compile(rf"(?<![\w.-])(?:{BYTE}\.){{3}}{BYTE}(?![\w-]|\.\d)"),
    "phone": re.compile(
        r"(?<![\w+(/.-])(?:\+\d{1,3}(?:[ .\u00a0-]?\(?\d{1,5}\)?){2,6}"
        r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)"
    ),
}
# Most texts have none of these, which are found fast, and then are not searched for more.
HINTS: dict[Personal, re.Pattern[str]] = {
    "email": re.compile("@"),
    "iban": re.compile(r"[A-Z]{2}\d{2}"),
    "card": re.compile(r"[2-6]\d{3}[ -]?\d{4}"),
    "ipv6": re.compile(":[0-9A-Fa-f]{0,4}:"),
    "ipv4": re.compile(r"\d\.\d{1,3}\.\d"),
    "phone": re.compile(r"\+\d|\d{3}[.\-) ]+\d{3}"),
}
CARD_DIGITS = range(13, 20)  # ISO/IEC 7812
PHONE_DIGITS = range(8, 16)  # at most as many as E.164 allows
GROUPS = 3  # of an IPv6 address, at least: `a::b` is more often code
# Letters and digits of an IBAN, by country (the registry of ISO 13616).
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR",
        27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU", 31: "MT SC", 32: "LC",
    }.items()
    for country in countries.split()
}  # fmt: skip


class Pii(Stage):
    """find: what is replaced: email, iban (with its checksum), card (a credit card, by the Luhn
        checksum), ipv6 and ipv4 (of the public internet), phone (with a country code, or in the
        form of North America).
    placeholder: what takes its place; {} is the name in capitals, such as [EMAIL].
    """

    kind: Literal["pii"] = "pii"
    find: Annotated[tuple[Personal, ...], BeforeValidator(listed), Field(min_length=1)] = (
        "email", "iban", "card", "ipv6", "ipv4", "phone",
    )  # fmt: skip
    placeholder: str = Field("[{}]", min_length=1)
    masks: ClassVar[bool] = True

    def build(self) -> Step:
        return _Masker(self)


class _Masker(Rewriter):
    def __init__(self, settings: Pii) -> None:
        self._kinds = [kind for kind in PATTERNS if kind in settings.find]  # in a fixed order
        self._shown = {kind: settings.placeholder.replace("{}", kind.upper()) for kind in NOUNS}

    def rewrite(self, text: str, changes: Changes) -> str:
        for kind in self._kinds:
            if HINTS[kind].search(text) is not None:
                text = self._masked(text, kind, changes)
        return text

    def _masked(self, text: str, kind: Personal, changes: Changes) -> str:
        def replaced(found: re.Match[str]) -> str:
            length = CHECKS[kind](found[0])
            if not length:
                return found[0]
            changes[f"{NOUNS[kind]} are masked"] += 1
            return self._shown[kind] + found[0][length:]

        return PATTERNS[kind].sub(replaced, text)


def luhn(number: str) -> bool:
    """Whether the digits pass the checksum of credit cards (ISO/IEC 7812-1, annex B)."""
    digits = [int(one) for one in number if one.isdigit()]
    doubled = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def iban(letters: str) -> bool:
    """Whether letters and digits pass the checksum of ISO 13616 (mod 97 of ISO 7064)."""
    if len(letters) != IBAN_LENGTHS.get(letters[:2]):
        return False
    turned = letters[4:] + letters[:4]
    return int("".join(str(int(one, 36)) for one in turned)) % 97 == 1


def _card(text: str) -> int:
    digits = sum(map(str.isdigit, text))
    return len(text) if digits in CARD_DIGITS and luhn(text) else 0


def _iban(text: str) -> int:
    """Words in capitals may follow, which the pattern takes for a part of it."""
    places = [place for place, letter in enumerate(text, start=1) if letter != " "]
    length = IBAN_LENGTHS.get(text[:2], 0)
    if not length or len(places) < length:
        return 0
    end = places[length - 1]
    inside = text[end : end + 1].isalnum()  # then a longer word begins before its end
    return end if not inside and iban(text[:end].replace(" ", "")) else 0


def _address(text: str) -> int:
    try:
        public = ip_address(text).is_global
    except ValueError:
        return 0
    groups = sum(map(bool, text.split(":")))
    return len(text) if public and ("." in text or groups >= GROUPS) else 0


def _phone(text: str) -> int:
    return len(text) if sum(map(str.isdigit, text)) in PHONE_DIGITS else 0


# How much of what a pattern finds is personal data, from its beginning; 0: it is none.
CHECKS: dict[Personal, Callable[[str], int]] = {
    "email": len, "iban": _iban, "card": _card, "ipv6": _address, "ipv4": _address,
    "phone": _phone,
}  # fmt: skip
