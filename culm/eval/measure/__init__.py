"""What is measured of a model: one file a measure; this union is the registry."""

from culm.config import one_of
from culm.eval.measure.chat import Chat
from culm.eval.measure.concepts import Concepts
from culm.eval.measure.held_out import HeldOut
from culm.eval.measure.pairs import Pairs
from culm.eval.measure.samples import Samples
from culm.eval.measure.scores import Scores
from culm.eval.measure.text import Text
from culm.eval.measure.thoughts import Thoughts

Measure = one_of(HeldOut | Scores | Text | Pairs | Samples | Chat | Concepts | Thoughts)
