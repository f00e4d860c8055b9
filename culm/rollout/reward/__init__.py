"""What an answer earns: one file a kind; this union is the registry."""

from culm.config import some_of
from culm.rollout.reward.ensemble import Ensemble
from culm.rollout.reward.eos import MissingEOS
from culm.rollout.reward.format import FormatBonus
from culm.rollout.reward.function import FunctionScore
from culm.rollout.reward.judge import Judge
from culm.rollout.reward.length import LengthPenalty
from culm.rollout.reward.model import ModelScore
from culm.rollout.reward.potential import Potential
from culm.rollout.reward.score import TaskScore

Rewards = some_of(
    TaskScore | ModelScore | Ensemble | FunctionScore | Judge
    | FormatBonus | Potential | LengthPenalty | MissingEOS
)  # fmt: skip
