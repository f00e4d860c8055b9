"""Culm's models in EleutherAI's lm-eval, whose tasks then run on our engine.

`culm eval MODEL --lm-eval arc_easy,hellaswag` runs it, and so does lm-eval's own function:

>>> lm_eval.simple_evaluate(CulmLM("runs/base"), tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from culm.config import SettingError
from culm.convert.load import read
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.eval.answer import answer
from culm.eval.local import LocalModel
from culm.task.task import Option
from culm.text.ids import text_ids

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
except ImportError:
    raise SettingError("lm-eval: it needs an extra: pip install 'culm[lm-eval]'") from None

MAX_TOKENS = 256  # of a reply, where a task does not say, as in lm-eval


@register_model("culm")
class CulmLM(LM):
    """A model for lm-eval. pretrained: what `culm.load` reads; device, dtype: as there.

    Names of special tokens in a prompt are these tokens, as its chat templates need.
    """

    def __init__(
        self,
        pretrained: str | Path | LocalModel,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int | str | None = None,  # the engine chooses it
        **ignored: Any,
    ) -> None:
        super().__init__()
        if isinstance(pretrained, LocalModel):
            model, tokenizer, seed = pretrained.model, pretrained.tokenizer, pretrained.seed
        else:
            model, tokenizer = read(pretrained, device or "auto", dtype, mtp=False)
            seed = 0
        self.local = LocalModel(model.eval(), tokenizer, seed, specials=True)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability, whether it is greedy) of each (context, continuation)."""
        found = self.local.likelihoods([Option(*request.args) for request in requests])
        return [(one.logprob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """The log-probability of each text."""
        return [one.logprob for one in self.local.rolling([r.args[0] for r in requests])]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """A reply to each (prompt, settings), without what ends it."""
        tokenizer = self.local.tokenizer
        end = tokenizer.decode([tokenizer.end_of_text], specials=True)
        asked, stops = [], []
        for request in requests:
            prompt, given = request.args
            settings: dict[str, Any] = dict(normalize_gen_kwargs(given, MAX_TOKENS))
            asked.append(self._request(prompt, settings))
            stops.append([stop for stop in (*settings["until"], end) if stop])
        replies = answer(self.local.model, tokenizer, asked, stops=stops)
        return [reply.text for reply in replies]

    def _request(self, prompt: str, settings: dict[str, Any]) -> Request:
        context, limit = self.local.model.config.context, settings["max_gen_toks"]
        if limit >= context:
            raise SettingError(
                f"lm-eval: a task asks for max_gen_toks={limit}, and the model's context has "
                f"{context} tokens; give gen_kwargs with fewer"
            )
        ids = text_ids(self.local.tokenizer, prompt, specials=True)[limit - context :]
        sampled = {name: settings[name] for name in ("top_k", "top_p") if settings.get(name)}
        sampling = Sampling(settings["temperature"], seed=self.local.seed, **sampled)
        return Request(tuple(ids), limit, sampling, self.local.tokenizer.stop_ids)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's caches of requests are named after."""
        return f"culm-{self.local.tokenizer.template_fingerprint}"

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a dialogue, up to the next turn of the assistant."""
        tokenizer = self.local.tokenizer
        if not add_generation_prompt:
            raise SettingError("lm-eval: replies with a given beginning are not supported")
        return tokenizer.decode(tokenizer.chat.prompt(chat_history), specials=True)


def run_lm_eval(
    local: LocalModel, tasks: Sequence[str], folder: str | None = None, limit: int | None = None
) -> dict[str, dict[str, Any]]:
    """Results of lm-eval's tasks by their names.

    folder: of further tasks, as YAML files. limit: questions per task.

    Raises:
        SettingError: a task is not known.
    """
    manager = TaskManager(include_path=folder)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        raise SettingError(
            f"lm-eval: there is no task {unknown[0]!r}; --include-path names a folder of others"
        )
    found = simple_evaluate(
        CulmLM(local), tasks=list(tasks), limit=limit, task_manager=manager, log_samples=False,
        random_seed=local.seed,
    )  # fmt: skip
    assert found is not None
    return {name: dict(one) for name, one in found["results"].items()}
