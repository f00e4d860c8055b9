"""Suites: data of a folder, answers that are kept, results above chance, other models."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from suites import local, questions, write

from culm.compose import compose
from culm.config import SettingError, parse
from culm.convert import native
from culm.engine.continuations import Likelihood
from culm.eval import questions as asking
from culm.eval.evaluation import Evaluation
from culm.eval.interval import bootstrap, estimate, wilson
from culm.eval.local_data import located
from culm.eval.measure.measure import Subject
from culm.eval.measure.scores import Scores
from culm.eval.pass_at_k import pass_at_k
from culm.eval.questions import Answered, chosen
from culm.eval.responder import Generation
from culm.eval.settings import EvalConfig
from culm.eval.suite import Answers, answer_suite, identity_of
from culm.task.choices import Choices
from culm.task.task import Option, Question
from culm.verbs.evaluate import Options, show_evaluation


def suite(name: str) -> EvalConfig:
    return parse(EvalConfig, compose(name, "eval").values, "eval")


def test_files_are_found_by_the_names_of_tasks(tmp_path) -> None:
    for name in ("ARC-Easy.train.jsonl", "arc_easy.test.jsonl", "hellaswag_val.jsonl.gz",
                 "PIQA.json", "notes.txt", "sciq.jsonl.bak"):  # fmt: skip
        write(tmp_path, name, questions(2))
    found, missing = located(suite("core"), str(tmp_path))
    (scores,) = (one for one in found.measures.values() if isinstance(one, Scores))
    paths = {task.name: Path(task.path).name for task in scores.tasks}
    assert paths == {
        "arc_easy": "arc_easy.test.jsonl", "hellaswag": "hellaswag_val.jsonl.gz",
        "piqa": "PIQA.json",
    }  # fmt: skip
    assert set(missing) == {
        "arc_challenge", "winogrande", "boolq", "openbookqa", "siqa", "sciq", "mmlu",
    }  # fmt: skip
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match=r"has a file for none of arc_easy, .*named as its task"):
        located(suite("core"), str(tmp_path / "empty"))
    with pytest.raises(SettingError, match="no folder"):
        located(suite("core"), str(tmp_path / "nothing"))


def test_two_files_of_one_task_are_refused(tmp_path) -> None:
    write(tmp_path, "arc_easy.jsonl", questions(2))
    write(tmp_path, "ARC-Easy.json", questions(3))
    with pytest.raises(SettingError, match=r"are both files of arc_easy; keep one"):
        located(suite("quick"), str(tmp_path))


def test_names_in_any_script_are_told_apart(tmp_path) -> None:
    write(tmp_path, "问题.jsonl", questions(2))
    write(tmp_path, "答案.jsonl", questions(3))
    tasks = [{"kind": "choices", "name": "答案", "path": "x"}]
    found, _ = located(parse(EvalConfig, {"measures": {"scores": {"tasks": tasks}}}), str(tmp_path))
    assert found.first(Scores).tasks[0].path == str(tmp_path / "答案.jsonl")


@pytest.mark.parametrize("name", ["quick", "core", "math", "tasks", "held_out", "pairs"])
def test_every_suite_can_be_read(name: str) -> None:
    assert suite(name).measures


def measure(path: Path, **settings) -> Scores:
    task = Choices(name="foxes", path=str(path))
    return Scores(tasks=(task,), questions=None, **settings)


def test_what_is_chosen_depends_on_how_options_are_compared() -> None:
    options = tuple(Option("?", text) for text in (" a", " a long one", " ok"))
    question = Question("?", "a", options=options, right=0)
    likelihoods = (Likelihood(-2, 1, False), Likelihood(-5, 4, False), Likelihood(-1.9, 2, True))
    assert chosen(question, likelihoods, "sum") == 2
    assert chosen(question, likelihoods, "tokens") == 2
    assert chosen(question, likelihoods, "bytes") == 1  # -2, -5 / 10 and -1.9 / 2
    assert chosen(question, likelihoods, "greedy") == 2
    assert chosen(question, likelihoods[:2], "greedy") is None


def test_scores_are_those_of_the_logits(tmp_path) -> None:
    """Computed here option by option, and centred on chance, which is a third."""
    responder, path = local(), write(tmp_path, "foxes.jsonl", questions(30))
    results = answer_suite(responder, "m", measure(path), 0).results()
    right = {"sum": 0, "tokens": 0, "bytes": 0}
    for record in questions(30):
        values = []
        context = responder.tokenizer.encode(f"Question: {record['question']}\nAnswer:")
        start = responder.tokenizer.start or [responder.tokenizer.end_of_text]
        for choice in record["choices"]:
            whole = responder.tokenizer.encode(f"Question: {record['question']}\nAnswer: {choice}")
            ids = torch.tensor([[*responder.tokenizer.start, *whole]])
            first = len(responder.tokenizer.start) + len(context)
            with torch.no_grad():
                logprobs = responder.model(ids)[0].log_softmax(-1)
            total = sum(float(logprobs[i - 1, ids[0, i]]) for i in range(first, ids.shape[1]))
            values.append((total, ids.shape[1] - first, len(choice)))
        assert start
        for by, size in (("sum", 0), ("tokens", 1), ("bytes", 2)):
            scaled = [v[0] / (v[size] if size else 1) for v in values]
            right[by] += scaled.index(max(scaled)) == record["answer"]
    assert results["choices"]["foxes"] == {by: n / 30 for by, n in right.items()}
    score = right["bytes"] / 30
    assert results["scores"]["foxes"]["value"] == score
    assert results["core"] == pytest.approx((score - 1 / 3) / (2 / 3))


def test_a_second_call_goes_on_where_one_stopped(tmp_path, monkeypatch) -> None:
    path, output = write(tmp_path, "foxes.jsonl", questions(30)), tmp_path / "answers.jsonl"
    monkeypatch.setattr(asking, "TOGETHER", 8)
    responder, asked = local(), []
    whole = answer_suite(responder, "m", measure(path), 0, output)
    lines = output.read_text().splitlines(keepends=True)
    assert len(lines) == 30
    assert {json.loads(line)["task"] for line in lines} == {"foxes"}
    output.write_text("".join(lines[:11]) + lines[11][:40])  # killed while it wrote
    likelihoods = type(responder).likelihoods
    monkeypatch.setattr(
        type(responder), "likelihoods",
        lambda self, options: asked.append(len(options)) or likelihoods(self, options),
    )  # fmt: skip
    again = answer_suite(responder, "m", measure(path), 0, output)
    assert sum(asked) == 3 * 19
    assert again.results() == whole.results()
    assert len(output.read_text().splitlines()) == 30
    answer_suite(responder, "m", measure(path), 0, output)
    assert sum(asked) == 3 * 19
    with pytest.raises(SettingError, match=r"answers of another model, 'm'"):
        answer_suite(responder, "other", measure(path), 0, output)
    output.write_text("hello\n")
    with pytest.raises(SettingError, match=r"line 1 is no answer"):
        answer_suite(responder, "m", measure(path), 0, output)


def test_an_answer_is_used_again_only_for_the_same_question(tmp_path) -> None:
    """Another form of the prompt, another way to compare, another limit: asked again."""
    path, output = write(tmp_path, "foxes.jsonl", questions(3)), tmp_path / "answers.jsonl"
    written = tmp_path / "p.jsonl"
    written.write_text('{"prompt": "Which fox?", "answer": "warm"}\n')
    prompts = {"kind": "prompts", "path": str(written), "split": "test", "plain": True}
    responder = local()

    def lines(**settings) -> int:
        answer_suite(responder, "m", parse(Scores, settings), 0, output)
        return len(output.read_text().splitlines())

    choices = {"kind": "choices", "name": "foxes", "path": str(path)}
    assert lines(tasks=[choices]) == 3
    assert lines(tasks=[choices]) == 3
    assert lines(tasks=[{**choices, "by": "sum"}]) == 6
    assert lines(tasks=[{**choices, "form": "{question}"}]) == 9
    assert lines(tasks=[prompts], max_tokens=4) == 10
    assert lines(tasks=[prompts], max_tokens=4) == 10
    assert lines(tasks=[prompts], max_tokens=5) == 11
    assert lines(tasks=[prompts], max_tokens=5, samples=2, temperature=1) == 12
    assert lines(tasks=[{**prompts, "grade": "f1"}], max_tokens=4) == 13
    written.write_text('{"prompt": "Which fox?", "answer": "warm", "hint": "sun"}\n')
    assert lines(tasks=[prompts], max_tokens=4) == 14


@pytest.mark.parametrize(
    "change",
    [{"scores": []}, {"scores": [1, 1]}, {"scores": ["1"]}, {"scores": [True]}, {"replies": []},
     {"replies": [None]}, {"likelihoods": []}, {"likelihoods": [[1, 2, 3]]}, {"scores": None},
     {"likelihoods": [["a", 1, True]] * 3}],
)  # fmt: skip
def test_a_damaged_answer_is_refused(tmp_path, change: dict) -> None:
    path, output = write(tmp_path, "foxes.jsonl", questions(3)), tmp_path / "answers.jsonl"
    answer_suite(local(), "m", measure(path), 0, output)
    first, *rest = output.read_text().splitlines()
    output.write_text("\n".join([json.dumps({**json.loads(first), **change}), *rest]) + "\n")
    with pytest.raises(SettingError, match=r"line 1 is no answer"):
        answer_suite(local(), "m", measure(path), 0, output)


@pytest.mark.parametrize(
    ("samples", "right", "k", "share"),
    [(10, 3, 1, 0.3), (10, 3, 2, 0.53333), (10, 3, 5, 0.916667), (10, 0, 5, 0), (10, 10, 1, 1),
     (10, 6, 5, 1), (1, 1, 1, 1)],
)  # fmt: skip
def test_pass_at_k_is_the_unbiased_estimate(samples, right, k, share) -> None:
    assert pass_at_k(samples, right, k) == pytest.approx(share, abs=1e-5)


def test_samples_of_a_question_are_averaged() -> None:
    def answered(*scores: float) -> Answered:
        return Answered("t", Question(str(scores), ""), ("",) * len(scores), scores, 1)

    found = Answers([answered(1, 0, 0, 1), answered(0, 0, 0, 0)]).results()
    assert found["scores"]["t"]["value"] == 0.25
    assert found["pass_at_k"]["t"] == {
        "1": 0.25, "2": pytest.approx((1 - (2 / 4) * (1 / 3)) / 2), "4": 0.5
    }  # fmt: skip


def test_intervals_are_wilsons_for_shares_and_by_bootstrap_otherwise() -> None:
    assert estimate([1, 0, 1, 1]) == wilson(3, 4)
    values = [n / 100 for n in range(101)]
    found = estimate(values)
    assert found == bootstrap(values)
    half = 1.96 * math.sqrt(sum((v - 0.5) ** 2 for v in values) / 101) / math.sqrt(101)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)


def test_replies_stop_and_do_not_depend_on_what_else_is_asked(tmp_path) -> None:
    responder = local()
    how = Generation(12)
    asked = [Question(f"Which fox {n}", "x", plain=True) for n in range(5)]
    ((first, *_),) = [responder.replies(asked, how)]
    alone = responder.replies(asked[:1], how)[0]
    assert [one.text for one in first] == [one.text for one in alone]
    stop = first[0].text[3:5]
    assert stop
    ended = responder.replies([Question("Which fox 0", "x", plain=True, stops=(stop,))], how)
    assert ended[0][0].text == first[0].text[: first[0].text.index(stop)]


def test_a_text_of_any_length_is_predicted_once(tmp_path) -> None:
    """Bits per byte of windows: those of the model on each window by hand."""
    responder = local(context=32)
    tokenizer, model = responder.tokenizer, responder.model
    text = "a fox by the green river, or no stone: " * 6
    ids = [*(tokenizer.start or [tokenizer.end_of_text]), *tokenizer.encode(text)]
    nats, at = 0.0, 1
    while at < len(ids):
        end = min(at + 32, len(ids))
        start = max(end - 33, 0)
        with torch.no_grad():
            logprobs = model(torch.tensor([ids[start : end - 1]]))[0].log_softmax(-1)
        nats -= sum(float(logprobs[i - start - 1, ids[i]]) for i in range(at, end))
        at = end
    path = tmp_path / "a.txt"
    path.write_text(text)
    config = parse(EvalConfig, {"measures": {"text": {"path": str(path)}}})
    found = Evaluation(config, Subject(model, tokenizer)).run()
    assert found["bytes"] == len(text)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-3)


def test_the_verb_compares_two_models(tmp_path, capsys) -> None:
    write(tmp_path, "arc_easy.jsonl", questions(30))
    for seed in (2, 3):
        responder = local(seed)
        native.save(responder.model, responder.tokenizer, tmp_path / str(seed))
    options = Options(
        "core", None, str(tmp_path), against=str(tmp_path / "3"), as_json=True, device="cpu",
        output=str(tmp_path / "answers.jsonl"),
    )  # fmt: skip
    show_evaluation(str(tmp_path / "2"), options)
    found = json.loads(capsys.readouterr().out)
    shares = [
        answer_suite(local(seed), "m", measure(tmp_path / "arc_easy.jsonl"), 1).results()
        for seed in (2, 3)
    ]
    values = [one["scores"]["foxes"]["value"] for one in shares]
    assert found["scores"]["arc_easy"]["value"] == values[0]
    assert found["gains"]["arc_easy"]["value"] == pytest.approx(values[0] - values[1])
    names = {path.name for path in tmp_path.glob("answers*")}
    assert names == {"answers.jsonl", "answers-against.jsonl"}
    show_evaluation(str(tmp_path / "2"), Options("core", 5, str(tmp_path), device="cpu"))
    out = capsys.readouterr().out
    assert re.search(r"arc_easy +\d+\.\d % .* 5 ", out)


def test_a_model_is_known_by_its_weights_and_bits() -> None:
    first = local().model
    assert identity_of(first) == identity_of(local().model)
    assert identity_of(first) != identity_of(local(3).model)
    assert identity_of(first) != identity_of(local().model.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"text": "a.txt", "suite": "core"}, "suite: it is not used with --text"),
        ({"text": "a.txt", "output": "b"}, "out: it is not used with --text"),
        ({"text": "a.txt", "questions": 0}, "questions: it is not used with --text"),
        ({"lm_eval": "x", "against": "b"}, "against: it is not used with --lm-eval"),
        ({"lm_eval": "x", "text": "b"}, "text: it is not used with --lm-eval"),
        ({"lm_eval": "x", "contamination": "b"}, "contamination: it is not used with --lm-eval"),
        ({"include_path": "x"}, "include-path: it is a folder of tasks of lm-eval"),
    ],
)
def test_options_that_would_be_ignored_are_refused(given: dict, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        show_evaluation("model", Options(**given))


def test_what_a_file_has_twice_and_what_is_cut_is_said(tmp_path, capsys, caplog) -> None:
    records = questions(4)
    long = {"question": "fox " * 200, "choices": ["a", "b"], "answer": 0}
    write(tmp_path, "arc_easy.jsonl", [*records, records[0], {**records[1], "answer": 0}, long])
    responder = local()
    native.save(responder.model, responder.tokenizer, tmp_path / "m")
    show_evaluation(str(tmp_path / "m"), Options("core", None, str(tmp_path), device="cpu"))
    said = capsys.readouterr()
    shown = " ".join((said.out + said.err + caplog.text).split())
    assert "2 questions of arc_easy stand in its file again and are asked once" in shown
    assert "2 options are longer than the model's context of 96 tokens" in shown


def test_gains_are_named_as_the_scores_they_belong_to(tmp_path, capsys) -> None:
    path = write(tmp_path, "foxes.jsonl", questions(6))
    responder = local()
    native.save(responder.model, responder.tokenizer, tmp_path / "m")
    task = {"kind": "choices", "name": "foxes", "path": str(path)}
    measures = {
        name: {"kind": "scores", "tasks": [{**task, "by": name}]} for name in ("sum", "bytes")
    }
    (tmp_path / "s.yaml").write_text(json.dumps({"measures": measures}))
    model = str(tmp_path / "m")
    show_evaluation(
        model, Options(str(tmp_path / "s.yaml"), against=model, as_json=True, device="cpu")
    )
    found = json.loads(capsys.readouterr().out)["gains"]
    assert set(found) == {"sum.foxes", "sum.all", "bytes.foxes", "bytes.all"}


def test_a_model_without_usable_logits_is_refused(tmp_path) -> None:
    write(tmp_path, "arc_easy.jsonl", questions(3))
    responder = local()
    config = responder.model.config.model_copy(update={"head": "scalar"})
    native.save(config.build(1), responder.tokenizer, tmp_path / "reward")
    with pytest.raises(SettingError, match="scalar head"):
        show_evaluation(str(tmp_path / "reward"), Options("core", None, str(tmp_path)))
    with torch.no_grad():
        next(responder.model.parameters()).fill_(math.nan)
    for ask in (lambda: responder.likelihoods([Option("a", "b")]), lambda: responder.rolling("a")):
        with pytest.raises(SettingError, match="are no numbers"):
            ask()


def test_a_task_may_not_have_the_name_of_the_mean(tmp_path) -> None:
    task = {"kind": "choices", "name": "all", "path": "x"}
    with pytest.raises(SettingError, match="name 'all'"):
        parse(Scores, {"tasks": [task]})
