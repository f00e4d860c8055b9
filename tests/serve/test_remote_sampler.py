"""Our own server samples the rollouts of a run: the whole circle, as two processes would do it."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import torch
from reciter import Running
from stages import weights_in

from culm import endpoint
from culm.config import SettingError, parse
from culm.convert import hf
from culm.convert.load import read
from culm.endpoint import ServiceFailed
from culm.run.settings import RunConfig
from culm.run.train import train
from culm.serve.http.app import build
from culm.serve.settings import ServeConfig
from culm.text.language_model import LanguageModel
from culm.verbs.plan import show_plan

Stage = Callable[..., dict]


@pytest.fixture
def served(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], tuple[Running, dict]]]:
    """Starts a server of an export of the stage's base; gives it with the sampler's settings."""
    monkeypatch.setattr(endpoint, "DELAY", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder, running = tmp_path / "served", list[Running]()

    def start() -> tuple[Running, dict]:
        if not folder.exists():
            model, tokenizer = read(stage("grpo")["start"], "cpu", torch.float32)
            hf.export(model, tokenizer, folder)
        again = partial(read, folder, "cpu", torch.float32)
        running.append(
            Running(build(LanguageModel(*again()), "policy", ServeConfig(slots=4), reload=again))
        )
        sampler = {
            "kind": "remote", "url": f"{running[-1].url}/v1", "model": "policy",
            "weights": str(folder), "reload": [{"path": "/reload"}], "retries": 1,
        }  # fmt: skip
        return running[-1], sampler

    yield start
    for server in running:
        if server.thread.is_alive():
            server.stop()


def run(stage: Stage, folder: Path, sampler: Any = "engine", **more: Any) -> RunConfig:
    settings = stage("grpo", **more)
    settings["train"]["rollout"] = {**settings["train"]["rollout"], "sampler": sampler}
    return parse(RunConfig, {**settings, "folder": str(folder)})


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_on_our_server_is_that_on_the_engine(
    served: Callable, stage: Stage, tmp_path: Path
) -> None:
    """The same tokens with the same seeds, so the same rewards, step by step; the reward rises."""
    _, sampler = served()
    (tmp_path / "ones.py").write_text("def ones(completion):\n    return completion.count('1') / 4")
    reward = {"kind": "function", "path": str(tmp_path / "ones.py"), "name": "ones"}
    more = {"steps": 16, "reward": reward}
    train(run(stage, tmp_path / "here", **more))
    train(run(stage, tmp_path / "there", sampler, **more))
    here, there = metrics(tmp_path / "here"), metrics(tmp_path / "there")
    for ours, theirs in zip(here, there, strict=True):
        assert theirs["completion_tokens"] == ours["completion_tokens"]
        assert theirs["reward"] == pytest.approx(ours["reward"], abs=1e-6)
        assert theirs["sampler_difference"] < 1e-5
    rewards = [line["reward"] for line in there]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


def test_a_run_whose_server_dies_is_saved_and_resumed(
    served: Callable, stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With no other checkpoint; resumed with a new server at another port, or with the engine, it
    is exact.
    """
    server, sampler = served()
    train(run(stage, tmp_path / "whole", sampler, steps=4))
    folder, asked = tmp_path / "run", 0
    ask = server.app.state.service.ask

    async def ask_for_a_while(query: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > 90:  # in the third step: probes and 32 completions a step
            server.server.should_exit = server.server.force_exit = True
            raise RuntimeError("it dies")
        return await ask(query)

    server.app.state.service.ask = ask_for_a_while
    with pytest.raises(ServiceFailed, match=r"sampler: .*, 2 times; once the server answers, the"):
        train(run(stage, folder, sampler, steps=4))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-2"]
    shutil.copytree(folder, tmp_path / "here")
    _, sampler = served()
    train(run(stage, folder, sampler, steps=4))
    train(run(stage, tmp_path / "here", "engine", steps=4))
    whole = weights_in(tmp_path / "whole")
    for one in (folder, tmp_path / "here"):
        resumed = weights_in(one)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


INNER = {"kind": "int8", "targets": ["*attention*"]}


def test_a_server_that_keeps_its_weights_is_that_of_the_start_after_a_resume_too(
    served: Callable, stage: Stage, tmp_path: Path
) -> None:
    """It is compared with what the run starts from, and not with what was learned since."""
    _, sampler = served()
    sampler |= {"weights": None, "reload": [], "tolerance": 1e-3}
    objective = {"kind": "grpo", "correction": "token"}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(run(stage, whole, sampler, steps=4, objective=objective))
    for steps in (2, 4):
        train(run(stage, resumed, sampler, steps=steps, objective=objective))
    differences = [line["sampler_difference"] for line in metrics(resumed)]
    assert differences[0] < 1e-5 < 1e-3 < differences[3]
    for one, other in zip(metrics(whole), metrics(resumed), strict=True):
        assert one["reward"] == other["reward"]
    # The correction reads log-probabilities, whose last bits depend on the batch of the server.
    for name, weight in weights_in(whole).items():
        torch.testing.assert_close(weights_in(resumed)[name], weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("more", [{"adapter": True}, {"qat": [INNER]}])
def test_the_server_reads_merged_adapters_and_quantised_weights(
    more: dict[str, Any], served: Callable, stage: Stage, tmp_path: Path
) -> None:
    _, sampler = served()
    train(run(stage, tmp_path / "run", sampler, steps=3, **more))
    for line in metrics(tmp_path / "run"):
        assert line["sampler_difference"] < 1e-4


def test_a_head_that_the_server_does_not_have_is_refused(
    served: Callable, stage: Stage, tmp_path: Path
) -> None:
    _, sampler = served()
    with pytest.raises(SettingError, match=r"weights: .* give the policy a head of its own"):
        train(run(stage, tmp_path / "run", sampler, qat="int8"))


def test_the_start_of_a_run_is_not_overwritten(
    served: Callable, stage: Stage, tmp_path: Path
) -> None:
    _, sampler = served()
    config = run(stage, tmp_path / "run", sampler)
    config = config.model_copy(update={"start": sampler["weights"]})
    with pytest.raises(SettingError, match=r"weights: .*served is the model that the run starts"):
        train(config)
    assert not (tmp_path / "run" / "model").exists()


def test_a_plan_names_the_server_and_does_not_ask_it(
    stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    sampler = {
        "kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "policy",
        "weights": str(tmp_path / "served"), "reload": [{"path": "/reload"}],
    }  # fmt: skip
    show_plan(run(stage, tmp_path / "run", sampler), {})
    said = "".join(capsys.readouterr().out.split())
    assert f"policyat{sampler['url']},whichreads{sampler['weights']}" in said


# -- the server's side ------------------------------------------------------------------------


def ids_of(running: Running, **more: Any) -> dict:
    body = {"model": "reciter", "prompt": [65, 66], "temperature": 0, "max_tokens": 3, **more}
    answer = httpx.post(f"{running.url}/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_token_ids_of_an_answer(running: Running) -> None:
    """As vLLM names them; with the token that ends the answer, and parts of characters."""
    assert ids_of(running, return_token_ids=True)["token_ids"] == [67, 68, 69]
    assert ids_of(running, return_token_ids=True)["logprobs"] is None
    assert "token_ids" not in ids_of(running)
    given = ids_of(running, return_tokens_as_token_ids=True, logprobs=1)["logprobs"]
    assert given["tokens"] == ["token_id:67", "token_id:68", "token_id:69"]
    assert list(given["top_logprobs"][0]) == ["token_id:67"]
    both = ids_of(running, return_token_ids=True, logprobs=0, stop_token_ids=[68], ignore_eos=True)
    assert both["token_ids"] == [67, 68]
    assert (both["text"], both["finish_reason"]) == ("C", "stop")
    assert len(both["logprobs"]["token_logprobs"]) == 2
    part = ids_of(running, return_token_ids=True, prompt=[*b"Z"], max_tokens=1)
    assert part["token_ids"] == ["é".encode()[0]]


def test_token_ids_in_a_stream(running: Running) -> None:
    body = {
        "model": "reciter", "prompt": "A", "temperature": 0, "max_tokens": 4, "stream": True,
        "return_token_ids": True,
    }  # fmt: skip
    lines = httpx.post(f"{running.url}/v1/completions", json=body).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    found = [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]
    assert found == [66, 67, 68, 69]


def test_an_echo_has_no_ids(running: Running) -> None:
    body = {"model": "reciter", "prompt": "A", "echo": True, "return_token_ids": True}
    answer = httpx.post(f"{running.url}/v1/completions", json=body)
    assert answer.status_code == 400
    assert "return_token_ids" in answer.json()["error"]["message"]


def test_weights_are_read_again_only_where_it_was_asked_for(running: Running) -> None:
    assert httpx.post(f"{running.url}/reload", json={}).status_code == 404


def test_what_has_another_shape_is_not_read(served: Callable, stage: Stage) -> None:
    """The server goes on with the weights that it has."""
    server, sampler = served()
    before = (Path(sampler["weights"]) / "config.json").read_text()
    assert httpx.post(f"{server.url}/reload", json={}).json() == {"status": "ok"}
    changed = json.loads(before)
    changed["rms_norm_eps"] *= 2
    (Path(sampler["weights"]) / "config.json").write_text(json.dumps(changed))
    answer = httpx.post(f"{server.url}/reload", json={})
    assert answer.status_code == 400
    assert "another shape" in answer.json()["error"]["message"]
    (Path(sampler["weights"]) / "config.json").unlink()
    assert httpx.post(f"{server.url}/reload", json={}).status_code == 400
    body = {"model": "policy", "prompt": [65], "max_tokens": 2}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
