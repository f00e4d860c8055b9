"""Tasks: one file a kind; this union is the registry."""

from culm.config import one_of
from culm.task.arithmetic import Arithmetic
from culm.task.expression import Expression
from culm.task.identity import Identity
from culm.task.letters import Letters
from culm.task.prompts import Prompts

AnyTask = one_of(Arithmetic | Letters | Expression | Identity | Prompts)
