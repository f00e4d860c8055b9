"""What is learned: one file an objective; this union is the registry."""

from culm.config import one_of
from culm.objective.grpo import GRPO
from culm.objective.next_token import NextToken
from culm.objective.preference import Preference

Objective = one_of(NextToken | Preference | GRPO)
