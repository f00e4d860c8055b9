"""Weights on the Hugging Face hub while a run trains: a branch or tag for each version.

The network never stops a run: weights are copied to the disk at their step, a thread uploads them,
and what fails is said.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi
from pydantic import Field, NonNegativeFloat, PositiveInt

from culm.config import Config
from culm.files import write_json
from culm.log import say
from culm.parallel.ranks import Ranks
from culm.train.events import Event, Measured, Stepped
from culm.train.listeners import is_due

FACTS = "step.json"  # next to the weights: step, loss and metrics, or why its update was left out


class PushConfig(Config):
    """repo: OWNER/NAME of a model on the Hugging Face hub, which is created if it is not there.
    every_steps: steps between two versions; one is pushed at the end in any case, and when the run
        is stopped, unless the one before is still being uploaded then. version: branch:
        each version is the branch step-N; tag: versions follow each other on main, each with the
        tag step-N. private: whether a new repository is. wait_seconds: how long the end of the run
        waits for the last upload.

    Needs a token that may write: `hf auth login`, or HF_TOKEN.
    """

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    every_steps: PositiveInt | None = None
    version: Literal["branch", "tag"] = "branch"
    private: bool = True
    wait_seconds: NonNegativeFloat = 300.0


class Push:
    """Every rank has one, since all take part in gathering weights; the writer uploads.

    write: writes the model into a folder, on the rank that writes.
    """

    def __init__(self, settings: PushConfig, write: Callable[[Path], None], ranks: Ranks) -> None:
        self.settings, self._write, self.ranks = settings, write, ranks
        self._thread: threading.Thread | None = None
        self._measured: dict[str, Any] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Measured):
            self._measured = {"step": event.step, **event.results}
        elif isinstance(event, Stepped):
            if event.last:  # a run that is to stop does not wait before it saves
                self._wait()
            ends = event.last or event.stopped
            if ends or is_due(event.step, self.settings.every_steps):
                self._push(event)

    def close(self) -> None:
        self._wait()

    def _push(self, event: Stepped) -> None:
        busy = self._thread is not None and self._thread.is_alive()
        if self.ranks.everyone(busy)[0]:
            say(f"Step {event.step} is not pushed: the version before is still being uploaded.")
            return
        temporary = tempfile.TemporaryDirectory(prefix="culm-push-", ignore_cleanup_errors=True)
        folder = Path(temporary.name) / "model"
        written = self._try(event, lambda: self._save(folder, event))
        if not self.ranks.writer or not written:
            temporary.cleanup()
            return
        self._thread = threading.Thread(
            target=self._upload, args=(temporary, folder, event), daemon=True, name="push"
        )
        self._thread.start()

    def _save(self, folder: Path, event: Stepped) -> None:
        self._write(folder)
        if not self.ranks.writer:
            return
        facts: dict[str, Any] = {"step": event.step, "tokens": event.tokens}
        if event.skipped is None:  # else they are of a loss from which nothing was learned
            facts |= {"loss": event.loss, "metrics": dict(event.metrics)}
        else:
            facts["skipped"] = event.skipped
        write_json(folder / FACTS, {**facts, "measured": self._measured})

    def _try(self, event: Stepped, work: Callable[[], None]) -> bool:
        """Whether it was done."""
        try:
            work()
        except Exception as error:  # whatever the disk, the network, the hub or its library do
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            repo = self.settings.repo
            say(f"Step {event.step} was not pushed to {repo}, and the run continues: {reason}")
            return False
        return True

    def _upload(self, temporary: tempfile.TemporaryDirectory, folder: Path, event: Stepped) -> None:
        with temporary:
            self._try(event, lambda: self._send(folder, event))

    def _send(self, folder: Path, event: Stepped) -> None:
        name, repo, api = f"step-{event.step}", self.settings.repo, HfApi()
        api.create_repo(repo, private=self.settings.private, exist_ok=True)
        branch = self.settings.version == "branch"
        loss = "" if event.skipped else f", loss {event.loss:.4f}"
        if branch:
            api.create_branch(repo, branch=name, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=name if branch else None,
            commit_message=f"Step {event.step}{loss}",
        )  # fmt: skip
        if not branch:
            api.create_tag(repo, tag=name, revision=commit.oid, exist_ok=True)
        say(f"Pushed {repo}, {self.settings.version} {name}.")

    def _wait(self) -> None:
        if self._thread is None:
            return
        self._thread.join(self.settings.wait_seconds)
        if self._thread.is_alive():
            say(f"The upload to {self.settings.repo} takes too long and is given up.")
        self._thread = None
