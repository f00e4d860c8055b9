"""Text in, text out, over the engine."""
