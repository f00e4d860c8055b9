"""What a record means: one file per format; this union is the registry."""

from culm.config import one_of
from culm.data.format.chat import ChatFormat
from culm.data.format.document import DocumentFormat
from culm.data.format.label import LabelFormat
from culm.data.format.pair import PairFormat
from culm.data.format.prompt import PromptFormat
from culm.data.format.ranking import RankingFormat
from culm.data.format.sentences import SentencesFormat
from culm.data.format.steps import StepsFormat
from culm.data.format.thoughts import ThoughtsFormat

Judged = PairFormat | RankingFormat | LabelFormat | StepsFormat  # answers, and how good they are
Texts = DocumentFormat | SentencesFormat | ChatFormat | PromptFormat | ThoughtsFormat
Format = one_of(Texts | Judged)
