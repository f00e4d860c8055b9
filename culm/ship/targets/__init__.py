"""Where `culm export --for` sends a model: this union is the registry.

Each target is one file: its settings, what it refuses, and the files that it writes.
"""

from typing import Any

from culm.config import one_of
from culm.ship.targets.aws_lambda import Lambda
from culm.ship.targets.cloudflare import Cloudflare
from culm.ship.targets.inferentia import Inferentia
from culm.ship.targets.ollama import Ollama
from culm.ship.targets.vllm import VLLM

Target: Any = one_of(Ollama | VLLM | Cloudflare | Inferentia | Lambda)
