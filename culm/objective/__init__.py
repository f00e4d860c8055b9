"""What is learned: one file an objective; this union is the registry."""

from culm.config import one_of
from culm.objective.distill import GKD, Distill
from culm.objective.grpo import GRPO
from culm.objective.kto import KTO
from culm.objective.masked_diffusion import MaskedDiffusion
from culm.objective.next_token import NextToken
from culm.objective.ppo import PPO
from culm.objective.preference import Preference
from culm.objective.reward import Reward

Objective = one_of(
    NextToken | MaskedDiffusion | Preference | KTO | Reward | GRPO | PPO | Distill | GKD
)
