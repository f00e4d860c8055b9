"""What `culm plan` shows."""

import json

from tiny_run import TINY


def test_plan_shows_everything_and_writes_nothing(culm, text, tmp_path):
    settings = [*TINY, f"data.path={text}", "data.split=paragraphs", f"folder={tmp_path}/run"]
    code, out, _ = culm("plan", "pretrain", *settings)
    assert code == 0
    assert not (tmp_path / "run").exists()
    assert origin(out, "train.batch_size") == "command line"
    assert origin(out, "train.schedule.kind") == "pretrain"
    assert origin(out, "train.clip") == "default"
    for shown in ("«", "parameters", "compute", "gradients", "epochs", "No problem found"):
        assert shown in out


def origin(out: str, name: str) -> str:
    """The last column of a setting's line."""
    line = next(line for line in out.splitlines() if line.startswith(f"  {name} "))
    return line.rsplit("  ", 1)[1].strip()


def test_plan_marks_what_is_learned_of_a_dialogue(culm, model, tmp_path):
    dialogues = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    dialogues.write_text("\n".join(json.dumps({"messages": turns, "n": n}) for n in range(3)))
    line = ("sft", f"start={model}", "device=cpu")
    data = f"data={{format: chat, path: {dialogues}, held_out: 0}}"
    code, out, _ = culm("plan", *line, data, "train.batch_size=2")
    assert code == 0
    assert "<|user|>Hi<|end|><|assistant|>«Yes<|end|>»" in out


def test_plan_of_reinforcement_shows_questions(culm, model):
    code, out, _ = culm("plan", "grpo", f"start={model}", "train.batch_size=8", "device=cpu")
    assert code == 0
    assert "groups of 8" in out
    assert "at least" in out


def test_an_attention_that_cannot_run_is_listed_once_and_the_needs_all_the_same(culm, text):
    settings = [*TINY, f"data.path={text}", "data.held_out=0", "train.precision=bf16"]
    code, out, err = culm("plan", "pretrain", *settings, "train.attention_backend=flex")
    assert code == 1
    assert err.count("train.attention_backend: flex does not train in bfloat16 on cpu") == 1
    assert "activations" in out


def test_plan_names_every_fatal_problem(culm, text, tmp_path):
    few = [setting for setting in TINY if not setting.startswith(("train.", "device"))]
    settings = [
        *few,
        f"data.path={tmp_path}/none.txt",
        "train.batch_size=400000000",
        "device=abacus",
    ]
    code, out, err = culm("plan", "pretrain", *settings)
    assert code == 1
    assert "data.path: there is no file or folder" in err
    assert "device: 'abacus'" in err
    assert "train.batch_size" in out
    code, _, err = culm("plan", "pretrain", *few, f"data.path={text}", "data.held_out=0",
                        "train.batch_size=400000000")  # fmt: skip
    assert code == 1
    assert "train.micro_batch_size: 400000000 sequences need" in err
    taken = tmp_path / "taken"
    taken.touch()
    code, _, err = culm("plan", "pretrain", *TINY, f"data.path={text}", "data.held_out=0",
                        f"folder={taken}", "train.optimizer.rate=1")  # fmt: skip
    assert code == 1
    assert f"folder: {taken} is a file" in err
