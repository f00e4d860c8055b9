"""Whether runs come to what `culm plan --budget` expects of them.

    python bench/budget.py BUDGET RUN [name=value ...]

Makes the micro-runs and the proposal, then trains the proposed model for a 64th, a 16th, a quarter
and all of the proposed tokens, with the batch of each length, and prints bits per byte next to the
interval. Finished runs are not trained again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from culm.files import read_json
from culm.plan.scaling import effective_tokens
from culm.run.budget import propose
from culm.run.dial import batch_size_for
from culm.run.micro_runs import train_settings, with_changes
from culm.run.settings import read_run
from culm.run.train import train
from culm.verbs.plan_budget import seconds_of

SHARES = (64, 16, 4, 1)


def main() -> None:
    budget, name, *settings = sys.argv[1:]
    config, _ = read_run(name, settings)
    found = propose(config, seconds_of(budget))
    proposed, context = found.proposal.config, found.family.context
    assert proposed.data.corpus is not None
    assert proposed.model is not None
    unique = found.proposal.tokens / found.proposal.epochs
    print("| tokens | N D to the largest micro-run | expected | 90 % | measured |")
    print("|--:|--:|--:|--:|--:|")
    for share in SHARES:
        tokens = found.proposal.tokens / share
        rate = proposed.train.optimizer.rate
        changes = {
            "folder": f"{config.folder}-check-{share}",
            "model": proposed.model.model_dump(mode="json"),
            "train": train_settings(tokens, batch_size_for(tokens, context), context, rate),
        }
        run = with_changes(proposed, proposed.data.corpus, changes)
        train(run)
        measured = read_json(Path(run.folder) / "results.json")["bits_per_byte"]
        read = effective_tokens(run.train.steps * run.train.batch_size * context, unique)
        loss = found.law.loss(found.proposal.parameters, read)
        low, high = found.law.interval(found.proposal.parameters, read)
        print(
            f"| {tokens:,.0f} | {found.proposal.beyond / share:.1f} | {loss:.3f} | "
            f"{low:.3f} to {high:.3f} | {measured:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
