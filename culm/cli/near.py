"""Suggests a verb for a misspelt one."""

from __future__ import annotations

import difflib
from typing import Any

from typer.core import TyperGroup

# What other tools call these steps.
ELSEWHERE = {
    "finetune": "train sft",
    "fine-tune": "train sft",
    "sft": "train sft",
    "pretrain": "train pretrain",
    "dpo": "train dpo",
    "reward": "train reward",
    "grpo": "train grpo",
    "ppo": "train ppo",
    "run": "generate",
    "sample": "generate",
    "test": "eval",
    "evaluate": "eval",
    "quantise": "quantize",
    "convert": "import",
    "download": "import",
    "benchmark": "bench",
}


class Verbs(TyperGroup):
    """The verbs of the command line; an unknown one is answered with the near one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"There is no verb {args[0]!r}; {self._near(ctx, args[0])}.")
        return super().resolve_command(ctx, args)

    def _near(self, ctx: Any, wrong: str) -> str:
        verbs = {**{verb: verb for verb in self.list_commands(ctx)}, **ELSEWHERE}
        close = difflib.get_close_matches(wrong.lower(), verbs, n=1, cutoff=0.6)
        return f"try `culm {verbs[close[0]]}`" if close else "`culm --help` lists them"


class TokenizeCommands(TyperGroup):
    """The commands of `culm tokenize`, which once trained without naming one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            known = ", ".join(self.list_commands(ctx))
            ctx.fail(
                f"There is no command {args[0]!r}, only {known}; `culm tokenize train "
                f"{args[0]}` trains a tokenizer on texts."
            )
        return super().resolve_command(ctx, args)
