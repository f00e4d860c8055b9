"""Settings of a run that takes a second."""

TINY = [
    "model={vocabulary: 262, width: 32, layers: 2, context: 64, attention: {kind: gqa, heads: 2}}",
    "tokenizer={kind: bytes, specials: true}",
    "train.batch_size=4",
    "eval.measures.held_out.tokens=500",
    "device=cpu",
]
