"""The tokenizer: text to ids and back, over the `tokenizers` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import tokenizers

from culm.config import SettingError
from culm.files import write_json
from culm.source.pieces import PIECE, pieces
from culm.source.record import valid
from culm.tokenizer.alphabet import spellings
from culm.tokenizer.chat import (
    ARGUMENTS,
    FIM_TOKENS,
    SPECIALS,
    TEMPLATE,
    Chat,
    token_name,
    token_names,
)
from culm.tokenizer.ends import ends_of
from culm.tokenizer.fast import Encode, fast_encoder
from culm.tokenizer.folder import read_parts, write_settings
from culm.tokenizer.generation import GENERATION, suppressed_tokens
from culm.tokenizer.offsets import OffsetEncoder
from culm.tokenizer.parts import without_prefix, without_specials
from culm.tokenizer.spacy_words import WORDS, word_encoder
from culm.tokenizer.vectors import check_vectors, write_vectors

WORTH_THREADS = 8  # texts from which on threads save time


class Tokenizer:
    """Text to token ids and back.

    vocabulary: every id is less than this. specials: id of each special token.
    end_of_text: id after each document, also padding. end_of_turn: id after each chat message.
    stop_ids: generation ends at any of them. suppressed: ids that are never generated.
    template: jinja source of the chat template.
    fingerprint: SHA-256, different for different tokenizers. words: language whose rules in spaCy
    split text into words; None where `tokenizer.json` says all.

    settings: content of `tokenizer_config.json`. stops: the ids that end generation, where a file
    lists them; otherwise well-known names decide (`culm.tokenizer.ends`). generation: content of
    `generation_config.json`, kept for an export.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        template: str | None = None,
        stops: Iterable[int] = (),
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        self.template = template
        self.settings = dict(settings or {})
        self.generation = dict(generation or {})
        self._json = inner.to_str()
        # Two views of one vocabulary, since switching between them is not thread-safe.
        self._marked = inner
        self._plain = without_specials(self._json)
        self.words = self.settings.get(WORDS)
        self._fast = self._faster()
        facts = self._json if self.words is None else f"{self._json}{WORDS}={self.words}"
        self.fingerprint = hashlib.sha256(facts.encode()).hexdigest()
        added = inner.get_added_tokens_decoder()
        self.specials = {token.content: id for id, token in added.items() if token.special}
        ids = inner.get_vocab(with_added_tokens=True)
        self.vocabulary = max(ids.values(), default=-1) + 1
        ends = ends_of(ids, self.specials, self.settings, stops)
        self.end_of_text, self.end_of_turn, self.stop_ids = ends
        self.suppressed = suppressed_tokens(self.generation, self.vocabulary)

    def _faster(self) -> Encode | None:
        if self.words is None:
            return fast_encoder(self._plain)
        return word_encoder(str(self.words), self._marked.get_vocab(with_added_tokens=False))

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which builds the encoder and the templates again."""
        made = {name for name, one in vars(Tokenizer).items() if isinstance(one, cached_property)}
        return {n: value for n, value in self.__dict__.items() if n not in {"_fast", *made}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fast = self._faster()

    @cached_property
    def start(self) -> list[int]:
        """Ids that an imported tokenizer adds before every document; ours adds none."""
        bare = self._marked.encode("a", add_special_tokens=False).ids
        full = self._marked.encode("a", add_special_tokens=True).ids
        return next(
            (full[:n] for n in range(len(full)) if bare and full[n : n + len(bare)] == bare), []
        )

    @property
    def begin(self) -> int | None:
        """Id of the begin token, which templates name `bos_token`; None if nothing declares it."""
        declared = self._id("bos_token")
        return declared if declared is not None else next(iter(self.start), None)

    def _id(self, name: str) -> int | None:
        """The id of a token that the settings name, or the generation settings give."""
        token = token_name(self.settings.get(name))
        id = self._marked.token_to_id(token) if token else None
        given = self.generation.get(f"{name}_id") if id is None else id
        return given if given in range(self.vocabulary) else None

    @property
    def generation_config(self) -> dict[str, Any]:
        """The content of `generation_config.json`: what was read, and all stops."""
        pad = self._id("pad_token")
        ids = {"bos_token_id": self.begin, "pad_token_id": self.end_of_text if pad is None else pad}
        return {**ids, **self.generation, "eos_token_id": sorted(self.stop_ids)}

    @cached_property
    def chat(self) -> Chat:
        """Dialogues through the chat template."""
        return Chat(self)

    def with_chat(self) -> Tokenizer:
        """The same with our chat template, and new ids for the special tokens that it needs.

        Its stop ids stay, and the end of a turn is one more. A tokenizer that has a template is
        returned as it is.
        """
        if self.template is not None:
            return self
        inner = tokenizers.Tokenizer.from_str(self._json)
        inner.add_special_tokens(list(SPECIALS[1:]))
        end = inner.get_vocab()[SPECIALS[-1]]
        settings = {**self.settings, "end_of_text_id": self.end_of_text}
        # A dialogue begins like a document.
        start = "".join(inner.id_to_token(id) or "" for id in self.start)
        template = "{{- " + json.dumps(start, ensure_ascii=False) + " -}}\n" if start else ""
        stops = {*self.stop_ids, end}
        return Tokenizer(inner, settings, template + TEMPLATE, stops, self.generation)

    def with_fim(self) -> Tokenizer:
        """The same with new ids for the special tokens of fill-in-the-middle."""
        inner = tokenizers.Tokenizer.from_str(self._json)
        inner.add_special_tokens(list(FIM_TOKENS))
        settings = {**self.settings, "end_of_text_id": self.end_of_text}
        return Tokenizer(inner, settings, self.template, self.stop_ids, self.generation)

    def with_template_arguments(self, arguments: Mapping[str, Any]) -> Tokenizer:
        """The same with further variables for its chat template."""
        settings = {**self.settings, ARGUMENTS: dict(arguments)}
        inner = tokenizers.Tokenizer.from_str(self._json)
        return Tokenizer(inner, settings, self.template, self.stop_ids, self.generation)

    @cached_property
    def template_fingerprint(self) -> str:
        """Of what decides how a dialogue is written; `fingerprint` is of the ids alone."""
        names = token_names(self._stored_settings)
        facts = [self.template, names, self.settings.get(ARGUMENTS) or {}]
        written = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(written.encode()).hexdigest()

    @cached_property
    def offsets(self) -> OffsetEncoder:
        """Ids of texts that contain special tokens, with their places."""
        return OffsetEncoder(
            self._marked,
            self._plain,
            self._middle(False),
            self._inside,
            self._fast,
            lambda: self.sizes,
        )

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The same tokenizer for the middle of a text: it adds no space before it."""
        return self._middle(True)

    def _middle(self, plain: bool) -> tokenizers.Tokenizer:
        written = without_prefix(self._json)
        if written is None:
            return self._plain if plain else self._marked
        return without_specials(written) if plain else tokenizers.Tokenizer.from_str(written)

    @cached_property
    def sizes(self) -> list[int]:
        """Bytes of each token."""
        return list(map(len, self._spellings))

    @property
    def _prefixed(self) -> bool:
        return self._inside is not self._plain

    @cached_property
    def _spellings(self) -> list[bytes]:
        return spellings(self._marked)

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Token ids; the names of special tokens are plain text unless `specials`."""
        if specials and self.words is not None:
            return self.offsets.encode(valid(text)).ids
        if specials:
            return self._marked.encode(valid(text), add_special_tokens=False).ids
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each text, on all cores if the library can."""
        gap = " " if self._prefixed else None
        cut = [list(pieces(valid(text), PIECE, gap)) for text in texts]
        firsts = self._encode_all([first for first, *_ in cut], self._plain)
        rests = self._encode_all([piece for _, *rest in cut for piece in rest], self._inside)
        return [list(chain(next(firsts), *islice(rests, len(parts) - 1))) for parts in cut]

    def _encode_all(self, texts: Sequence[str], inner: tokenizers.Tokenizer) -> Iterator[list[int]]:
        if self._fast is None:
            return (e.ids for e in inner.encode_batch_fast(texts, add_special_tokens=False))
        if len(texts) < WORTH_THREADS:
            return map(self._fast, texts)
        with ThreadPoolExecutor() as pool:
            return pool.map(self._fast, texts)

    def stops_named(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of the special tokens with these names: no text shows where a reply ends at one."""
        return frozenset(self.specials[text] for text in texts if text in self.specials)

    def decode(self, ids: Sequence[int], specials: bool = False) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD. Special tokens show if `specials`."""
        for id in ids:
            self._check(id)
        return self._marked.decode(ids, skip_special_tokens=not specials)

    def bytes_of(self, id: int) -> bytes:
        """The bytes of one token; none for a special token."""
        self._check(id)
        return self._spellings[id]

    def _check(self, id: int) -> None:
        if not 0 <= id < self.vocabulary:
            raise ValueError(f"token id {id} is not in the vocabulary of {self.vocabulary}")

    @property
    def json(self) -> str:
        """The content of `tokenizer.json`."""
        return self._json

    def save(self, folder: str | Path) -> None:
        """Write the files from which `load` and transformers restore this tokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self._json, encoding="utf-8")
        write_settings(folder, self._stored_settings, self.template)
        if self.generation:
            write_json(folder / GENERATION, self.generation_config)
        write_vectors(self, folder)

    @property
    def _stored_settings(self) -> dict[str, Any]:
        """The settings as a file has them, with the names of the ends."""
        names = {id: name for name, id in self.specials.items()}
        ends = {"eos_token": names.get(self.end_of_text), "pad_token": names.get(self.end_of_text)}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{key: name for key, name in ends.items() if name is not None},
            **self.settings,
            "end_of_text_id": self.end_of_text,
            "stop_ids": sorted(self.stop_ids),
        }

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From a folder of ours, or any Hugging Face folder with a tokenizer.json or, of
        SentencePiece, a tokenizer.model.

        Raises:
            SettingError: a file is missing or broken, or the ids differ from those stored there.
        """
        folder = Path(folder)
        parts = read_parts(folder)
        try:
            loaded = cls(*parts)
        except SettingError as error:
            raise SettingError(f"{folder}: {error}") from None
        check_vectors(loaded, folder)
        return loaded
