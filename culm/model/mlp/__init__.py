"""Feed-forward: one file per kind; this union is the registry."""

from culm.config import one_of
from culm.model.mlp.gated import GeGLU, SwiGLU
from culm.model.mlp.hyperbolic import HyperbolicSwiGLU
from culm.model.mlp.moe import MoE
from culm.model.mlp.plain import Plain

FeedForward = one_of(SwiGLU | GeGLU | Plain | MoE | HyperbolicSwiGLU)
