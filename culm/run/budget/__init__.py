"""What to train in a given time: micro-runs, a scaling law that is fitted to them, a proposal."""
