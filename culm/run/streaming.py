"""The stream of a run, where `data.stream` asks for one."""

from __future__ import annotations

from culm.config import SettingError
from culm.data.origin import revisions_of
from culm.data.source_file import sampled_digest
from culm.data.stream.batches import StreamBatches
from culm.data.stream.process import Reading
from culm.parallel.ranks import Ranks
from culm.run.settings import RunConfig
from culm.source.source import local_files
from culm.tokenizer.tokenizer import Tokenizer


def stream_batches(
    config: RunConfig, tokenizer: Tokenizer, context: int, ranks: Ranks
) -> StreamBatches:
    """Rows of the text of `data.path`, tokenised as the run goes.

    Raises:
        SettingError: there is no such text, or the rows of a step do not divide over the ranks.
    """
    data, train = config.data, config.train
    assert data.stream is not None
    if train.batch_ramp is not None:
        raise SettingError(
            "train.batch_ramp: the steps of a stream have as many rows as it has lanes; leave out "
            "data.stream, so that the text is prepared, or the ramp"
        )
    train.batch_sizes.check(ranks.count)
    data.format.check(tokenizer)
    source, share = data.open(config.seed), train.batch_size // ranks.count
    lanes = range(ranks.rank * share, (ranks.rank + 1) * share)
    reading = Reading(source, data.format, data.invalid, config.seed, data.stream.shuffle, lanes)
    files = [(str(file), sampled_digest(file)) for file in local_files(source)]
    facts = (data.path, data.fields, files, sorted(revisions_of(source).items()))
    return StreamBatches(
        reading, tokenizer, data.stream, context, train.batch_size, train.at_once, facts, ranks
    )
