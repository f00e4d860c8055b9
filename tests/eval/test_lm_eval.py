"""lm-eval's tasks on our engine: the numbers of its own model on the exported weights."""

import json
from pathlib import Path

import pytest
from processes import answers, free_port, python
from suites import TEXT, local, questions, write

from culm.config import SettingError
from culm.convert import native
from culm.convert.export import write_export

pytestmark = pytest.mark.slow  # lm-eval takes seconds to import, and is an extra
lm_eval = pytest.importorskip("lm_eval")

TASKS = {
    "foxes": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
""",
    "texts": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "written": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["o", "\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "shown": """
output_type: multiple_choice
num_fewshot: 3
fewshot_split: test
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {"texts": write(tmp_path, "t.jsonl", [{"text": TEXT[n : n + 240]} for n in range(4)])}
    other = write(tmp_path, "q.jsonl", questions(25))
    for name, settings in TASKS.items():
        data = json.dumps({"data_files": {"test": str(files.get(name, other))}})
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {data}\ntest_split: test"
        (tmp_path / f"{name}.yaml").write_text(head + settings)
    return tmp_path


def test_results_are_those_of_its_own_model(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from culm.eval.lm_eval import CulmLM, run_lm_eval

    ours = local(context=128)
    write_export(ours.model, ours.tokenizer, folder / "hf", "float32")
    theirs = HFLM(pretrained=str(folder / "hf"), device="cpu", batch_size=4, dtype="float32")
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = [
        lm_eval.simple_evaluate(
            model, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0
        )
        for model in (CulmLM(ours), theirs)
    ]
    for task in TASKS:
        mine, reference = (
            {k: v for k, v in one["results"][task].items() if isinstance(v, float)} for one in found
        )
        assert mine == pytest.approx(reference, abs=1e-3, rel=1e-3)
        assert mine
    mine, reference = ([s["resps"] for s in one["samples"]["written"]] for one in found)
    assert mine == reference
    assert any(text for ((text,),) in mine)
    assert run_lm_eval(ours, ["foxes"], str(folder))["foxes"]["acc,none"] == pytest.approx(
        found[1]["results"]["foxes"]["acc,none"]
    )
    with pytest.raises(SettingError, match=r"no task 'fox'; --include-path"):
        run_lm_eval(ours, ["fox"], str(folder))


def test_results_over_http_are_those_of_the_engine_in_this_process(folder: Path) -> None:
    """lm-eval's own client of completions against `culm serve`."""
    pytest.importorskip("tenacity")
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    from culm.eval.lm_eval import CulmLM

    ours, port = local(context=128), free_port()
    write_export(ours.model, ours.tokenizer, folder / "hf", "float32")  # for the client's tokens
    native.save(ours.model, ours.tokenizer, folder / "tiny")
    serve = ["-m", "culm", "serve", str(folder / "tiny"), "--port", str(port)]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    url = f"http://127.0.0.1:{port}"

    def results(model: object) -> dict:
        found = lm_eval.simple_evaluate(
            model, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0
        )
        assert found is not None
        return found

    with python([*serve, "--dtype", "float32"], lambda: answers(f"{url}/health/ready")):
        client = LocalCompletionsAPI(
            base_url=f"{url}/v1/completions", model="tiny", tokenizer=str(folder / "hf"),
            tokenizer_backend="huggingface", max_length=128, batch_size=4, num_concurrent=2,
        )  # fmt: skip
        remote = results(client)
    mine = results(CulmLM(ours))
    for task in TASKS:
        here, there = (
            {k: v for k, v in one["results"][task].items() if isinstance(v, float)}
            for one in (mine, remote)
        )
        assert there == pytest.approx(here, abs=1e-4, rel=1e-4)
        assert here
    here, there = ([s["resps"] for s in one["samples"]["written"]] for one in (mine, remote))
    assert there == here
    assert any(text for ((text,),) in here)
