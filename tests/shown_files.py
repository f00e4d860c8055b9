"""The files and models that the commands of the pages read, small and made here."""

import json
import random
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from culm.convert import native
from culm.model.attention.gqa import GQA
from culm.model.transformer import TransformerConfig
from culm.tokenizer.bytes import Bytes

WORDS = (
    "the quick brown fox jumps over a lazy dog and then sleeps all day long in warm grass while "
    "small birds sing of summer, rivers, mountains and old towns near the sea"
).split()
STAGES = ("pretrain", "sft", "rl", "chat")
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}


def write_all(folder: Path) -> None:
    """Everything that exists before the first command of a page."""
    chance = random.Random(0)
    for name in ("books/en/one", "books/de/two", "web/page", "documents/manual",
                 "long-texts/saga", "code/main", "novels/novel", "handbook/returns"):  # fmt: skip
        for part in ("first", "second"):  # a single document could not be held out
            text = "\n\n".join(_paragraph(chance) for _ in range(60))
            _write(folder / f"{name}-{part}.txt", text)
    for name in ("book", "novel"):
        _write(folder / f"{name}.txt", "\n\n".join(_paragraph(chance) for _ in range(60)))
    for name in ("sentences", "letter", "tokens"):
        _write(folder / f"{name}.txt", "\n".join(_sentence(chance) for _ in range(60)))
    _write(folder / "runs/books.yaml", "base: pretrain\nfolder: runs/books-file\n"
           "model: {base: nano, width: 128, layers: 2}\ndata: {path: books/}\n")  # fmt: skip
    _write(folder / "question.txt", "What is 17 + 25?\n")  # for commands that read one
    _write(folder / "capitals.yaml", "measures: {scores: {tasks: [{kind: prompts, name: capitals, "
           "path: capitals.jsonl, split: test, grade: normalized}]}}\n")  # fmt: skip
    _write(folder / "my.py", "def brevity(completion, answer):\n    return 1.0\n")
    _write_records(folder, chance)
    _write_models(folder)


def _write_records(folder: Path, chance: random.Random) -> None:
    asked = [f"{_sentence(chance)} {number}?" for number in range(40)]
    answers = [[_sentence(chance) for _ in range(3)] for _ in asked]
    pairs = list(zip(asked, answers, strict=True))
    lines = {
        "dialogues": (_dialogue(q, a[0]) for q, a in pairs),
        "preferences": ({"prompt": q, "chosen": a[0], "rejected": a[1]} for q, a in pairs),
        "rated": ({"prompt": q, "better": a[0], "worse": a[1], "best": {"text": a[0]},
                   "worst": {"text": a[1]}} for q, a in pairs),
        "labels": ({"prompt": q, "completion": a[n % 2], "label": n % 2 == 0}
                   for n, (q, a) in enumerate(pairs)),
        "rankings": ({"prompt": q, "completions": a, "ranks": [1, 2, 3]} for q, a in pairs),
        "questions": ({"prompt": q} for q in asked[:3]),
        "articles": ({"content": " ".join(a)} for a in answers),
        "textbooks/book": ({"text": " ".join(sorted(a))} for a in answers),
        "web": ({"text": " ".join(a)} for a in answers),
        "sample": ({"text": " ".join(a)} for a in answers),
        "books/corpus": ({"text": _paragraph(chance)} for _ in answers),
        "capitals": ({"prompt": f"The capital of {country}?", "answer": city}
                     for country, city in CAPITALS.items()),
    }  # fmt: skip
    for name, records in lines.items():
        _write(folder / f"{name}.jsonl", _jsonl(records))
    table = "".join(f'"{q}","{a[0]}"\n' for q, a in pairs)
    _write(folder / "faq.csv", f"ask,reply\n{table}")
    _write(folder / "articles.csv", f"title,content\n{table}")
    _write(folder / "instruction-data.json", json.dumps(
        [{"instruction": q, "input": "", "output": a[0]} for q, a in pairs]
    ))  # fmt: skip
    _write(folder / "edges.tsv", "".join(
        f"{child}\t{parent}\n" for child, parent in
        (("dog.n.01", "animal.n.01"), ("cat.n.01", "animal.n.01"), ("animal.n.01", "thing.n.01"),
         ("tree.n.01", "plant.n.01"), ("plant.n.01", "thing.n.01"))
    ))  # fmt: skip
    with sqlite3.connect(folder / "shop.sqlite") as shop:
        shop.execute("CREATE TABLE orders (customer TEXT, spent REAL)")
        shop.execute("INSERT INTO orders VALUES ('Ada', 12.5), ('Grace', 99)")


def _write_models(folder: Path) -> None:
    """A model of bytes at each stage of the quickstart, and one more."""
    words = Bytes(specials=True).build()
    config = TransformerConfig(
        vocabulary=words.vocabulary, width=32, layers=1, context=256, attention=(GQA(heads=2),)
    )
    for place in (*(f"quickstart/{stage}" for stage in STAGES), "base"):
        (folder / "runs" / place).mkdir(parents=True)
        native.save(config.build(seed=0), words, folder / "runs" / place)


def _dialogue(question: str, answer: str) -> dict:
    return {"messages": [
        {"role": "user", "content": question}, {"role": "assistant", "content": answer},
    ]}  # fmt: skip


def _sentence(chance: random.Random) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(5, 12))).capitalize() + "."


def _paragraph(chance: random.Random) -> str:
    return " ".join(_sentence(chance) for _ in range(12))


def _jsonl(records: Iterable[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
