"""A model with its tokenizer: text in, text out.

>>> model = culm.load("runs/quickstart/chat")        # or a Hugging Face folder or id, or a .gguf
>>> model.generate("Once upon a time", max_tokens=100, temperature=0.8, seed=1)
>>> for piece in model.chat_stream("What is 17 + 25?"):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Unpack, cast

from torch import Tensor

from culm.adapt.multi_lora import adapter_names
from culm.config import SettingError
from culm.engine import scoring
from culm.engine.denoising import Denoiser
from culm.engine.engine import Engine
from culm.engine.prefix import BLOCK
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.engine.speculation import Speculation, drafter_for
from culm.model.quantized_cache import CacheKind
from culm.model.transformer import Transformer
from culm.text.ids import Ids, is_batch, listed, text_ids
from culm.text.options import CHAT_TEMPERATURE, GenerationOptions, Options, read_options
from culm.text.reply import Reply
from culm.tokenizer.message import Message
from culm.tokenizer.tokenizer import Tokenizer

SLOTS = 32  # maximum concurrent prompts of a batch


class LanguageModel:
    """A Transformer and the Tokenizer that it was trained with.

    `generate`, `stream`, `chat` and `chat_stream` take `max_tokens`, the maximum number of new
    tokens (None: up to the model's context), and the keywords of `GenerationOptions`
    (`culm.text.options`): temperature, top_k, top_p, min_p, penalties, seed, stop, adapter.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        context: int | None = None,
        cache: CacheKind = "plain",
        speculate: Speculation | Transformer | None = None,
        tokens_per_step: int = 1,
    ) -> None:
        """context: maximum tokens of a prompt and its continuation together; the model's, or less
        to save memory. cache: int8 or int4 stores keys and values in fewer bits, also to save
        memory. speculate: "mtp" drafts tokens with the model's heads of multi-token prediction,
        "ngram" from repetitions in the text (`culm.engine.speculation`), a smaller model with the
        same tokenizer by itself; an accepted token takes no step of its own, and texts stay the
        same up to rounding. tokens_per_step: that a model which fills in masked tokens keeps of
        each step (`culm.engine.denoising`).

        Raises:
            SettingError: the model cannot speculate in this way, or does not use an option.
        """
        _check_options(model, cache, speculate, tokens_per_step)
        known = model.config.context
        if context is not None and not 2 <= context <= known:
            raise ValueError(f"context: {context} is not between 2 and the model's {known}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.context = context or known
        self.cache: CacheKind = cache
        self.speculate = speculate
        self.tokens_per_step = tokens_per_step
        self._kept: Engine | None = None
        self._weights = 0  # changes of the weights that the kept engine has seen
        if speculate is not None:
            drafter_for(model, speculate, 1, self.context)

    def generator(self, slots: int, length: int) -> Engine | Denoiser:
        """What generates tokens for up to `slots` requests at once, of up to `length` tokens."""
        if not self.model.config.masked:
            return self.engine(slots, length)
        return Denoiser(
            self.model, slots, length, vocabulary=self.tokenizer.vocabulary,
            suppressed=self.tokenizer.suppressed, tokens_per_step=self.tokens_per_step,
        )  # fmt: skip

    def engine(
        self, slots: int, length: int, step_tokens: int | None = None, prefix_tokens: int = 0
    ) -> Engine:
        """An engine for this model: up to `slots` requests at once, of up to `length` tokens.

        step_tokens, prefix_tokens: as in `Engine`.
        """
        return Engine(
            self.model, slots, length, vocabulary=self.tokenizer.vocabulary, cache=self.cache,
            speculate=self.speculate, step_tokens=step_tokens,
            suppressed=self.tokenizer.suppressed, prefix_tokens=prefix_tokens,
        )  # fmt: skip

    def dialogue_engine(self, length: int) -> Engine:
        """An engine for one request of up to `length` tokens, which keeps what it reads.

        It is the one of the call before, unless that is still in use or too short: the next turn of
        a dialogue reads only what is new. Lengths are rounded up to powers of two, since a dialogue
        grows.
        """
        changes = sum(parameter._version for parameter in self.model.parameters())
        if self._kept is None or self._kept.length < length or self._kept.busy:
            length = min(1 << (length - 1).bit_length(), self.context)
            self._kept = self.engine(1, length, prefix_tokens=max(length, BLOCK))
        elif changes != self._weights:
            self._kept.weights_changed()
        self._weights = changes
        return self._kept

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that were loaded with the model; each call may choose one."""
        return adapter_names(self.model)

    def encode(self, text: str) -> list[int]:
        """Token ids; names of special tokens are plain text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Ids) -> str:
        """Text, without special tokens."""
        return self.tokenizer.decode(listed(ids))

    def logits(self, ids: Ids, adapter: str | None = None) -> Tensor:
        """ids: T tokens -> (T, V) fp32: row t scores the token after ids[t].

        They may exceed the context, for which the model was not trained.
        """
        return scoring.logits_of(self.model, listed(ids), adapter)

    def logprobs(self, ids: Ids, adapter: str | None = None) -> Tensor:
        """ids: T tokens -> (T - 1,) fp32, natural log: element t is that of ids[t + 1]."""
        return scoring.score(self.model, [listed(ids)], [adapter])[0]

    def generate(
        self,
        prompt: str | Ids | Iterable[str] | Iterable[Ids],
        max_tokens: int | None = 64,
        **options: Unpack[GenerationOptions],
    ) -> str | list[str]:
        """The text that continues a prompt, or a list of texts for a list of prompts.

        Prompt i of a list samples with seed + i.
        """
        sampling, stops, adapter = read_options(options)
        if isinstance(prompt, Iterator):
            prompt = list(prompt)
        single = not is_batch(prompt)
        prompts = cast("list[str | Ids]", [prompt] if single else prompt)
        requests = [
            self.request(self.prompt_ids(item), max_tokens, _reseeded(sampling, i), adapter, stops)
            for i, item in enumerate(prompts)
        ]
        pieces: list[list[str]] = [[] for _ in requests]
        for index, piece in self._run(requests, stops):
            pieces[index].append(piece)
        texts = ["".join(parts) for parts in pieces]
        return texts[0] if single else texts

    def stream(
        self, prompt: str | Ids, max_tokens: int | None = 64, **options: Unpack[GenerationOptions]
    ) -> Iterator[str]:
        """Like `generate` for one prompt, in pieces as they come."""
        return self._stream(self.prompt_ids(prompt), max_tokens, read_options(options))

    def chat(
        self,
        messages: str | Sequence[Message],
        max_tokens: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> str:
        """The assistant's answer to a question, or to messages of `role` and `content`.

        temperature: 0 unless given.
        """
        return "".join(self.chat_stream(messages, max_tokens, **options))

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        max_tokens: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]:
        """Like `chat`, in pieces as they come."""
        read = read_options(options, CHAT_TEMPERATURE)
        engine_for = None if self.model.config.masked else self.dialogue_engine
        return self._stream(self._chat_ids(messages), max_tokens, read, engine_for)

    # -----------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: str | Ids, specials: bool = False) -> list[int]:
        """Token ids of a prompt; a text gets the start of a document, so "" is a prompt too.

        specials: names of special tokens in a text become these tokens, the start included.
        """
        if not isinstance(prompt, str):
            return listed(prompt)
        return text_ids(self.tokenizer, prompt, specials)

    def request(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        sampling: Sampling,
        adapter: str | None = None,
        stops: Sequence[str] = (),
    ) -> Request:
        """The engine's request; ValueError if it exceeds the context.

        stops: texts that end it, of which it uses the names of special tokens.
        """
        left = self.context - len(ids)
        wanted = max(left, 1) if max_tokens is None else max_tokens
        if wanted > left:
            raise ValueError(
                f"max_tokens: a prompt of {len(ids)} tokens and {wanted} more do not fit into the "
                f"context of {self.context}"
            )
        ends = self.tokenizer.stop_ids | self.tokenizer.stops_named(stops)
        return Request(tuple(ids), wanted, sampling, ends, adapter=adapter)

    def _chat_ids(self, messages: str | Sequence[Message]) -> list[int]:
        """The rendered dialogue, up to the start of the assistant's answer."""
        if isinstance(messages, str):
            return self.tokenizer.chat.prompt([{"role": "user", "content": messages}])
        known = isinstance(messages, Sequence) and messages
        if not known or not all(isinstance(message, Mapping) for message in messages):
            raise ValueError("messages: give a question, or a list of role and content mappings")
        return self.tokenizer.chat.prompt(messages)

    def _stream(
        self,
        ids: Sequence[int],
        max_tokens: int | None,
        options: Options,
        engine_for: Callable[[int], Engine | Denoiser] | None = None,
    ) -> Iterator[str]:
        """The continuation of one prompt, in pieces. engine_for: as in `_run`."""
        request = self.request(ids, max_tokens, options.sampling, options.adapter, options.stops)
        return (piece for _, piece in self._run([request], options.stops, engine_for) if piece)

    def _run(
        self,
        requests: Sequence[Request],
        stops: Sequence[str],
        engine_for: Callable[[int], Engine | Denoiser] | None = None,
    ) -> Iterator[tuple[int, str]]:
        """Pairs (index of the request, next piece of its text).

        engine_for: gives the engine for this many tokens; by default one for these requests.
        """
        length = max((len(r.prompt) + r.max_tokens for r in requests), default=1)
        slots = min(max(len(requests), 1), SLOTS)
        engine = engine_for(length) if engine_for else self.generator(slots, length)
        numbers = {engine.add(request): index for index, request in enumerate(requests)}
        replies = [Reply(self.tokenizer, stops) for _ in requests]
        try:
            while engine.busy:
                for event in engine.step():
                    index = numbers[event.request]
                    yield index, replies[index].read(event)
                    if replies[index].stopped and not event.finish:
                        engine.abort(event.request)
        finally:
            for number in numbers:  # of a reader who has left
                engine.abort(number)


def _check_options(
    model: Transformer, cache: CacheKind, speculate: object, tokens_per_step: int
) -> None:
    masked = model.config.masked
    if masked and (cache != "plain" or speculate is not None):
        name = "speculate" if cache == "plain" else "cache"
        raise SettingError(
            f"{name}: a model that fills in masked tokens stores no keys and drafts no tokens; "
            "leave it out"
        )
    if not masked and tokens_per_step != 1:
        raise SettingError(
            "tokens_per_step: it goes with a model that fills in masked tokens; leave it out"
        )


def _reseeded(sampling: Sampling, index: int) -> Sampling:
    """The settings of prompt `index` of a batch."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + index)
