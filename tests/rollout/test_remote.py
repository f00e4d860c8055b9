"""A server in the form of vLLM samples the answers: what it is sent, and what is learned from."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import build, fit
from rolling import TOKENIZER, Rare, model, on_two_ranks, rollouts
from test_environments import Echo, speaker
from vllm_stub import VLLM

from culm.config import SettingError, parse
from culm.endpoint import ServiceFailed
from culm.model.transformer import Transformer
from culm.objective.grpo import GRPO
from culm.optim.adamw import AdamW
from culm.parallel.ranks import Ranks
from culm.rollout.buffer import Rollouts
from culm.rollout.remote import RemoteSampler
from culm.rollout.sampler import Sampler
from culm.rollout.settings import RolloutConfig
from culm.run.train_settings import TrainConfig

Serving = Callable[[Transformer], VLLM]
CORRECTED = GRPO(correction="token")


def remote(server: VLLM, **more: Any) -> dict[str, Any]:
    return {"kind": "remote", "url": server.url, "model": "policy", "retries": 2, **more}


def asked(server: VLLM, policy: Transformer, rows: int = 16, **more: Any) -> Rollouts:
    config = {"group": 4, "max_tokens": 5, "sampler": remote(server), **more}
    return rollouts(build(CORRECTED, policy), rows, rows, **config)


def test_the_first_rollout_is_that_of_the_engine(serving: Serving) -> None:
    """The same tokens from the same seeds, and log-probabilities up to rounding."""
    policy = model(0)
    ours = rollouts(build(CORRECTED, policy), 16, 16, group=4, max_tokens=5).step(0)[0]
    theirs = asked(serving(policy), policy).step(0)[0]
    assert torch.equal(ours.tokens, theirs.tokens)
    assert torch.equal(ours.targets, theirs.targets)
    assert torch.equal(ours.extra["advantages"], theirs.extra["advantages"])
    torch.testing.assert_close(ours.extra["sampler"], theirs.extra["sampler"], atol=1e-5, rtol=0)


def test_what_a_server_is_asked(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token ids, a seed of each completion, and nothing left to the server's own defaults."""
    monkeypatch.setenv("SAMPLER_API_KEY", "secret")
    policy = model(0)
    server = serving(policy)
    asked(server, policy, sampler=remote(server, api_key="SAMPLER_API_KEY")).step(0)
    assert len({body.pop("seed") for body in server.bodies}) == len(server.bodies) == 16
    (stops,) = {tuple(body.pop("stop_token_ids")) for body in server.bodies}
    assert set(stops) == TOKENIZER.stop_ids
    prompts = [body.pop("prompt") for body in server.bodies]
    assert all(type(token) is int for prompt in prompts for token in prompt)
    for body in server.bodies:
        assert body == {
            "model": "policy", "max_tokens": 5, "temperature": 1.0, "top_p": 1.0, "top_k": -1,
            "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "ignore_eos": True, "logprobs": 0,
            "return_token_ids": True, "return_tokens_as_token_ids": True,
        }  # fmt: skip
    assert set(server.keys) == {"Bearer secret"}


def test_a_dialogue_of_several_turns_is_that_of_the_engine(serving: Serving) -> None:
    """Each turn is asked with all tokens before it."""
    server = serving(speaker())
    config = RolloutConfig(max_tokens=3, group=1)
    asking = config.model_copy(
        update={"sampler": RemoteSampler(url=server.url, model="policy", retries=0)}
    )
    ours, theirs = (
        Sampler(server.model, TOKENIZER, one, 0).sample([Echo(n, 3) for n in range(4)], 0)
        for one in (config, asking)
    )
    assert len(server.bodies) == 12
    assert [one.tokens for one in theirs] == [one.tokens for one in ours]
    assert [one.learned for one in theirs] == [one.learned for one in ours]
    assert [one.finish for one in theirs] == [one.finish for one in ours]


def test_older_servers_name_token_ids_in_the_log_probabilities(serving: Serving) -> None:
    policy = model(0)
    server = serving(policy)
    expected = asked(server, policy).step(0)[0]

    def older(answer: dict) -> dict:
        del answer["choices"][0]["token_ids"], answer["choices"][0]["prompt_token_ids"]
        return answer

    server.change = older
    assert torch.equal(asked(server, policy).step(0)[0].targets, expected.targets)


def _choice(change: Callable[[dict], Any]) -> Callable[[dict], dict]:
    def changed(answer: dict) -> dict:
        change(answer["choices"][0])
        return answer

    return changed


def _texts(choice: dict) -> None:
    del choice["token_ids"]
    choice["logprobs"]["tokens"] = list(choice["text"])


def _without_stop(choice: dict) -> None:
    """As a server that keeps the stop token to itself."""
    choice["finish_reason"] = "stop"
    choice["token_ids"][-1] = ord("a")


def _shorter(choice: dict) -> None:
    """As a server with a shorter context."""
    choice["finish_reason"] = "length"
    choice["token_ids"], given = choice["token_ids"][:1], choice["logprobs"]
    given["token_logprobs"] = given["token_logprobs"][:1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_choice(_texts), "hold no token ids.* a text is never tokenised again"),
        (_choice(lambda c: c.update(token_ids=None, logprobs={})), "hold no token ids"),
        (_choice(lambda c: c.update(token_ids=[True])), "hold no token ids"),
        (_choice(lambda c: c.update(logprobs=None)), "hold no log-probabilities"),
        (_choice(lambda c: c["logprobs"].pop("token_logprobs")), "hold no log-probabilities"),
        (_choice(lambda c: c["logprobs"]["token_logprobs"].pop()), "hold no log-probabilities"),
        (_choice(lambda c: c["logprobs"].update(token_logprobs=[None] * len(c["token_ids"]))),
         "one is None"),
        (_choice(lambda c: c["token_ids"].__setitem__(0, 9999)), "it sampled token 9999"),
        (_choice(lambda c: c.update(finish_reason="abort")), "finish_reason 'abort'"),
        (_choice(_without_stop), "ended an answer .* finish_reason 'stop' and token 97"),
        (_choice(_shorter), "ended an answer after 1 of 5 tokens with finish_reason 'length'"),
        (lambda answer: {"choices": answer["choices"] * 2}, "not one completion"),
        (lambda answer: ["?"], "not one completion"),
        (lambda answer: 404, "answered HTTP 404"),
    ],
)  # fmt: skip
def test_other_answers_are_refused_in_one_sentence(
    change: Callable[[dict], Any], reason: str, serving: Serving
) -> None:
    policy = model(0)
    server = serving(policy)
    server.change = change
    with pytest.raises(ServiceFailed, match=reason) as found:
        asked(server, policy).check_sampler()
    message = str(found.value)
    assert message.startswith(f"train.rollout.sampler: {server.url} ")
    assert "\n" not in message


def test_a_server_of_another_model_is_refused(serving: Serving) -> None:
    """The same vocabulary and shape, other weights; its own weights pass."""
    policy = model(0)
    asked(serving(policy), policy).check_sampler()
    with pytest.raises(SettingError, match=r"differ from those of the policy by .* the tolerance"):
        asked(serving(_sharp(model(1))), policy).check_sampler()
    server = serving(_sharp(model(1)))
    asked(server, policy, sampler=remote(server, tolerance=50)).check_sampler()


def _sharp(policy: Transformer) -> Transformer:
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return policy


def test_attempts_are_repeated_and_then_the_run_is_given_up(serving: Serving) -> None:
    policy = model(0)
    server = serving(policy)
    server.refusals = [503, 500]
    asked(server, policy).step(0)
    server.refusals = [503] * 1000
    with pytest.raises(ServiceFailed, match=r"HTTP 503 .*, 3 times; .* the same command resumes"):
        asked(server, policy).step(0)
    server.stop()
    with pytest.raises(ServiceFailed, match=r"cannot be reached .*, 3 times"):
        asked(server, policy).step(0)


def test_each_rank_asks_for_its_own_prompts(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = model(0)
    whole = asked(serving(policy), policy).step(0)[0]
    server = serving(policy)
    objective = build(CORRECTED, policy)

    def play(ranks: Ranks) -> list[list[int]]:
        config = {"group": 4, "max_tokens": 5, "sampler": remote(server)}
        own = rollouts(objective, 16, 16, ranks=ranks, **config).step(0)[0]
        return own.targets[own.targets >= 0].tolist()

    parts = on_two_ranks(monkeypatch, play)
    assert len(server.bodies) == 16
    assert sorted(parts[0] + parts[1]) == sorted(whole.targets[whole.targets >= 0].tolist())


def test_all_ranks_give_up_where_one_gets_no_answer(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = model(0)
    good, bad = serving(policy), serving(policy)
    bad.change = lambda answer: 404
    objective = build(CORRECTED, policy)

    def play(ranks: Ranks) -> str:
        config = {"group": 4, "max_tokens": 5, "sampler": remote((good, bad)[ranks.rank])}
        with pytest.raises(ServiceFailed) as found:
            rollouts(objective, 16, 16, ranks=ranks, **config).step(0)
        return str(found.value)

    first, second = on_two_ranks(monkeypatch, play)
    assert first == second
    assert f"{bad.url} answered HTTP 404" in first


def test_all_ranks_give_up_where_the_weights_are_not_read(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer alone asks for it, and the other rank does not wait for ever."""
    monkeypatch.setattr(Ranks, "wait", lambda ranks: ranks.gather(None))
    policy = model(0)
    server = serving(policy)
    server.on_post = lambda path, body: 400
    sampler = remote(server, weights=str(tmp_path), reload=[{"path": "/reload"}])
    objective = build(GRPO(), policy)

    def play(ranks: Ranks) -> str:
        played = rollouts(
            objective, 16, 16, ranks=replace(ranks, writer=ranks.rank == 0),
            export=lambda folder: None, group=4, max_tokens=5, sampler=sampler,
        )  # fmt: skip
        with pytest.raises(ServiceFailed) as found:
            played.step(0)
        return str(found.value)

    first, second = on_two_ranks(monkeypatch, play)
    assert first == second
    assert f"train.rollout.sampler: /reload: {server.root} answered HTTP 400" in first
    assert len(server.posted) == 1


def test_all_ranks_give_up_where_the_policy_cannot_be_written(
    serving: Serving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = model(0)
    sampler = remote(serving(policy), weights=str(tmp_path), reload=[{"path": "/reload"}])
    objective = build(GRPO(), policy)

    def play(ranks: Ranks) -> str:
        def export(folder: Path) -> None:
            if ranks.rank == 0:
                raise OSError("no space left on the device")

        played = rollouts(
            objective, 16, 16, ranks=ranks, export=export, group=4, max_tokens=5, sampler=sampler
        )
        with pytest.raises((OSError, ServiceFailed)) as found:
            played.step(0)
        return str(found.value)

    first, second = on_two_ranks(monkeypatch, play)
    assert first == "no space left on the device"
    assert first in second


def test_the_policy_is_exported_and_read_once_before_each_rollout(
    serving: Serving, tmp_path: Path
) -> None:
    """Also where groups are replaced; between updates of one rollout nothing happens."""
    policy = model(0)
    server = serving(copy.deepcopy(policy))
    exported: list[Path] = []
    newest: dict[str, Any] = {}

    def export(folder: Path) -> None:
        exported.append(folder)
        newest.update(copy.deepcopy(policy.state_dict()))

    def reload(path: str, body: dict) -> dict:
        if path == "/collective_rpc":
            server.model.load_state_dict(newest)
        return {}

    server.on_post = reload
    posts = [
        {"path": "/collective_rpc", "body": {"method": "reload_weights"}},
        {"path": "/reset_prefix_cache"},
    ]
    sampler = remote(server, weights=str(tmp_path), reload=posts)
    objective = build(GRPO(), policy)
    played = rollouts(
        objective, 16, 16, export=export, tasks=(Rare(),), group=4, max_tokens=5, sampler=sampler,
        resample=2, batches=2,
    )  # fmt: skip
    played.check_sampler()
    assert not exported
    steps = fit(objective, played, 6, AdamW(rate=1e-2, weight_decay=0.0).build(objective), clip=1.0)
    assert exported == [tmp_path] * 3
    once = [("/collective_rpc", {"method": "reload_weights"}), ("/reset_prefix_cache", {})]
    assert server.posted == once * 3
    assert max(step.metrics["sampler_difference"] for step in steps) < 1e-5


def test_a_server_that_read_other_weights_ends_the_run(serving: Serving, tmp_path: Path) -> None:
    policy = model(0)
    server = serving(_sharp(model(1)))
    sampler = remote(server, weights=str(tmp_path), reload=[{"path": "/reload"}])
    played = rollouts(
        build(GRPO(), policy), 16, 16, export=lambda folder: None, group=4, max_tokens=5,
        sampler=sampler,
    )  # fmt: skip
    played.check_sampler()  # what it has before it reads the policy is of no interest
    with pytest.raises(ServiceFailed, match="it serves another model, or other weights"):
        played.step(0)


@pytest.mark.slow
def test_old_weights_are_corrected_for(serving: Serving) -> None:
    """The server keeps its weights; the difference is a metric, and the reward still rises."""
    policy = model(0)
    server = serving(copy.deepcopy(policy))
    objective = build(CORRECTED, policy)
    played = rollouts(objective, 64, 64, group=8, max_tokens=6, sampler=remote(server))
    optimizer = AdamW(rate=1e-2, weight_decay=0.0).build(objective)
    differences = [
        step.metrics["sampler_difference"] for step in fit(objective, played, 8, optimizer, 1.0)
    ]
    assert differences[0] < 1e-5 < 1e-3 < differences[1] < differences[7]
    at = {"group": 8, "max_tokens": 6}
    before = rollouts(build(CORRECTED, server.model), 64, 64, **at).step(0)[0].metrics["reward"]
    after = rollouts(objective, 64, 64, **at).step(0)[0].metrics["reward"]
    assert after > 1.5 * before


URL = "http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("sampler", "change", "refused"),
    [
        ({}, {}, r"rollout.sampler: the server keeps its weights, so that grpo would learn"),
        ({}, {"objective": "ppo"}, r"rollout.sampler: .* so that ppo would learn"),
        ({"weights": "w"}, {}, r"rollout.sampler.weights: give both"),
        ({"reload": [{"path": "/r"}]}, {}, r"rollout.sampler.weights: give both"),
        ({"reload": [{"path": "r"}]}, {}, r"rollout.sampler.reload\[0\].path: "),
        ({"url": "localhost:8000"}, {}, r"rollout.sampler.url: this is not http"),
        ({"api_key": "sk-12"}, {}, r"rollout.sampler.api_key: give the name of an environment"),
        ({}, {"temperature": 0.7}, r"rollout.temperature: a server reports"),
    ],
)
def test_settings_that_cannot_be_right_are_refused(
    sampler: dict[str, Any], change: dict[str, Any], refused: str
) -> None:
    given = {"kind": "remote", "url": URL, "model": "policy", **sampler}
    rollout = {"sampler": given, **{n: v for n, v in change.items() if n == "temperature"}}
    settings = {"steps": 1, "objective": change.get("objective", "grpo"), "rollout": rollout}
    with pytest.raises(SettingError, match=refused):
        parse(TrainConfig, settings)


def test_what_corrects_or_needs_no_correction_is_accepted() -> None:
    rollout = {"sampler": {"kind": "remote", "url": URL, "model": "policy"}}
    for objective in (
        {"kind": "grpo", "correction": "sequence"},
        {"kind": "gkd", "teacher": "runs/teacher"},
    ):
        parse(TrainConfig, {"steps": 1, "objective": objective, "rollout": rollout})
