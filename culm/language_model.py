"""A model with its tokenizer: the few calls that most programs need.

>>> model = culm.load("runs/quickstart/chat")        # or a Hugging Face folder or id, or a .gguf
>>> model.generate("Once upon a time", tokens=100, temperature=0.8, seed=1)
>>> for piece in model.chat_stream("What is 17 + 25?"):
...     print(piece, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.loading import read
from culm.model.transformer import Transformer
from culm.reply import Reply
from culm.tokenizer.chat import Chat, Message
from culm.tokenizer.tokenizer import Tokenizer

SLOTS = 32  # prompts of a batch that run together


class LanguageModel:
    """A Transformer and the Tokenizer that it was trained with.

    Settings that all generating methods share: `tokens` is the most that is generated (None: to the
    end of the model's context); `temperature`, `top_k`, `top_p`, `min_p` and `seed` are those of
    `culm.engine.sampling.Sampling`; `stop` is a string, or several, that ends the text and does not
    appear in it.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @cached_property
    def template(self) -> Chat:
        """The chat template; SettingError where the tokenizer has none."""
        return Chat(self.tokenizer)

    @property
    def context(self) -> int:
        """Tokens that a prompt and its continuation may have together."""
        return self.model.config.context

    def encode(self, text: str) -> list[int]:
        """Token ids; names of special tokens are plain text."""
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text, without special tokens."""
        return self.tokenizer.decode(ids)

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """ids: T tokens -> (T, V) fp32: row t scores the token after ids[t]."""
        return self.model(self._tokens(ids))[0]

    @torch.no_grad()
    def logprobs(self, ids: Sequence[int]) -> Tensor:
        """ids: T tokens -> (T - 1,) fp32, natural log: element t is that of ids[t + 1]."""
        tokens = self._tokens(ids)
        return self.model.logprobs(tokens[:, :-1], tokens[:, 1:])[0]

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        tokens: int | None = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> str | list[str]:
        """The text that continues a prompt; a list of prompts is a batch and gives a list.

        In a batch, prompt i draws with seed + i.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, seed=seed)
        single = isinstance(prompt, str) or all(isinstance(item, int) for item in prompt)
        prompts = [self.prompt_ids(item) for item in ([prompt] if single else prompt)]  # type: ignore[arg-type]
        requests = [
            self.request(ids, tokens, replace(sampling, seed=None if seed is None else seed + i))
            for i, ids in enumerate(prompts)
        ]
        pieces: list[list[str]] = [[] for _ in requests]
        for index, piece in self._run(requests, stop):
            pieces[index].append(piece)
        texts = ["".join(parts) for parts in pieces]
        return texts[0] if single else texts

    def stream(
        self,
        prompt: str | Sequence[int],
        tokens: int | None = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """As `generate` for one prompt, in pieces as they come."""
        sampling = Sampling(temperature, top_k, top_p, min_p, seed=seed)
        request = self.request(self.prompt_ids(prompt), tokens, sampling)
        return (piece for _, piece in self._run([request], stop) if piece)

    def chat(
        self,
        messages: str | Sequence[Message],
        tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> str:
        """The assistant's answer to a question, or to messages of `role` and `content`."""
        return "".join(
            self.chat_stream(messages, tokens, temperature, top_k, top_p, min_p, stop, seed)
        )

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """As `chat`, in pieces as they come."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        prompt = self.template.prompt(messages)
        return self.stream(prompt, tokens, temperature, top_k, top_p, min_p, stop, seed)

    # -----------------------------------------------------------------------------------------

    def prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        """Ids to continue: a text with what begins a document, so that "" is a prompt too."""
        if not isinstance(prompt, str):
            return list(prompt)
        start = self.tokenizer.start
        return [*start, *self.encode(prompt)] or [self.tokenizer.end_of_text]

    def request(self, ids: Sequence[int], tokens: int | None, sampling: Sampling) -> Request:
        """What the engine is asked; ValueError where the context is too short."""
        room = self.context - len(ids)
        wanted = max(room, 1) if tokens is None else tokens
        if wanted > room:
            raise ValueError(
                f"tokens: a prompt of {len(ids)} tokens and {wanted} more do not fit into the "
                f"model's context of {self.context}"
            )
        return Request(tuple(ids), wanted, sampling, self.tokenizer.stop_ids)

    def _run(
        self, requests: Sequence[Request], stop: str | Sequence[str] | None
    ) -> Iterator[tuple[int, str]]:
        """Pairs (index of the request, next piece of its text)."""
        stops = [stop] if isinstance(stop, str) else stop or ()
        places = max((len(r.prompt) + r.tokens for r in requests), default=1)
        engine = Engine(self.model, min(max(len(requests), 1), SLOTS), places)
        numbers = {engine.add(request): index for index, request in enumerate(requests)}
        replies = [Reply(self.tokenizer, stops) for _ in requests]
        while engine.busy:
            for event in engine.step():
                index = numbers[event.request]
                yield index, replies[index].read(event)
                if replies[index].stopped and not event.finish:
                    engine.abort(event.request)

    def _tokens(self, ids: Sequence[int]) -> Tensor:
        size = self.model.config.vocabulary
        outside = [token for token in ids if not 0 <= token < size]
        if outside or not len(ids):
            what = f"token {outside[0]} is outside the vocabulary of {size}" if outside else "empty"
            raise ValueError(f"ids: {what}")
        return torch.tensor([list(ids)], device=self.model.device)


def load(
    path: str | Path, device: str = "auto", dtype: str | torch.dtype | None = None
) -> LanguageModel:
    """A model from what `path` names: a run or model folder of Culm, a Hugging Face folder or hub
    id, or a `.gguf` file.

    device: "cpu", "cuda", "mps"; "auto" takes the fastest there is. dtype: of weights and
    activations; if not given float32 on a CPU, bfloat16 elsewhere and for quantised weights.

    Raises:
        SettingError: there is nothing there that can be read.
    """
    return LanguageModel(*read(path, device, dtype))
