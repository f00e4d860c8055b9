"""Characters, personal data and languages."""

from collections import Counter

import pytest

from culm.config import parse
from culm.data.clean.language import Language
from culm.data.clean.pii import CHECKS, IBAN_LENGTHS, Pii, iban, luhn
from culm.data.clean.stage import Rewriter
from culm.data.clean.unicode import Unicode


def rewritten(stage: Unicode | Pii, text: str) -> tuple[str, Counter]:
    step, changes = stage.build(), Counter()
    assert isinstance(step, Rewriter)
    return step.rewrite(text, changes), changes


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("bell\x07 and\x00 zero\x7f", "bell and zero"),
        ("one\r\ntwo\rthree\x0cfour\x85five\u2028six", "one\ntwo\nthree\nfour\nfive\nsix"),
        ("\ufeffsoft\xad hyphen\u200b\u202e", "soft hyphen"),
        ("lone \ud800 surrogate \uffff", "lone  surrogate "),
        ("cafe\u0301", "café"),
        ("family \U0001f468\u200d\U0001f469 \u0915\u094d\u200d\u0937",) * 2,  # joiners stay
        ("ﬁne \uff11\uff12", "ﬁne \uff11\uff12"),
    ],
)
def test_characters(given: str, wanted: str) -> None:
    assert rewritten(Unicode(mojibake=False), given)[0] == wanted
    assert rewritten(Unicode(mojibake=False), wanted) == (wanted, Counter())


def test_forms_are_a_setting() -> None:
    assert rewritten(Unicode(form="NFKC", mojibake=False), "ﬁne \uff11\uff12")[0] == "fine 12"
    assert rewritten(Unicode(form="none", mojibake=False), "e\u0301")[0] == "e\u0301"
    assert rewritten(Unicode(control=False, mojibake=False), "a\x07")[0] == "a\x07"


def test_mojibake_is_repaired_and_right_text_is_not() -> None:
    pytest.importorskip("ftfy")
    right = "Où est le café ? “Là-bas”, naïve Zoë — 東京 и Москва 🙂 Ärger über Öl"
    assert rewritten(Unicode(), right) == (right, Counter())
    for original in ("le café est fermé", "“quoted” — and more", "Müller hört Bläser"):
        wrong = original.encode().decode("cp1252", "replace")
        if "\ufffd" in wrong:
            wrong = original.encode().decode("latin-1")
        found, changes = rewritten(Unicode(control=False), f"{right}\n{wrong}")
        assert found == f"{right}\n{original}"
        assert changes == {"texts are decoded again, from mojibake": 1}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("Mail to: Ann.Lee+news@mail.example.co.uk.", "Mail to: [EMAIL]."),
        ("josé@correo.es, x@y.org", "[EMAIL], [EMAIL]"),
        ("@decorator and a @ b, user@host", None),
        ("IBAN GB82 WEST 1234 5698 7654 32 OF MINE", "IBAN [IBAN] OF MINE"),
        ("DE89370400440532013000", "[IBAN]"),
        ("FR14 2004 1010 0505 0001 3M02 606.", "[IBAN]."),
        ("DE89370400440532013001 and GB82WEST", None),
        ("4111 1111 1111 1111, 5500-0000-0000-0004", "[CARD], [CARD]"),
        ("378282246310005 or 3782 822463 10005", "[CARD] or [CARD]"),
        ("4111 1111 1111 1112", None),
        ("order 12345678901234567890123", None),
        ("from 8.8.8.8 port 53", "from [IPV4] port 53"),
        ("see 10.1.2.3, 127.0.0.1, 192.168.0.1, 1.2.3.4.5, 999.8.8.8", None),
        ("at 2a00:1450:4001:81b::200e and 2606:4700:4700:0:0:0:0:1111.", "at [IPV6] and [IPV6]."),
        ("std::vector a::b 12:30:45 ::1 fe80::1 f::c::d", None),
        ("+1 (212) 555-0123 or (212) 555-0123", "[PHONE] or [PHONE]"),
        ("Tel. +49 30 901820, 212-555-0123.", "Tel. [PHONE], [PHONE]."),
        ("in 1999-2004, 3.14159265, 2023-11-29, 5 + 3 = 8, ISBN 978-3-16-148410-0", None),
    ],
)
def test_personal_data(given: str, wanted: str | None) -> None:
    found, changes = rewritten(Pii(), given)
    assert found == (given if wanted is None else wanted)
    assert sum(changes.values()) == (0 if wanted is None else wanted.count("["))


def test_what_is_found_and_what_takes_its_place_are_settings() -> None:
    text = "a@b.org 8.8.8.8"
    assert rewritten(parse(Pii, {"find": "email"}), text)[0] == "[EMAIL] 8.8.8.8"
    assert rewritten(Pii(placeholder="<|{}|>"), text)[0] == "<|EMAIL|> <|IPV4|>"
    assert rewritten(Pii(placeholder="x"), text)[0] == "x x"


def test_a_changed_digit_fails_each_checksum() -> None:
    card, account = "4012888888881881", "NL91ABNA0417164300"
    assert luhn(card)
    assert iban(account)
    for place in range(len(card)):
        assert not luhn(card[:place] + str((int(card[place]) + 1) % 10) + card[place + 1 :])
    for place in range(8, len(account)):
        changed = account[:place] + str((int(account[place]) + 1) % 10) + account[place + 1 :]
        assert not iban(changed)
    assert set(CHECKS) == set(Pii().find)
    assert all(15 <= length <= 32 for length in IBAN_LENGTHS.values())


TEXTS = {
    "en": "The committee has not decided yet whether the bridge over the river will be repaired.",
    "de": "Der Ausschuss hat noch nicht entschieden, ob die Brücke über den Fluss repariert wird.",
    "fr": "Le comité n'a pas encore décidé si le pont sur la rivière sera réparé cette année.",
    "es": "El comité todavía no ha decidido si el puente sobre el río será reparado este año.",
    "ja": "委員会は、川に架かる橋を修理するかどうかをまだ決めていません。",
    "ru": "Комитет ещё не решил, будет ли отремонтирован мост через реку в этом году.",
}


def test_other_languages_are_dropped_by_name() -> None:
    pytest.importorskip("lingua")
    step = Language(keep=("en", "de"), among=tuple(TEXTS)).build()
    found = {code: step.apply([text], Counter()) for code, text in TEXTS.items()}
    assert [found[code] for code in ("en", "de")] == [[TEXTS["en"]], [TEXTS["de"]]]
    assert [found[code].reason for code in ("fr", "ja")] == ["language fr", "language ja"]  # type: ignore[union-attr]
    digits = step.apply(["12 34 56"], Counter())
    assert digits.reason == "no language is certain enough"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="en is not among de, fr"):
        Language(among=("de", "fr"))
