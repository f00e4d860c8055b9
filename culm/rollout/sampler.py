"""The model plays episodes to their end, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from culm.engine.request import Request
from culm.engine.sampling import Sampling
from culm.model.transformer import Transformer
from culm.parallel.ranks import Ranks
from culm.rollout.completer import Export, Policy, Probe
from culm.rollout.environment import Episode
from culm.rollout.settings import RolloutConfig
from culm.rollout.trajectory import Trajectory
from culm.seed import keyed_integer
from culm.tokenizer.message import Message
from culm.tokenizer.tokenizer import Tokenizer

PROBED = 16  # tokens of the answer to a probe


class Sampler:
    """Samples by the settings of a rollout; random numbers of a row depend only on its index.

    context: maximum tokens of a dialogue; those of the model unless given. export: as in `Policy`.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: RolloutConfig,
        seed: int,
        context: int | None = None,
        ranks: Ranks = Ranks(),
        export: Export | None = None,
    ) -> None:
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        self.context = context or model.config.context
        policy = Policy(model, tokenizer, config.slots, ranks, export)
        self._completer = config.sampler.build(policy)

    def check(self, episodes: Sequence[Episode]) -> None:
        """Before the first step: whether the sampler continues the prompts of some episodes.

        Raises:
            SettingError: it does not.
        """
        self._completer.check(self._probes(episodes))

    def renew(self, episodes: Sequence[Episode]) -> None:
        """The policy may have changed since the last rollout; as `check`."""
        self._completer.renew(self._probes(episodes))

    def sample(self, episodes: Sequence[Episode], first: int) -> list[Trajectory]:
        """One trajectory an episode; `first` is the number of the first row in the whole run.

        Raises:
            ValueError: a prompt leaves no room for an answer.
        """
        rows = enumerate(episodes, first)
        trajectories = [self.start(episode, row // self.config.group) for row, episode in rows]
        active = list(range(len(trajectories)))
        turn = 0
        with self._completer.sampling():
            while active:
                self._answer(trajectories, active, first, turn)
                active = [row for row in active if self._follow(trajectories[row])]
                turn += 1
        return trajectories

    def fits(self, prompt: Sequence[Message]) -> bool:
        """Whether a prompt leaves room for an answer."""
        return len(self.tokenizer.chat.prompt(list(prompt))) < self.context

    def start(self, episode: Episode, group: int) -> Trajectory:
        """A dialogue that the model has not answered yet.

        Raises:
            ValueError: its prompt leaves no room for an answer.
        """
        prompt = self.tokenizer.chat.prompt(list(episode.prompt))
        room = self.context - len(prompt)
        if room < 1:
            raise ValueError(
                f"tasks: the question {str(episode.prompt[-1]['content'])[:40]!r} has "
                f"{len(prompt)} tokens, which leaves no room for an answer in a context of "
                f"{self.context}"
            )
        trajectory = Trajectory(episode, group=group)
        trajectory.read(episode.prompt, prompt)
        return trajectory

    def _answer(
        self, trajectories: Sequence[Trajectory], active: Sequence[int], first: int, turn: int
    ) -> None:
        """One reply in each active dialogue."""
        requests = [self._request(trajectories[row].tokens, first + row, turn) for row in active]
        for row, completion in zip(active, self._completer.complete(requests), strict=True):
            trajectories[row].say(completion, self.tokenizer.decode(completion.tokens))

    def _probes(self, episodes: Sequence[Episode]) -> list[Probe]:
        found = []
        for row, episode in enumerate(episodes):
            start = self.start(episode, 0)
            request = self._request(start.tokens, row, 0)
            limit = min(request.max_tokens, PROBED)
            found.append(Probe(start, replace(request, max_tokens=limit)))
        return found

    def _request(self, tokens: Sequence[int], row: int, turn: int) -> Request:
        purpose = ("sample", row, turn) if turn else ("sample", row)
        sampling = Sampling(
            temperature=self.config.temperature, seed=keyed_integer(self.seed, *purpose)
        )
        room = self.context - len(tokens)
        limit = min(self.config.max_tokens, room)
        return Request(tuple(tokens), limit, sampling, self.tokenizer.stop_ids)

    def _follow(self, trajectory: Trajectory) -> bool:
        """Hand the reply to the environment; whether the model is asked once more."""
        reply = len(trajectory.messages) - 1
        messages = trajectory.episode.step(trajectory.messages[reply]["content"]).messages
        if not messages:
            return False
        more = self.tokenizer.chat.continuation([*trajectory.messages, *messages], reply)
        stops = self.tokenizer.stop_ids
        if more[0] in stops and trajectory.tokens[-1] in stops:  # the model ended its turn itself
            more = more[1:]
        if len(trajectory.tokens) + len(more) >= self.context:
            trajectory.finish = "length"  # no room for a further reply
            return False
        trajectory.read(messages, more)
        return True
