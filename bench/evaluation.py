"""Multiple choice: Culm's engine and lm-eval's own model, on the same weights and questions.

python bench/evaluation.py --size 125m --questions 1000 [--data arc_easy.jsonl]

Needs `pip install 'culm[lm-eval]'`. Weights are random; times include reading the questions, and
not loading the models. Prints both times and their ratio for each round.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from culm.compose import compose
from culm.config import parse
from culm.convert.export import write_export
from culm.eval.lm_eval import CulmLM
from culm.eval.local import LocalModel
from culm.model.transformer import TransformerConfig
from culm.tokenizer.train import BPE

TASK = """\
task: bench
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def invented(count: int) -> list[dict]:
    """Questions as long as those of ARC: 15 to 40 words, four answers of 1 to 8."""
    chance = random.Random(0)
    words = Path(__file__).read_text().split()

    def text(low: int, high: int) -> str:
        return " ".join(chance.choices(words, k=chance.randint(low, high)))

    return [
        {"question": f"{text(15, 40)}?", "choices": [text(1, 8) for _ in range(4)], "answer": n % 4}
        for n in range(count)
    ]


def main() -> None:
    """Interleaved rounds, so that a busy machine slows both."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--size", default="125m", help="of configs/model")
    arguments.add_argument("--questions", type=int, default=1000)
    arguments.add_argument("--data", help="a JSONL file with question, choices and answer")
    arguments.add_argument("--batch-size", type=int, default=8, help="of lm-eval's model")
    arguments.add_argument("--rounds", type=int, default=1)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.data:
            lines = Path(given.data).read_text().split("\n")[: given.questions]
        else:
            lines = [json.dumps(one) for one in invented(given.questions)]
        (folder / "q.jsonl").write_text("\n".join(lines) + "\n")
        (folder / "bench.yaml").write_text(TASK.format(path=folder / "q.jsonl"))
        tokenizer = BPE(vocabulary=8192).build(lines)
        sizes = {**compose(given.size, "model").values, "vocabulary": 50304}
        model = parse(TransformerConfig, sizes, "model").build(0).eval()
        write_export(model, tokenizer, folder / "hf", "float32")
        ours = CulmLM(LocalModel(model, tokenizer))
        theirs = HFLM(
            pretrained=str(folder / "hf"), device="cpu", dtype="float32",
            batch_size=given.batch_size,
        )  # fmt: skip
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        for _ in range(given.rounds):
            seconds, results = [], []
            for one in (ours, theirs):
                start = time.perf_counter()
                found = simple_evaluate(one, tasks=["bench"], task_manager=manager)
                seconds.append(time.perf_counter() - start)
                results.append(
                    [found["results"]["bench"][f"{m},none"] for m in ("acc", "acc_norm")]
                )
            ratio = seconds[1] / seconds[0]
            print(json.dumps({"culm": seconds[0], "lm_eval": seconds[1], "ratio": ratio,
                              "results": results, "threads": torch.get_num_threads()}))  # fmt: skip


if __name__ == "__main__":
    main()
