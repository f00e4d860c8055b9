"""The exercises of each topic, as data; see `culm.learn.exercise`."""
