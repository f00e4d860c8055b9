"""FlashAttention on a CPU against attention in fp32, which computes every score."""

import pytest
import torch
from torch import Tensor

from culm import compiled
from culm.config import SettingError
from culm.model import flash_cpu as module
from culm.model.attend import attend
from culm.model.backend import choose_backend
from culm.model.context import Context
from culm.model.flash_cpu import bounds_of
from culm.model.score_rule import Backend, ScoreRule
from culm.plan.dry_run import counting_matmuls

SHAPES = {  # length, heads, heads of keys, their size, that of values
    "one token": (1, 1, 1, 16, 16),
    "small": (7, 4, 4, 8, 8),
    "groups": (64, 4, 2, 64, 64),
    "blocks": (130, 6, 2, 40, 24),
    "latent": (300, 2, 1, 192, 128),
}
RULES = [ScoreRule(), ScoreRule(window=8), ScoreRule(scale=0.3, window=100)]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    try:
        module.library()
    except OSError as error:
        pytest.skip(str(error))


def drawn(*sizes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator).bfloat16().requires_grad_() for size in sizes]


def context_of(rows: int, length: int, packed: bool, causal: bool) -> Context:
    documents = None
    if packed:
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randint(max(2, length // 20), (rows, length), generator=generator)
        documents = drawn.sort(1).values
    return Context(torch.arange(length).expand(rows, -1), documents, causal=causal)


def results(
    backend: Backend, inputs: list[Tensor], grad: Tensor, context: Context,
    rule: ScoreRule = ScoreRule(),
) -> list[Tensor]:  # fmt: skip
    """The output and the gradients of the inputs."""
    own = [x.detach().clone().requires_grad_() for x in inputs]
    out = attend(*own, context, rule, backend)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in own)]


def check(shape: str, rule: ScoreRule, packed: bool, causal: bool) -> None:
    length, heads, kv_heads, size, values = SHAPES[shape]
    inputs = drawn(
        (2, length, heads, size), (2, length, kv_heads, size), (2, length, kv_heads, values)
    )
    (grad,) = drawn((2, length, heads, values))
    context = context_of(2, length, packed, causal)
    exact = results("blocks", [x.float() for x in inputs], grad.float(), context, rule)
    found = results("flash_cpu", inputs, grad, context, rule)
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours.dtype, ours.shape) == (torch.bfloat16, theirs.shape)
        assert (ours - theirs).norm() <= 0.007 * theirs.norm() + 1e-4


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"window {rule.window}")
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_those_of_fp32(
    shape: str, rule: ScoreRule, packed: bool, causal: bool
) -> None:
    check(shape, rule, packed, causal)


@pytest.mark.slow  # each set is compiled; the fastest one serves the other tests
@pytest.mark.parametrize("known", compiled.FASTEST_FIRST, ids=lambda known: known.name)
def test_every_instruction_set(
    known: compiled.InstructionSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    if known not in compiled.instruction_sets():
        pytest.skip("this CPU does not have it")
    monkeypatch.setattr(compiled, "instruction_set", lambda: known)
    module.library.cache_clear()
    try:
        for shape in SHAPES:
            check(shape, ScoreRule(window=50), packed=True, causal=True)
    finally:
        module.library.cache_clear()


def test_errors_are_no_larger_than_in_blocks() -> None:
    inputs, context = (
        drawn(*((2, 200, heads, 32) for heads in (4, 2, 2))),
        context_of(2, 200, False, True),
    )
    (grad,) = drawn((2, 200, 4, 32))
    exact = results("blocks", [x.float() for x in inputs], grad, context)
    errors = [
        [
            float((x - y).norm())
            for x, y in zip(results(b, inputs, grad, context), exact, strict=True)
        ]
        for b in ("flash_cpu", "blocks")
    ]
    assert all(ours <= theirs for ours, theirs in zip(*errors, strict=True))


def test_threads_do_not_change_a_bit() -> None:
    inputs, context = (
        drawn(*((3, 150, heads, 32) for heads in (4, 2, 2))),
        context_of(3, 150, True, True),
    )
    (grad,) = drawn((3, 150, 4, 32))
    before, each = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            each.append(results("flash_cpu", inputs, grad, context))
    finally:
        torch.set_num_threads(before)
    for other in each[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each[0], other, strict=True))


def test_rows_and_documents_are_independent() -> None:
    """To the bit: a document has the same numbers alone as behind one that fills whole blocks."""
    q, k, v = (x.detach() for x in drawn(*((1, 192, heads, 32) for heads in (4, 2, 2))))
    documents = (torch.arange(192) >= 128).int()[None]
    positions = torch.arange(192)[None]
    both = attend(q, k, v, Context(positions, documents), backend="flash_cpu")
    alone = [x[:, 128:] for x in (q, k, v)]
    expected = attend(*alone, Context(torch.arange(64)[None]), backend="flash_cpu")
    assert torch.equal(both[:, 128:], expected)
    k[:, :128] = torch.nan
    again = attend(q, k, v, Context(positions, documents), backend="flash_cpu")
    assert torch.equal(again[:, 128:], expected)


def test_what_queries_see() -> None:
    context = Context(torch.arange(5)[None], torch.tensor([[0, 0, 7, 7, 7]]))
    assert bounds_of(context, ScoreRule()).tolist() == [[[0, 0], [0, 1], [2, 2], [2, 3], [2, 4]]]
    windowed = bounds_of(context, ScoreRule(window=2))
    assert windowed.tolist() == [[[0, 0], [0, 1], [2, 2], [2, 3], [3, 4]]]
    both = Context(context.positions, context.documents, causal=False)
    assert bounds_of(both, ScoreRule()).tolist() == [[[0, 1], [0, 1], [2, 4], [2, 4], [2, 4]]]
    assert bounds_of(both, ScoreRule(window=2)).tolist() == [
        [[0, 1], [0, 1], [2, 3], [2, 4], [3, 4]]
    ]


def test_other_precisions_are_refused_but_within_a_model() -> None:
    q, k, v = (x.detach().float() for x in drawn(*((1, 4, 2, 8) for _ in range(3))))
    with pytest.raises(SettingError, match="flash_cpu does not train in float32 on cpu: it is for"):
        choose_backend(q.device, "flash_cpu", q.dtype, training=True)
    with pytest.raises(TypeError, match=r"flash_cpu is for bfloat16, and these are torch\.float32"):
        module.flash_cpu(q, k, v, Context.plain(q), ScoreRule())
    found, expected = (
        attend(q, k, v, Context.plain(q), backend=b) for b in ("flash_cpu", "blocks")
    )
    assert torch.equal(found, expected)


def test_it_is_an_operator_like_those_of_torch() -> None:
    """Its shapes, strides and gradients hold for fake tensors, autograd and the compiler."""
    q, k, v = drawn((2, 9, 4, 8), (2, 9, 2, 8), (2, 9, 2, 16))
    bounds = bounds_of(Context(torch.arange(9).expand(2, -1)), ScoreRule())
    torch.library.opcheck(torch.ops.culm.flash_cpu, (q, k, v, bounds, 0.5, True))


@pytest.mark.parametrize(("causal", "scores"), [(True, 45), (False, 81)])
def test_flops_are_those_of_visible_scores(causal: bool, scores: int) -> None:
    inputs = drawn((2, 9, 4, 8), (2, 9, 2, 8), (2, 9, 2, 16))
    context = Context(torch.arange(9).expand(2, -1), causal=causal)
    with counting_matmuls() as counted:
        attend(*inputs, context, backend="flash_cpu").sum().backward()
    assert counted.get_total_flops() == 3 * 2 * 2 * 4 * scores * (8 + 16)


def test_one_key_that_has_nearly_all_weight() -> None:
    """As attention sinks have: dP - sum(dO O) cancels there, which needs more of O than bf16."""
    inputs, context = (
        drawn(*((1, 128, heads, 64) for heads in (4, 2, 2))),
        context_of(1, 128, False, True),
    )
    with torch.no_grad():
        inputs[0][..., 0] = 8
        inputs[1][:, 0, :, 0] = 16
    (grad,) = drawn((1, 128, 4, 64))
    exact = results("blocks", [x.float() for x in inputs], grad, context)
    found = results("flash_cpu", inputs, grad, context)
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).norm() <= 0.02 * theirs.norm()


def test_positions_of_one_row_are_those_of_all() -> None:
    q, k, v = (x.detach() for x in drawn(*((3, 70, heads, 16) for heads in (4, 2, 2))))
    context, rule = Context(torch.arange(70)[None]), ScoreRule(window=2**31 - 1)
    found = attend(q, k, v, context, rule, "flash_cpu")
    torch.testing.assert_close(found, attend(q, k, v, context, rule, "blocks"), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "shapes",
    [((4, 3), (4, 2), (4, 2)), ((4, 4), (3, 2), (3, 2)), ((4, 4), (4, 2), (4, 1))],
    ids=["heads", "keys", "values"],
)
def test_shapes_that_do_not_belong_together_are_refused(
    shapes: tuple[tuple[int, int], ...],
) -> None:
    q, k, v = (torch.zeros(1, *shape, 8, dtype=torch.bfloat16) for shape in shapes)
    with pytest.raises(ValueError, match="shapes of q, k and v do not belong together"):
        attend(q, k, v, Context(torch.arange(4)[None]), backend="flash_cpu")


def test_what_is_no_number_stays_in_its_row() -> None:
    q, k, v = (x.detach() for x in drawn(*((1, 128, heads, 16) for heads in (2, 1, 1))))
    k[:, 100] *= 50  # so that the largest score of later queries rises in the second block
    expected = attend(q, k, v, Context.plain(q), backend="flash_cpu")
    q[:, 110] = torch.nan
    found = attend(q, k, v, Context.plain(q), backend="flash_cpu")
    assert found[:, 110].isnan().all()
    others = torch.arange(128) != 110
    assert torch.equal(found[:, others], expected[:, others])
    q.fill_(-1e30)
    k.fill_(1e30)
    assert attend(q, k, v, Context.plain(q), backend="flash_cpu").isnan().all()
