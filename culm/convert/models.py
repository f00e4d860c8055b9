"""Every kind of model that a run file may name and a folder may hold: this union is the registry.

Each builds a `Transformer`, so whatever trains, evaluates and saves one takes all of them. A model
without a `kind` is a transformer.
"""

from typing import Annotated, Any

from culm.bytelatent.blt import BLT
from culm.bytelatent.hnet import HNet
from culm.bytelatent.megabyte import MegaByte
from culm.bytelatent.spacebyte import SpaceByte
from culm.concept.model import ConceptsConfig
from culm.config import kind_unless_given, one_of
from culm.model.transformer import TransformerConfig

Model: Any = Annotated[
    one_of(TransformerConfig | MegaByte | SpaceByte | BLT | HNet | ConceptsConfig),
    kind_unless_given("transformer"),
]
