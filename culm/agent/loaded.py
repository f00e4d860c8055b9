"""A model in this process as a `ChatModel`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from culm.agent.answer import Json, ModelAnswer, ModelFailed, ToolCall, unreadable
from culm.engine.sampling import Sampling
from culm.exits import GAVE_NAN
from culm.text.language_model import LanguageModel
from culm.text.message import MessageReader, joined, thinks
from culm.text.reply import Reply
from culm.tokenizer.message import Message
from culm.tools.text import OPEN


@dataclass
class LoadedChat:
    """Each step reads only what the steps before it had not. sampling: of each answer."""

    model: LanguageModel
    sampling: Sampling = Sampling(temperature=0.0)  # noqa: RUF009 - frozen

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Json], max_tokens: int, seconds: float
    ) -> ModelAnswer:
        end = time.monotonic() + seconds
        model = self.model
        try:
            ids = model.tokenizer.chat.prompt(messages, list(tools) or None)
            room = model.context - len(ids)
            request = model.request(ids, max(1, min(max_tokens, room)), self.sampling)
        except ValueError as error:
            raise ModelFailed(str(error)) from None
        engine = model.dialogue_engine(len(ids) + request.max_tokens)
        number = engine.add(request)
        reply, text, tokens, complete = Reply(model.tokenizer), "", 0, False
        while engine.busy:
            if time.monotonic() > end:
                engine.abort(number)
                raise ModelFailed("the model gave no answer in time")
            for event in engine.step():
                if event.finish == "invalid":
                    raise ModelFailed(GAVE_NAN)
                text, tokens = text + reply.read(event), tokens + 1
                complete = event.finish == "stop"
        return _read(text, thinks(model.tokenizer, ids), bool(tools), tokens, complete)


def _read(text: str, thinking: bool, calls: bool, tokens: int, complete: bool) -> ModelAnswer:
    content, reasoning, given = joined(MessageReader(thinking, calls).read(text, last=True))
    found = [ToolCall(name, arguments) for name, arguments in given]
    answer = ModelAnswer(content, tuple(found), reasoning, tokens, complete)
    return unreadable(answer, OPEN) if calls else answer
