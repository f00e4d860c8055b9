"""Where a run file becomes a trained model: settings, start, assembly, training."""
