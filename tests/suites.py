"""A small model, and a folder with files of a suite, for tests of evaluation."""

import json
from pathlib import Path

import torch

from culm.eval.local import LocalModel
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.tokenizer.train import BPE

TEXT = "Which of the foxes is warm? The answer is: a fox by the green river, or no stone. " * 4


def local(seed: int = 2, context: int = 96) -> LocalModel:
    """Its choices are clear, and others for another seed."""
    torch.set_num_threads(1)
    tokenizer = BPE(vocabulary=320).build([TEXT])
    config = TransformerConfig(
        vocabulary=tokenizer.vocabulary, width=32, layers=2, context=context,
        attention=GQA(heads=2), tied=False,
    )  # fmt: skip
    model = config.build(seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(5)
    return LocalModel(model, tokenizer)


def write(folder: Path, name: str, records: list[dict]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def questions(count: int) -> list[dict]:
    words = "fox river stone green warm answer which by".split()
    return [
        {"question": f"Which of {n} {words[n % 8]}?", "answer": n % 3,
         "choices": [words[n % 8], words[(n + 3) % 8] + " river", words[(n + 5) % 8]]}
        for n in range(count)
    ]  # fmt: skip
