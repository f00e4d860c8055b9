"""How the next concept is predicted; this union is the registry."""

from culm.concept.one_tower import OneTower
from culm.concept.quantized import Quantized
from culm.concept.squared_error import Base
from culm.concept.two_tower import TwoTower
from culm.config import one_of

Network = one_of(Base | OneTower | TwoTower | Quantized)
