"""What a pipeline refuses, and what a plan knows of it; test_layouts.py trains with it."""

import pytest

from culm.adapt.lora import LoRA
from culm.config import SettingError, parse
from culm.model.transformer import Transformer, TransformerConfig
from culm.objective.kto import KTO
from culm.objective.next_token import NextToken
from culm.objective.preference import Preference
from culm.optim.adamw import AdamW
from culm.parallel.check import check_micro_batches, check_pipeline
from culm.parallel.pieces import layers_of
from culm.parallel.settings import ParallelConfig
from culm.plan.layout import Layout
from culm.plan.needs import Needs, Step, needs_of

DEEP = {"vocabulary": 64, "width": 48, "layers": 4, "context": 32,
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}}  # fmt: skip
ADAPTED = LoRA(rank=2, targets=("blocks.0.*", "blocks.1.*"))


@pytest.mark.parametrize(
    ("model", "objective", "layout", "message"),
    [
        ({"layers": 3}, {}, {"pipeline": 4}, "3 layers do not divide over 4 stages"),
        ({}, {}, {"pipeline": 4, "pipeline_schedule": "interleaved"}, "over 8 stages"),
        ({}, {"neftune": 5.0}, {"pipeline": 2}, r"objective\.neftune"),
        (
            {"mtp": {"depth": 1}},
            {},
            {"pipeline": 2, "pipeline_schedule": "zero_bubble"},
            "cannot divide the backward of multi-token prediction",
        ),
    ],
)
def test_a_pipeline_that_does_not_divide_the_model_is_refused(
    model: dict, objective: dict, layout: dict, message: str
) -> None:
    built = parse(TransformerConfig, DEEP | model).build(device="meta")
    owner = NextToken(**objective).build(built, no_model, 0)
    with pytest.raises(SettingError, match=message):
        check_pipeline(owner, ParallelConfig(**layout))


def no_model(setting: str, path: str) -> Transformer:
    raise AssertionError(setting)


def test_a_backward_in_two_parts_is_refused_where_it_is_needed_whole() -> None:
    objective = NextToken().build(parse(TransformerConfig, DEEP).build(device="meta"), no_model, 0)
    layout = ParallelConfig(pipeline=2, pipeline_schedule="zero_bubble")
    check_pipeline(objective, layout)
    with pytest.raises(SettingError, match=r"train\.compile compiles it whole; use interleaved"):
        check_pipeline(objective, layout, compile=True)
    with pytest.raises(SettingError, match="2 ranks with the same layers"):
        check_pipeline(objective, layout, holders=2)


def test_a_stage_that_learns_nothing_is_refused() -> None:
    model = parse(TransformerConfig, DEEP).build(seed=0)
    ADAPTED.apply(model, 0)
    with pytest.raises(SettingError, match="layers 2 to 3 are a stage in which nothing learns"):
        check_pipeline(NextToken().build(model, no_model, 0), ParallelConfig(pipeline=2))


def test_a_policy_that_is_its_own_reference_is_refused() -> None:
    model = parse(TransformerConfig, DEEP).build(seed=0)
    LoRA(rank=2).apply(model, 0)
    for config in (Preference(), KTO()):
        with pytest.raises(SettingError, match="reference=precomputed"):
            check_pipeline(config.build(model, no_model, 0), ParallelConfig(pipeline=2))
    check_pipeline(
        Preference(reference="precomputed").build(model, no_model, 0), ParallelConfig(pipeline=2)
    )


def test_micro_batches_that_leave_ranks_idle_are_refused() -> None:
    with pytest.raises(SettingError, match=r"train\.micro_batch_size: a pipeline of 4 ranks"):
        check_micro_batches(ParallelConfig(pipeline=4), 3)
    interleaved = ParallelConfig(pipeline=2, pipeline_schedule="interleaved")
    with pytest.raises(SettingError, match="5 micro-batches in 2 rounds"):
        check_micro_batches(interleaved, 5)
    check_micro_batches(interleaved, 4)
    check_micro_batches(ParallelConfig(pipeline=4), 4)


def test_layers_are_divided_evenly() -> None:
    assert layers_of(2, 4) == [range(2), range(2, 4)]
    assert layers_of(3, 8) == [range(3), range(3, 6), range(6, 8)]


def test_a_plan_divides_the_layers_of_a_pipeline() -> None:
    """Half the blocks and the embedding on each of two ranks; a state for each micro-batch."""

    def needs(layout: Layout) -> Needs:
        model = parse(TransformerConfig, DEEP).build(device="meta")
        objective = NextToken().build(model, no_model, 0)
        return needs_of(objective, AdamW(), Step(32, 16, 2, layout=layout))

    one, two = needs(Layout()), needs(Layout(ParallelConfig(pipeline=2), 2))
    model = parse(TransformerConfig, DEEP).build(device="meta")
    blocks = sum(p.nbytes for p in model.blocks[:2].parameters())
    ends = sum(p.nbytes for part in (model.embed, model.norm) for p in part.parameters())
    assert two.memory.gradients == blocks + ends  # of the last rank, which has the norm
    assert two.memory.optimizer == pytest.approx(2 * (blocks + ends), rel=1e-3)
    assert two.flops == pytest.approx(one.flops, rel=1e-2)
    states = 16 * 32 * 48 * 4  # of all rows, in one direction
    assert two.sent["pipeline"] == {"point-to-point": states + model.embed.weight.nbytes}
    assert not one.sent["pipeline"]
