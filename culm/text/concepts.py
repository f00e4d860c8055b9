"""A model of concepts with its tokenizer: text in, text out, a sentence at a time.

    text -- sentences -- encoder --> concepts -- network --> next concept -- decoder --> sentence
                                         ^-----------------------|

>>> model = culm.load("runs/lcm")
>>> model.generate("It was a dark night. The wind blew.", max_tokens=100, seed=1)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NoReturn, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from culm.concept.diffusion import Sampler
from culm.concept.model import ConceptModel
from culm.concept.network import ConceptNetwork
from culm.concept.sentences import END, split
from culm.config import SettingError
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.context import Context
from culm.model.quantized_cache import CacheKind
from culm.text.ids import Ids
from culm.text.language_model import SLOTS, LanguageModel
from culm.text.options import GenerationOptions, read_options
from culm.tokenizer.message import Message
from culm.tokenizer.tokenizer import Tokenizer

END_COSINE = 0.9  # to the concept of the end, from which on a text has ended (arXiv 2412.08821)
STUCK_COSINE = 0.999  # to the concept before, from which on nothing new comes
DECODING_TEMPERATURE = 0.0  # a concept stands for one sentence
NO_CHAT = "model: a model of concepts continues texts and has no chat"


class ConceptLanguageModel(LanguageModel):
    """As `LanguageModel`, for a `ConceptModel`: `generate` and `stream` continue a text by
    concepts, each written by the decoder. There is no chat.

    sampler: how concepts are sampled; the one of the network, unless given.
    """

    model: ConceptModel

    def __init__(
        self,
        model: ConceptModel,
        tokenizer: Tokenizer,
        context: int | None = None,
        cache: CacheKind = "plain",
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__(model, tokenizer, context, cache)
        self.sampler = sampler

    @torch.no_grad()
    def concepts(self, sentences: Sequence[str]) -> Tensor:
        """(N, C) fp32: the concept of each sentence; its tokens beyond the context are left out.

        Raises:
            ValueError: they are one text.
        """
        if isinstance(sentences, str):
            raise ValueError(
                "sentences: this is one text; give a list, which culm.concept.sentences.split makes"
            )
        end, device = self.tokenizer.end_of_text, self.model.device
        rows = [[end, *ids, end][: self.context] for ids in self.tokenizer.encode_batch(sentences)]
        found = []
        for row in rows:
            tokens = torch.tensor([row], device=device)
            found.append(self.model.concepts(tokens, Context.plain(tokens))[0][0, 0])
        return torch.stack(found) if found else torch.zeros(0, self.model.config.dim, device=device)

    @torch.no_grad()
    def in_context(self, sentences: Sequence[str]) -> Tensor:
        """(N, E) fp32: each sentence of a text as one of it: the state of the network after it and
        those before it: at least half of what the network reads at once, where the text has that
        many.

        Raises:
            SettingError: the model is an autoencoder alone.
            ValueError: the sentences are one text.
        """
        network = self._network()
        concepts = self.model.normalizer(self.concepts(sentences))
        limit = network.longest
        new = max(1, limit // 2)
        found = []
        for start in range(0, len(concepts), new):
            first = max(0, start - (limit - new))
            history = network.begin(1, limit)
            network.read(concepts[None, first : start + new], history)
            found.append(history.states[0, start - first :])
        width = network.config.trunk.width
        return torch.cat(found) if found else torch.zeros(0, width, device=concepts.device)

    def sentences(
        self, concepts: Tensor, max_tokens: int | None = None, sampling: Sampling | None = None
    ) -> list[str]:
        """Semantic decoding: the sentence of each concept (N, C).

        max_tokens: of a sentence; up to the context unless given. sampling: greedy unless given.

        Raises:
            ValueError: they are no rows of concepts.
        """
        if concepts.ndim != 2 or concepts.shape[1] != self.model.config.dim:
            raise ValueError(
                f"concepts: shape {tuple(concepts.shape)} is not (N, {self.model.config.dim})"
            )
        engine = self.engine(max(1, min(len(concepts), SLOTS)), self.context)
        requests = [self._sentence(one, max_tokens, sampling) for one in concepts]
        return [self.decode(done.tokens) for done in engine.generate(requests)]

    def generate(
        self,
        prompt: str | Ids | Iterable[str] | Iterable[Ids],
        max_tokens: int | None = 64,
        **options: Unpack[GenerationOptions],
    ) -> str | list[str]:
        """The text that continues a prompt, or a list of texts for a list of prompts.

        temperature: of the decoder, 0 unless given. seed: of both decoder and concepts.
        """
        if isinstance(prompt, str):
            return "".join(self.stream(prompt, max_tokens, **options))
        prompts = list(cast("Iterable[str]", prompt))
        return ["".join(self.stream(one, max_tokens, **options)) for one in prompts]

    def stream(
        self, prompt: str | Ids, max_tokens: int | None = 64, **options: Unpack[GenerationOptions]
    ) -> Iterator[str]:
        """Like `generate` for one prompt, a sentence at a time.

        Raises:
            SettingError: the model is an autoencoder alone.
            ValueError: the prompt has no sentence.
        """
        network, given = self._network(), read_options(options, DECODING_TEMPERATURE)
        if given.stops or given.adapter:
            raise ValueError("stop: a model of concepts ends with its sentences; leave it out")
        text = prompt if isinstance(prompt, str) else self.decode(prompt)
        known = [one for one in split(text) if one.strip()]
        if not known:
            raise ValueError("prompt: it has no sentence; give at least one to continue")
        gap = "" if text[-1:].isspace() else " "
        return self._continued(network, known, gap, max_tokens, given.sampling)

    def chat_stream(
        self,
        messages: str | Sequence[Message],
        max_tokens: int | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Iterator[str]:
        """Not possible.

        Raises:
            SettingError: always.
        """
        raise SettingError(NO_CHAT)

    def generator(self, slots: int, length: int) -> NoReturn:
        """Not possible: tokens follow from a concept. Raises SettingError."""
        raise SettingError(NO_CHAT)

    def dialogue_engine(self, length: int) -> NoReturn:
        """Not possible. Raises SettingError."""
        raise SettingError(NO_CHAT)

    @torch.no_grad()
    def _continued(
        self, network: ConceptNetwork, known: Sequence[str], gap: str, max_tokens: int | None,
        sampling: Sampling,
    ) -> Iterator[str]:  # fmt: skip
        """The sentences after the known ones. gap: what is between both."""
        left = self.context if max_tokens is None else max_tokens
        engine = self.engine(1, self.context)
        for concept in self.following(network, self.concepts(known), sampling.seed):
            request = self._sentence(concept, left, sampling)
            [done] = engine.generate([request])
            text = self.decode(done.tokens)
            yield gap + text
            gap, left = "" if text[-1:].isspace() else " ", left - len(done.tokens)
            if left < 1:
                return

    @torch.no_grad()
    def following(
        self, network: ConceptNetwork, concepts: Tensor, seed: int | None = None
    ) -> Iterator[Tensor]:
        """Concepts (C,) that follow those of a text (N, C), until the end of the document.

        The network reads the last ones, up to `trunk.context` less one.

        Raises:
            ValueError: there are none to follow.
        """
        if not len(concepts):
            raise ValueError("concepts: there are none; give at least one to continue")
        normalizer, limit = self.model.normalizer, network.config.trunk.context
        [end] = self.concepts([END])
        random = torch.Generator()
        if seed is None:
            random.seed()
        else:
            random.manual_seed(seed)
        read = list(normalizer(concepts))[-network.longest :]
        history = network.begin(1, limit)
        network.read(torch.stack(read)[None], history)
        before = None
        while True:
            noise = network.random((1,), random).to(concepts.device)
            new = network.next(history, self.sampler or network.config.sampler, noise)
            concept = normalizer.inverse(new[0])
            if _cosine(concept, end) > END_COSINE:
                return
            if before is not None and _cosine(concept, before) > STUCK_COSINE:
                return
            yield concept
            before, read = concept, [*read, new[0]]
            if history.length == network.longest:  # half of it is read again, from position 0
                read = read[-limit // 2 :]
                history = network.begin(1, limit)
                network.read(torch.stack(read)[None], history)
            else:
                network.read(new[:, None], history)

    def _network(self) -> ConceptNetwork:
        if self.model.network is None:
            raise SettingError(
                "model: this is an autoencoder, which reads no text and continues none; culm train "
                "lcm train.objective.autoencoder=RUN trains a network on its concepts"
            )
        return self.model.network

    def _sentence(
        self, concept: Tensor, max_tokens: int | None, sampling: Sampling | None
    ) -> Request:
        """What the decoder writes for a concept (C,)."""
        end, limit = self.tokenizer.end_of_text, self.context - 1
        vector = self.model.written(concept[None])[0]
        return Request(
            (end,), limit if max_tokens is None else min(max_tokens, limit),
            sampling or Sampling(temperature=DECODING_TEMPERATURE),
            self.tokenizer.stop_ids | {end}, embeddings=((0, vector),),
        )  # fmt: skip


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a, b, dim=0))
