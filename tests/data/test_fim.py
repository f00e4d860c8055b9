"""Fill-in-the-middle: the text is complete, its middle comes last, and the key is the text."""

import re
from collections import Counter

import pytest
from test_prepare import Records

from culm.config import SettingError
from culm.data.format.document import DocumentFormat
from culm.data.format.fim import FIM
from culm.data.prepare import prepare
from culm.data.prepared import Prepared
from culm.run.settings import read_run
from culm.tokenizer.bytes import Bytes
from culm.tokenizer.chat import FIM_TOKENS
from culm.tokenizer.tokenizer import Tokenizer
from culm.tokenizer.train import BPE

PREFIX, SUFFIX, MIDDLE = map(re.escape, FIM_TOKENS)
PSM = re.compile(f"{PREFIX}(.*){SUFFIX}(.*){MIDDLE}(.*)", re.DOTALL)
TEXTS = [f"def f{n}(a):\n    return a + {n}\n" * (1 + n % 3) for n in range(400)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return BPE(vocabulary=400, fim=True).build(TEXTS)


def test_every_part_is_there_once(tokenizer: Tokenizer) -> None:
    kinds = Counter[str]()
    for text in TEXTS:
        ids = FIM(rate=0.6, spm=0.3).rearranged(text, tokenizer)
        if ids is None:
            kinds["plain"] += 1
            continue
        found = PSM.fullmatch(tokenizer.decode(ids, specials=True))
        assert found is not None
        before, after, between = found.groups()
        if before + between + after == text:
            kinds["psm" if before else "either"] += 1
        else:
            assert not before
            raise AssertionError(text)
    assert kinds["plain"] / len(TEXTS) == pytest.approx(0.4, abs=0.08)
    assert kinds["psm"] / (kinds["psm"] + kinds["either"]) == pytest.approx(0.7, abs=0.1)


def test_the_order_is_the_one_asked_for(tokenizer: Tokenizer) -> None:
    for spm in (0.0, 1.0):
        rows = [FIM(rate=1, spm=spm).rearranged(text, tokenizer) for text in TEXTS[:50]]
        texts = [tokenizer.decode(row or [], specials=True) for row in rows]
        empty = [text.startswith(FIM_TOKENS[0] + FIM_TOKENS[1]) for text in texts]
        assert all(empty) if spm else sum(empty) < 10


def test_a_document_is_rearranged_the_same_wherever_it_stands(tokenizer: Tokenizer) -> None:
    format = DocumentFormat(fim=FIM(rate=0.5))
    whole = [one.tokens for one in format.encode(TEXTS, tokenizer)]
    turned = [one.tokens for one in format.encode(TEXTS[::-1], tokenizer)]
    assert turned[::-1] == whole
    other = [one.tokens for one in DocumentFormat(fim=FIM(seed=1)).encode(TEXTS, tokenizer)]
    assert other != whole
    plain = [one.tokens for one in DocumentFormat().encode(TEXTS, tokenizer)]
    same = sum(a == b for a, b in zip(plain, whole, strict=True))
    assert same / len(TEXTS) == pytest.approx(0.5, abs=0.08)
    assert all(row[-1] == tokenizer.end_of_text for row in whole)


def test_names_of_special_tokens_in_a_text_are_letters(tokenizer: Tokenizer) -> None:
    text = f"a{FIM_TOKENS[2]}b<|end|>c" * 3
    for seed in range(20):
        ids = FIM(rate=1, seed=seed).rearranged(text, tokenizer)
        assert ids is not None
        special = [id for id in ids if id in tokenizer.specials.values()]
        assert special == [tokenizer.specials[name] for name in FIM_TOKENS]


def test_a_tokenizer_without_the_tokens_is_refused_before_the_first_record(tmp_path) -> None:
    with pytest.raises(SettingError, match=r"data\.format\.fim: .* tokenizer\.fim=true"):
        prepare(
            Records([{"text": "a"}]), DocumentFormat(fim=FIM()), Bytes(specials=True).build(),
            tmp_path / "p", invalid="skip",
        )  # fmt: skip


@pytest.mark.parametrize("specials", [False, True])
def test_tokens_are_added(specials: bool, tmp_path) -> None:
    bare = Bytes(specials=specials)
    for tokenizer in (
        bare.build().with_fim(),
        bare.model_copy(update={"fim": True}).build(),
    ):
        assert tokenizer.vocabulary == bare.build().vocabulary + 3
        assert tokenizer.end_of_text == bare.build().end_of_text
        assert tokenizer.stop_ids == bare.build().stop_ids
        tokenizer.save(tmp_path / "t")
        assert FIM().sentinels(Tokenizer.load(tmp_path / "t")) == FIM_TOKENS
        assert tokenizer.with_fim().vocabulary == tokenizer.vocabulary
    prepare(
        Records([{"text": text} for text in TEXTS]), DocumentFormat(fim=FIM(rate=1)),
        tokenizer, tmp_path / "p", held_out=0,
    )  # fmt: skip
    assert Prepared.open(tmp_path / "p").facts.bytes == sum(map(len, TEXTS))


def test_bpe_has_room_for_them() -> None:
    with pytest.raises(ValueError, match="vocabulary: it should be at least 265"):
        BPE(vocabulary=264, fim=True)


def test_a_new_tokenizer_has_the_vocabulary_of_its_model() -> None:
    run, _ = read_run("pretrain", ["model=nano", "tokenizer.fim=true", "data.path=x"])
    assert run.tokenizer == BPE(vocabulary=run.model.vocabulary, fim=True)
    run, _ = read_run("pretrain", ["model=nano", "tokenizer.vocabulary=300", "data.path=x"])
    assert run.tokenizer == BPE(vocabulary=300)
