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

Judged = PairFormat | RankingFormat | LabelFormat | StepsFormat  # answers, and how good they are
Format = one_of(DocumentFormat | SentencesFormat | ChatFormat | PromptFormat | Judged)
