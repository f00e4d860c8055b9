"""What is learned: one file an objective; this union is the registry."""

from culm.config import one_of
from culm.objective.coconut import Coconut
from culm.objective.concept_autoencoder import ConceptAutoencoder
from culm.objective.distill import GKD, Distill
from culm.objective.grpo import GRPO
from culm.objective.kto import KTO
from culm.objective.lcm import BaseLCM, OneTowerLCM, QuantizedLCM, TwoTowerLCM
from culm.objective.masked_diffusion import MaskedDiffusion
from culm.objective.next_token import NextToken
from culm.objective.ppo import PPO
from culm.objective.preference import Preference
from culm.objective.reward import Reward

Text = NextToken | MaskedDiffusion | Distill | GKD
Alignment = Preference | KTO | Reward | GRPO | PPO
Concepts = ConceptAutoencoder | BaseLCM | OneTowerLCM | TwoTowerLCM | QuantizedLCM | Coconut
Objective = one_of(Text | Alignment | Concepts)
