"""Gated DeltaNet: chunks are steps, the layer is that of Qwen3-Next, and it learns to recall."""

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next import modeling_qwen3_next as reference
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig

from culm.engine.engine import Engine
from culm.engine.fused_support import obstacle
from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.eval.inspection import attention_maps
from culm.model.attention.deltanet import DeltaNet, delta_rule
from culm.model.attention.gqa import GQA
from culm.model.context import Context
from culm.model.norm import RMSNormConfig
from culm.model.transformer import TransformerConfig

DELTA = DeltaNet(heads=4, key_heads=2, head_dim=8, value_dim=6)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(*attention, layers: int = 2):
    config = TransformerConfig(
        vocabulary=60, width=32, layers=layers, context=256, tied=False,
        attention=attention or (DELTA,),
    )  # fmt: skip
    model, noise = config.build(seed=0).eval(), drawn(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=noise)
    return model


def operands(length: int) -> tuple[Tensor, ...]:
    """q, k, v, decay, strength, state of two rows and three heads."""
    noise = drawn()
    q, k = (torch.randn(2, length, 3, 8, generator=noise) for _ in range(2))
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    v = torch.randn(2, length, 3, 5, generator=noise)
    decay, strength = (torch.rand(2, length, 3, generator=noise) for _ in range(2))
    return q, k, v, decay * 2, strength, torch.randn(2, 3, 8, 5, generator=noise)


@pytest.mark.parametrize("length", [1, 2, 16, 17, 50])
def test_chunks_are_steps_and_those_of_the_reference(length: int) -> None:
    *rows, state = operands(length)
    out, after = delta_rule(*rows, state, chunk=16)
    stepped, running = [], state
    for time in range(length):
        one, running = delta_rule(*(x[:, time : time + 1] for x in rows), running)
        stepped.append(one)
    torch.testing.assert_close(out, torch.cat(stepped, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(after, running, atol=1e-5, rtol=0)
    q, k, v, decay, strength = rows
    for name in ("chunk", "recurrent"):
        rule = getattr(reference, f"torch_{name}_gated_delta_rule")
        expected, last = rule(q, k, v, g=-decay, beta=strength, initial_state=state,
                              output_final_state=True)  # fmt: skip
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(after, last, atol=1e-5, rtol=0)


def test_a_value_is_replaced_and_fades() -> None:
    """By hand: a key written twice with full strength gives the newer value; decay halves it."""
    key = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    values = torch.tensor([[2.0], [6.0], [6.0]]).view(1, 3, 1, 1)
    decay = torch.tensor([1.0, 1.0, 2.0]).log().view(1, 3, 1)
    strength = torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1)
    out, _ = delta_rule(key, key, values, decay, strength, torch.zeros(1, 1, 2, 1))
    assert (out.flatten() * 2**0.5).tolist() == pytest.approx([2.0, 6.0, 3.0])


@torch.no_grad()
def test_the_layer_is_that_of_qwen3_next() -> None:
    config = Qwen3NextConfig(
        hidden_size=32, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=6, linear_conv_kernel_dim=4, num_hidden_layers=1,
        layer_types=["linear_attention"], rms_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = reference.Qwen3NextGatedDeltaNet(config, 0)
    theirs.norm.weight += 0.3 * torch.randn(6)
    theirs.dt_bias += torch.randn(4)
    ours = DELTA.build(32, RMSNormConfig(eps=1e-5), -1)
    # One group of rows for each key head: its query and key, then its values, then their gates.
    q, k, v, gate = theirs.in_proj_qkvz.weight.view(2, 40, 32).split([8, 8, 12, 12], 1)
    strength, decay = theirs.in_proj_ba.weight.view(2, 4, 32).split(2, 1)
    pairs = {"q": q, "k": k, "v": v, "gate": gate, "strength": strength, "decay": decay}
    weights = {f"{name}.weight": part.reshape(-1, 32) for name, part in pairs.items()}
    weights |= {
        "out.weight": theirs.out_proj.weight, "mix": theirs.conv1d.weight[:, 0],
        "log_rate": theirs.A_log, "time": theirs.dt_bias, "norm.weight": theirs.norm.weight,
    }  # fmt: skip
    ours.load_state_dict(weights)
    x = torch.randn(2, 150, 32, generator=drawn())
    found = ours(x, Context.plain(x[..., 0]), None)
    assert (found - theirs(x)).abs().max() <= 1e-4


def test_the_future_changes_nothing() -> None:
    model = build()
    tokens = torch.randint(0, 60, (2, 100), generator=drawn())
    changed = tokens.clone()
    changed[:, 70:] = (changed[:, 70:] + 1) % 60
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :70], after[:, :70], atol=1e-6, rtol=0)
    assert (before[:, 70:] != after[:, 70:]).any(-1).all()


@pytest.mark.parametrize("lengths", [(5, 1, 30, 2), (64, 64), (70, 3, 90), (1, 1, 1)])
def test_packed_rows_are_their_documents_one_by_one(lengths: tuple[int, ...]) -> None:
    """Also where documents begin at, before and after a border of chunks; gradients too."""
    model = build()
    parts = [torch.randint(0, 60, (1, n), generator=drawn(n)) for n in lengths]
    documents = torch.cat([torch.full((1, n), i) for i, n in enumerate(lengths)], 1)
    positions = torch.cat([torch.arange(n)[None] for n in lengths], 1)
    packed = model(torch.cat(parts, 1), Context(positions, documents))
    alone = torch.cat([model(part) for part in parts], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)
    gradients = []
    for logits in (packed, alone):
        model.zero_grad()
        logits.log_softmax(-1)[..., 0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert gradients[0].isfinite().all()
    assert (gradients[0] - gradients[1]).norm() <= 1e-4 * gradients[1].norm()


@pytest.mark.parametrize("attention", [(DELTA,), (DELTA, GQA(heads=4, kv_heads=2))])
def test_a_batch_of_requests_is_each_of_them_alone(attention) -> None:
    """Unequal prompts, equal ones, more requests than slots: slots are copied and used again."""
    model, noise = build(*attention), drawn(3)
    lengths = [1, 3, 9, 20, 20, 70]
    prompts = [tuple(torch.randint(0, 60, (n,), generator=noise).tolist()) for n in lengths]
    requests = [
        Request(prompt, 4 + 3 * i, Sampling(seed=i))
        for i, prompt in enumerate([*prompts, prompts[2], prompts[0]])
    ]
    alone = [Engine(model, slots=1).generate([request])[0].tokens for request in requests]
    for slots in (8, 3):
        together = Engine(model, slots=slots).generate(requests)
        assert [completion.tokens for completion in together] == alone


def test_few_bits_of_memory_for_any_length() -> None:
    model = build()
    assert model.cache(2, 16).bytes == model.cache(2, 256).bytes
    state, inputs = 4 * 8 * 6, 3 * (2 * 2 * 8 + 4 * 6)
    assert model.cache(2, 16).bytes == 2 * 2 * (state + inputs) * 4


def test_the_fused_step_leaves_it_to_the_model() -> None:
    model = build().to(torch.bfloat16)
    model.dtype = torch.bfloat16
    assert obstacle(model, model.cache(1, 32))
    assert len(Engine(model).generate([Request((1, 2), 3)])[0].tokens) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["deltanet", "control"])
def test_it_learns_to_recall_what_a_key_was_followed_by(kind: str) -> None:
    """Pairs (key, value), then the same in another order: chance is 1/4, and a layer that cannot
    look back (a window of one token) stays there.
    """
    part = DeltaNet(heads=2) if kind == "deltanet" else GQA(heads=2, window=1)
    config = TransformerConfig(vocabulary=16, width=64, layers=2, context=32, attention=part)
    model, noise, rows = config.build(seed=0), drawn(), torch.arange(64)[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(90):
        keys = torch.rand(64, 8, generator=noise).argsort(1)[:, :4]
        values = torch.randint(8, 16, (64, 4), generator=noise)
        pairs = torch.stack((keys, values), -1)
        again = torch.rand(64, 4, generator=noise).argsort(1)
        tokens = torch.cat((pairs, pairs[rows, again]), 1).flatten(1)
        logits, answers = model(tokens)[:, 8::2], values[rows, again]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
        optimizer.step()
    right = float((logits.argmax(-1) == answers).float().mean())
    assert right >= 0.9 if kind == "deltanet" else right <= 0.35, right


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"heads": 4, "key_heads": 3}, "key_heads: 3 does not divide heads=4"),
        ({"heads": 5}, "heads: 5 does not divide width=32"),
    ],
)
def test_impossible_shapes_are_named(settings, words) -> None:
    with pytest.raises(ValueError, match=words):
        TransformerConfig(
            vocabulary=9, width=32, layers=1, attention={"kind": "deltanet", **settings}
        )


def test_it_has_no_weights_to_look_at() -> None:
    assert attention_maps(build(), [1, 2, 3]) == {}
