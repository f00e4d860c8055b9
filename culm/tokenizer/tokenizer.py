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
from culm.files import read_json
from culm.log import say
from culm.tokenizer.alphabet import spellings
from culm.tokenizer.chat import Chat, token_name
from culm.tokenizer.fast import fast_encoder
from culm.tokenizer.pieces import pieces
from culm.tokenizer.prefix import without_prefix

SPECIALS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
# What a folder with a tokenizer of ours holds.
CONFIG, MARKS, CHAT = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
FILES = {"tokenizer.json", CONFIG, MARKS, CHAT}
WORTH_THREADS = 8  # texts, from which on it pays to start some
PIECE = 1 << 16  # characters encoded at once: the library needs 100 bytes a token while it works

# Each message is <|role|>content<|end|>; nothing else, so that text meets only special tokens.
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception('a role is system, user, assistant or tool, not ' ~ message.role) -}}
{%- endif -%}
{{- '<|' ~ message.role ~ '|>' ~ message.content ~ '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

# Names by which well-known models end a document and a turn, ours first.
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
ENDS_OF_TURN = ("<|end|>", "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>")


class Tokenizer:
    """Text to token ids and back.

    vocabulary: ids are below it. specials: id of each special token.
    end_of_text: id after each document, also padding. end_of_turn: id after each chat message.
    stop_ids: generation ends at any of them. template: jinja source of the chat template.
    fingerprint: SHA-256 that tells tokenizers apart.

    settings: what a `tokenizer_config.json` holds; `stops` are further ids that end generation.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        settings: Mapping[str, Any] | None = None,
        template: str | None = None,
        stops: Iterable[int] = (),
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        self.template = template
        self.settings = dict(settings or {})
        self._json = inner.to_str()
        # Two views of one vocabulary, as the switch between them is not safe among threads.
        self._marked = inner
        self._plain = tokenizers.Tokenizer.from_str(self._json)
        self._plain.encode_special_tokens = True
        self._fast = fast_encoder(self._plain)
        self.fingerprint = hashlib.sha256(self._json.encode()).hexdigest()
        added = inner.get_added_tokens_decoder()
        self.specials = {token.content: id for id, token in added.items() if token.special}
        self.vocabulary = max(inner.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.end_of_text = self._end(ENDS_OF_TEXT, self.settings.get("end_of_text_id"))
        self.end_of_turn = self._end(ENDS_OF_TURN, self.end_of_text)
        self.stop_ids = frozenset({self.end_of_text, self.end_of_turn, *stops})

    def _end(self, names: Sequence[str], default: int | None) -> int:
        eos = token_name(self.settings.get("eos_token"))
        for name in (*names, eos):
            if name in self.specials:
                return self.specials[name]
        if default is None:
            raise SettingError(f"tokenizer: no special token ends a text; known: {names}")
        return default

    @cached_property
    def start(self) -> list[int]:
        """Ids that an imported tokenizer puts before every document; ours puts none."""
        bare = self._marked.encode("a", add_special_tokens=False).ids
        full = self._marked.encode("a", add_special_tokens=True).ids
        return next(
            (full[:n] for n in range(len(full)) if bare and full[n : n + len(bare)] == bare), []
        )

    @cached_property
    def chat(self) -> Chat:
        """Dialogues through the chat template."""
        return Chat(self)

    @cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """For what stands inside a text: the same tokenizer, but no space is put first."""
        written = without_prefix(self._json)
        if written is None:
            return self._plain
        inner = tokenizers.Tokenizer.from_str(written)
        inner.encode_special_tokens = True
        return inner

    @property
    def _prefixed(self) -> bool:
        return self._inside is not self._plain

    @cached_property
    def _spellings(self) -> list[bytes]:
        return spellings(self._marked)

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Token ids; the names of special tokens are plain text unless `specials`."""
        if specials:
            return self._marked.encode(_valid(text), add_special_tokens=False).ids
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """As `encode` for each text, on all cores where the library can."""
        gap = " " if self._prefixed else None
        cut = [list(pieces(_valid(text), PIECE, gap)) for text in texts]
        firsts = self._encode_all([first for first, *_ in cut], self._plain)
        rests = self._encode_all([piece for _, *rest in cut for piece in rest], self._inside)
        return [list(chain(next(firsts), *islice(rests, len(parts) - 1))) for parts in cut]

    def _encode_all(self, texts: Sequence[str], inner: tokenizers.Tokenizer) -> Iterator[list[int]]:
        if self._fast is None:
            return (e.ids for e in inner.encode_batch_fast(texts, add_special_tokens=False))
        if len(texts) < WORTH_THREADS:
            return map(self._fast, texts)
        with ThreadPoolExecutor() as pool:
            return iter(list(pool.map(self._fast, texts)))

    def encode_parts(self, parts: Sequence[tuple[str, bool]]) -> list[list[int]]:
        """Ids of a text that comes in parts, part by part: (text, `specials` as in `encode`).

        Each part is encoded by itself. Where the tokenizer puts a space before a text, they are
        encoded as one text, since no part but the first has a space to get; a token that reaches
        into a part without special tokens belongs to it. No such part gets a special token.
        """
        parts = [(_valid(text), specials) for text, specials in parts]
        together = self._encode_together(parts) if self._prefixed else None
        return together or [self.encode(*part) if part[0] else [] for part in parts]

    def _encode_together(self, parts: Sequence[tuple[str, bool]]) -> list[list[int]] | None:
        """None if a special token's name stands in a part where it is plain text."""
        found: list[list[int]] = [[] for _ in parts]
        owners = [number for number, (text, _) in enumerate(parts) for _ in text]
        joined = "".join(text for text, _ in parts)
        whole = self._marked.encode(joined, add_special_tokens=False)
        names = {id: name for name, id in self.specials.items()}
        for id, (start, end) in zip(whole.ids, whole.offsets, strict=True):
            touched = owners[start : max(end, start + 1)]
            owner = next((number for number in touched if not parts[number][1]), touched[0])
            if id in names and not parts[owner][1] and names[id] in joined[start:end]:
                return None  # an unknown character is special too, but stands for itself
            found[owner].append(id)
        return found

    def decode(self, ids: Sequence[int], specials: bool = False) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD. Special tokens show if `specials`."""
        for id in ids:
            self._check(id)
        return self._marked.decode(ids, skip_special_tokens=not specials)

    def bytes_of(self, id: int) -> bytes:
        """What one token stands for; nothing for a special token."""
        self._check(id)
        return self._spellings[id]

    def _check(self, id: int) -> None:
        if not 0 <= id < self.vocabulary:
            raise ValueError(f"token id {id} is not in the vocabulary of {self.vocabulary}")

    @property
    def json(self) -> str:
        """The whole tokenizer, as `tokenizer.json` holds it."""
        return self._json

    def save(self, folder: str | Path) -> None:
        """Write the files from which `load`, and transformers, make this tokenizer again."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        names = {id: name for name, id in self.specials.items()}
        ends = {"eos_token": names.get(self.end_of_text), "pad_token": names.get(self.end_of_text)}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{key: name for key, name in ends.items() if name is not None},
            **self.settings,
            "end_of_text_id": self.end_of_text,
            "stop_ids": sorted(self.stop_ids),
        }
        settings.pop("chat_template", None)  # it has a file of its own
        marks = {key: value for key, value in settings.items() if key.endswith("_token")}
        (folder / "tokenizer.json").write_text(self._json, encoding="utf-8")
        for name, values in ((CONFIG, settings), (MARKS, marks)):
            text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")
        if self.template is not None:
            (folder / CHAT).write_text(self.template, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """From a folder of ours, or any Hugging Face folder that has a tokenizer.json."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise SettingError(f"{folder}: there is no tokenizer.json in it")
        try:
            inner = tokenizers.Tokenizer.from_file(str(path))
        except BaseException as error:  # of its Rust code too, which is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise SettingError(f"{path}: cannot be read as a tokenizer: {error}") from None
        settings = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
        path = folder / "generation_config.json"
        generation = read_json(path) if path.is_file() else {}
        stops = _tokens_of(generation, "eos_token_id", path, inner)
        stops += _tokens_of(settings, "stop_ids", folder / CONFIG, inner)
        return cls(inner, settings, _template(folder, settings), stops)


def check_vocabulary(tokenizer: Tokenizer, rows: int, source: str | Path) -> None:
    """Every id of the tokenizer needs a row of the embedding; more rows are padding.

    Raises:
        SettingError: naming the source.
    """
    if tokenizer.vocabulary > rows:
        ids = f"the tokenizer has {tokenizer.vocabulary} ids"
        raise SettingError(f"{source}: {ids}, the model's vocabulary only {rows}")


def _tokens_of(
    settings: Mapping[str, Any], name: str, path: Path, inner: tokenizers.Tokenizer
) -> list[int]:
    """What a setting that is one id, several or none names; ids without a token are left out."""
    given = settings.get(name)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if odd := [one for one in ids if type(one) is not int]:
        raise SettingError(f"{path}: {name}: {odd[0]!r} is no number of a token")
    known = set(inner.get_vocab(with_added_tokens=True).values()) if ids else set()
    if unknown := [one for one in ids if one not in known]:
        say(f"{path}: {name}: the tokenizer has no token {unknown[0]}; it is left out.")
    return [one for one in ids if one in known]


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / CHAT
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def _valid(text: str) -> str:
    """JSON can smuggle in half of a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
