"""Feed-forward: one file a kind; this union is the registry."""

from culm.config import one_of
from culm.model.mlp.swiglu import SwiGLU

FeedForward = one_of(SwiGLU)
