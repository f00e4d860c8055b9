"""What a query gives: checked, and as token ids and grammars."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from culm.serve.query import ChatPrompt, Prompt, Query
from culm.serve.refusal import ContextTooShort, InvalidForm, InvalidRequest
from culm.text.grammar import Grammar, Grammars, after_reasoning
from culm.text.language_model import LanguageModel


class QueryReader:
    """Reads queries to a model. What takes long, tokenising and compiling, runs in other threads.

    All methods raise `InvalidRequest` where a query cannot be served.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self.grammars = Grammars(model.tokenizer, model.model.config.vocabulary)

    def check(self, query: Query, maximum: int) -> None:
        """Everything but prompts and form. maximum: of answers."""
        count = query.answers
        if not 1 <= count <= maximum:
            reason = f"{count} answers in one request; 1 to {maximum} are allowed"
            raise InvalidRequest(f"choices: {reason}", "choices")
        query.check_size()
        self._check_ids([token for token, _ in query.sampling.bias], "bias")
        self._check_ids(query.stop_ids, "stop_ids")
        if query.max_tokens == 0 and not query.echo:
            raise InvalidRequest("max_tokens: less than 1; 0 needs echo", "max_tokens")
        if "" in query.stop:
            raise InvalidRequest("stop: a stop string is empty", "stop")

    async def ids(self, prompt: Prompt, parse_special: bool) -> list[int]:
        """Of a prompt."""
        if isinstance(prompt, ChatPrompt):
            if self._model.tokenizer.template is None:
                reason = "this model has no chat template; it continues texts, so give a prompt"
                raise InvalidRequest(f"messages: {reason}", "messages")
            chat, tools = self._model.tokenizer.chat, [tool.plain for tool in prompt.tools]
            try:
                return await asyncio.to_thread(chat.prompt, prompt.messages, tools or None)
            except ValueError as error:
                field = "tools" if str(error).startswith("tools") else "messages"
                raise InvalidRequest(str(error), field) from None
        ids = await asyncio.to_thread(self._model.prompt_ids, prompt, parse_special)
        self._check_ids(ids, "prompt")
        return ids

    async def short(self, text: Prompt) -> tuple[int, ...]:
        """Ids of a text that the context has room for."""
        ids = await self.ids(text, parse_special=False)
        if not 0 < len(ids) <= self._model.context:
            raise ContextTooShort(
                f"This model's maximum context length is {self._model.context} tokens. "
                f"However, a text has {len(ids)} tokens."
            )
        return tuple(ids)

    async def grammar(self, form: str | None, thinking: bool) -> Grammar | None:
        """Of a form, after the reasoning if the answer starts with it."""
        if form is None:
            return None
        try:
            given = after_reasoning(form) if thinking else form
            return await asyncio.to_thread(self.grammars.compile, given)
        except ValueError as error:
            raise InvalidForm(str(error), "form") from None

    def _check_ids(self, ids: Iterable[int], field: str) -> None:
        size = self._model.model.config.vocabulary
        outside = [token for token in ids if not 0 <= token < size]
        if outside:
            raise InvalidRequest(f"{field}: token {outside[0]} is outside the vocabulary", field)
