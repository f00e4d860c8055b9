"""Cleaning text before it is tokenised: one file for each stage; this union is the registry."""

from culm.config import one_of
from culm.data.clean.c4 import C4
from culm.data.clean.classifier import Classifier
from culm.data.clean.decontaminate import Decontaminate
from culm.data.clean.fineweb import FineWeb
from culm.data.clean.gopher import Gopher
from culm.data.clean.language import Language
from culm.data.clean.near_duplicates import NearDuplicates
from culm.data.clean.pii import Pii
from culm.data.clean.repetition import Repetition
from culm.data.clean.unicode import Unicode

Rules = Gopher | Repetition | C4 | FineWeb
AnyStage = one_of(Unicode | Language | Rules | Classifier | Pii | NearDuplicates | Decontaminate)
