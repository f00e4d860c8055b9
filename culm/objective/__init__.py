"""What is learned: one file an objective; this union is the registry.

Beside its settings an objective's config tells what it learns from. `on_policy`: answers to the
questions of tasks, which the model gives itself. `pairs`: rows in pairs, such as a chosen and a
rejected answer.
"""

from culm.config import one_of
from culm.objective.grpo import GRPO
from culm.objective.next_token import NextToken
from culm.objective.preference import Preference

Objective = one_of(NextToken | Preference | GRPO)
