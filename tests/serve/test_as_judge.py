"""Our own server as the judge of a run: its answers arrive, and so do its refusals."""

import math

import pytest
from answers import answered
from learning import refuse
from reciter import Running

from culm.rollout.reward.judge import Judge


def test_our_server_answers_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reciter gives no verdict, which is said; without the key it gives no answer."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("KEY", "right")
    server = Running(api_key="right")
    try:
        problems = []
        for key in ("KEY", None):
            judge = Judge(url=f"{server.url}/v1", model="reciter", retries=0, api_key=key)
            given = [answered("Why?", reply) for reply in ("a", "b")]
            assert all(map(math.isnan, judge.build(refuse, 0)(given)))
            problems.append(given[0].problem)
    finally:
        server.stop()
    assert "has no verdict in the form that it was asked for" in problems[0]
    assert "answered HTTP 401" in problems[1]
