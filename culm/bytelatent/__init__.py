"""Models of bytes: every kind of model that a run file can name is in this union.

Each is a `Transformer`, so whatever trains, evaluates and generates with one takes all of them.
"""

from typing import Any

from culm.bytelatent.blt import BLT
from culm.bytelatent.hnet import HNet
from culm.bytelatent.megabyte import MegaByte
from culm.bytelatent.spacebyte import SpaceByte
from culm.config import one_of
from culm.model.transformer import TransformerConfig

AnyModel: Any = one_of(TransformerConfig | MegaByte | SpaceByte | BLT | HNet)
