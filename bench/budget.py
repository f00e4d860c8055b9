"""Whether runs come to what `culm plan --budget` expects of them.

    python bench/budget.py BUDGET RUN [name=value ...]

Makes the micro-runs and the proposal, then trains the proposed model on 4 and 16 times the tokens
of the longest micro-run, with the batch of each length, and prints bits per byte next to the
interval. Finished runs are not trained again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from learning_rl import run_to_end

from culm.files import read_json
from culm.plan.scaling import effective_tokens
from culm.run.budget.micro_runs import train_settings, with_changes
from culm.run.budget.propose import propose
from culm.run.dial import batch_size_for
from culm.run.settings import read_run
from culm.verbs.plan_budget import seconds_of

LONGER = (4, 16)


def main() -> None:
    budget, name, *settings = sys.argv[1:]
    config, _ = read_run(name, settings)
    found = propose(config, seconds_of(budget))
    proposed, context = found.proposal.config, found.family.context
    assert proposed.data.corpus is not None
    assert proposed.model is not None
    unique = found.proposal.tokens / found.proposal.epochs
    longest = max(one.tokens for one in found.done)
    print("| parameters | tokens | expected | 90 % | measured |")
    print("|--:|--:|--:|--:|--:|")
    for times in LONGER:
        tokens = longest * times
        rate = proposed.train.optimizer.rate
        changes = {
            "folder": f"{config.folder}-check-{times}",
            "model": proposed.model.model_dump(mode="json"),
            "train": train_settings(tokens, batch_size_for(tokens, context), context, rate),
        }
        run = with_changes(proposed, proposed.data.corpus, changes)
        run_to_end(run)
        measured = read_json(Path(run.folder) / "results.json")["bits_per_byte"]
        read = effective_tokens(run.train.steps * run.train.batch_size * context, unique)
        loss = found.law.loss(found.proposal.parameters, read)
        low, high = found.law.interval(found.proposal.parameters, read)
        print(
            f"| {found.proposal.parameters:,} | {tokens:,} | {loss:.3f} | {low:.3f} to {high:.3f} "
            f"| {measured:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
