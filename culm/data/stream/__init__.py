"""Text that is tokenised while a run trains, for sources that are too large to prepare.

    reader --> documents, shuffled in windows, each to the lane with the least text so far
           --> workers: token ids --> main process: rows of each lane --> batches

Row p of a step comes from lane p, so a rank tokenises the lanes of its own rows and no others, and
a step has the same rows on any number of ranks, of workers, and with any micro-batches.
"""
