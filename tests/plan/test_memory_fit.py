"""The largest micro-batch that fits: rows are given up before activations are recomputed."""

from dataclasses import replace

import pytest
from learning import build

from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.objective.next_token import NextToken
from culm.optim.adamw import AdamW
from culm.parallel.parallelize import parallelize
from culm.plan import needs
from culm.plan.memory_fit import _parts, advice, largest_fit
from culm.plan.needs import Step, needs_of

CONFIG = TransformerConfig(vocabulary=64, width=32, layers=2, attention=(GQA(heads=2),))
STEP = Step(64, batch_size=4, at_once=4)


def objective():
    model = CONFIG.build(device="meta")
    model.set_backend("blocks")
    return build(NextToken(), model)


def needed(rows, recomputed):
    tried = objective()
    parallelize(tried, activation_checkpointing=recomputed)
    step = Step(64, batch_size=4, at_once=rows)
    return needs_of(tried, AdamW(), step, count_flops=False).memory.total


def test_all_of_the_batch_where_there_is_room():
    found = largest_fit(objective(), AdamW(), STEP, 1e9)
    assert (found.rows, found.activation_checkpointing) == (4, "none")
    assert found.bytes == needed(4, "none")
    assert advice(found) == "use train.micro_batch_size=4 train.activation_checkpointing=none"


@pytest.mark.parametrize("rows", [1, 2])
def test_fewer_rows_before_recomputation(rows):
    found = largest_fit(objective(), AdamW(), STEP, needed(rows, "none"))
    assert (found.rows, found.activation_checkpointing) == (rows, "none")


@pytest.mark.parametrize("recomputed", ["selective", "full"])
def test_recomputation_where_one_row_does_not_fit(recomputed):
    found = largest_fit(objective(), AdamW(), STEP, needed(1, recomputed))
    assert (found.rows, found.activation_checkpointing) == (1, recomputed)


def test_nothing_fits():
    assert largest_fit(objective(), AdamW(), STEP, 1000) is None
    assert "smaller model" in advice(None)


def test_a_dry_run_serves_all_sizes_of_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, bool]] = []

    def counted(model, batch, accumulates):
        runs.append((len(batch.tokens), accumulates))
        return activation_bytes(model, batch, accumulates)

    activation_bytes = needs.activation_bytes
    monkeypatch.setattr(needs, "activation_bytes", counted)
    large = Step(64, batch_size=10_000, at_once=10_000)
    half = needs_of(objective(), AdamW(), replace(large, at_once=5000), count_flops=False)
    runs.clear()
    found = largest_fit(objective(), AdamW(), large, half.memory.total)
    assert found is not None
    assert len(runs) == len(set(runs))
    alone = replace(large, at_once=found.rows)
    assert needs_of(objective(), AdamW(), alone, count_flops=False).memory.total == found.bytes


@pytest.mark.parametrize("whole", [1, 2, 7, 12, 100])
def test_micro_batches_have_no_rows_to_spare(whole: int) -> None:
    assert _parts(whole) == sorted({-(-whole // count) for count in range(1, whole + 1)})
    assert len(_parts(400_000_000)) < 50_000
