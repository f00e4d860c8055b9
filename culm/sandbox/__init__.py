"""Runs untrusted Python programs: `run` and `run_all` of `culm.sandbox.sandbox`."""
