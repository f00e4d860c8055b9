"""Commands that measure models and compare runs. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.cli import arguments as given

app = typer.Typer()
PANEL = "Measure and compare"

Evaluated = Annotated[
    str,
    typer.Argument(
        help="A run or model folder, a .gguf file, a Hugging Face id, or the URL of an API, such "
        "as http://localhost:8000/v1 (#NAME chooses one of its models)."
    ),
]
EvalDtype = Annotated[
    str | None,
    typer.Option(
        help="float32, bfloat16, or auto: the fastest on this machine. Default: float32 on a CPU."
    ),
]
Suite = Annotated[
    str,
    typer.Option(help="quick, core, code, math, chat, tools, tasks, or a file as in configs/eval."),
]
Questions = Annotated[
    int | None,
    typer.Option(help="Distinct test questions per task; 0: all. Default: as in the suite.", min=0),
]
SuiteData = Annotated[
    str | None,
    typer.Option(
        help="A folder with files named as the tasks, such as arc_easy.jsonl; otherwise they come "
        "from the Hugging Face hub."
    ),
]
ContaminationText = Annotated[
    str | None,
    typer.Option(
        help="A training text: score the questions that share 13 words in a row with it separately."
    ),
]
LmEval = Annotated[
    str | None,
    typer.Option(help="Run tasks of lm-eval instead, such as arc_easy,hellaswag."),
]
IncludePath = Annotated[
    str | None, typer.Option(help="A folder of further tasks of lm-eval, as YAML files.")
]
EvalText = Annotated[
    str | None,
    typer.Option(help="Measure bits per byte of this text instead: a file, folder or dataset."),
]
Against = Annotated[str | None, typer.Option(help="Another model, compared on the same questions.")]
JudgeURL = Annotated[
    str | None,
    typer.Option("--judge", help="URL#MODEL of the API that judges replies (suite chat)."),
]
EvaluationOut = Annotated[
    str | None,
    typer.Option(help="A JSONL file of all answers, which a second call completes."),
]
PlottedRuns = Annotated[
    list[str], typer.Argument(help="Run folders, or folders of runs.", metavar="RUN...")
]
PlottedMetrics = Annotated[
    list[str] | None,
    typer.Option(
        help="A name in metrics.jsonl or eval.jsonl; repeat it for more panels. Default: reward, "
        "or loss.",
        show_default=False,
    ),
]
PlotFile = Annotated[str, typer.Option(help="The picture to write: .png, .svg or .pdf.")]
PlotAxis = Annotated[str, typer.Option(help="step, tokens or flops (of training).")]
ComparedMetric = Annotated[
    str, typer.Option(help="A name in metrics.jsonl or eval.jsonl; hyphens stand for underscores.")
]
ComparedAxis = Annotated[
    str | None,
    typer.Option(
        help="step, tokens or flops (of training). Default: flops, or step where a run has none.",
        show_default=False,
    ),
]
ComparedPanels = Annotated[
    str | None,
    typer.Option(
        help="A setting, such as data.path: runs with another value of it have their own panel. "
        "folder: the folder in which they lie.",
        show_default=False,
    ),
]
BoardFolders = Annotated[
    list[str] | None,
    typer.Argument(
        help="Run folders, or folders with runs in them. Default: runs.", metavar="[RUNS]...",
        show_default=False,
    ),
]  # fmt: skip
BoardHost = Annotated[str, typer.Option("--host", help="Address to listen on.")]
BoardPort = Annotated[
    int, typer.Option("--port", help="Port to listen on; 0: any free one.", min=0, max=65535)
]


@app.command("eval", rich_help_panel=PANEL)
def evaluate(
    model: Evaluated,
    suite: Suite = "tasks",
    questions: Questions = None,
    data: SuiteData = None,
    text: EvalText = None,
    against: Against = None,
    out: EvaluationOut = None,
    contamination: ContaminationText = None,
    lm_eval: LmEval = None,
    include_path: IncludePath = None,
    judge: JudgeURL = None,
    as_json: given.AsJson = False,
    device: given.Device = "auto",
    dtype: EvalDtype = None,
) -> None:
    """Measure how well a model answers the questions of a suite, or predicts a text."""
    from culm.files import is_points
    from culm.verbs.evaluate import Options, show_evaluation

    options = Options(
        suite, questions, data, text, out, against, contamination, lm_eval, include_path,
        judge, as_json, device, dtype,
    )  # fmt: skip
    if is_points(model):
        from culm.verbs.evaluate_options import refuse_for_points
        from culm.verbs.graph import show_reconstruction

        refuse_for_points(vars(options), vars(Options()))
        show_reconstruction(model, as_json)
        return
    show_evaluation(model, options)


@app.command(rich_help_panel=PANEL)
def plot(
    runs: PlottedRuns,
    metric: PlottedMetrics = None,
    out: PlotFile = "runs/plot.png",
    over: PlotAxis = "step",
    overwrite: given.Overwrite = False,
) -> None:
    """Plot metrics of runs to compare them; runs with different seeds make a band."""
    from culm.verbs.plot import show_plot

    show_plot(runs, metric or [], out, over, overwrite)


@app.command(rich_help_panel=PANEL)
def compare(
    runs: PlottedRuns,
    metric: ComparedMetric = "bits_per_byte",
    out: PlotFile = "runs/compare.png",
    over: ComparedAxis = None,
    panels: ComparedPanels = None,
    overwrite: given.Overwrite = False,
) -> None:
    """Compare where runs end, with 95 % intervals over seeds; the lowest value comes first."""
    from culm.verbs.compare import show_compare

    show_compare(runs, metric, out, over, panels, overwrite)


@app.command(rich_help_panel=PANEL)
def board(
    runs: BoardFolders = None,
    host: BoardHost = "127.0.0.1",
    port: BoardPort = 6006,
    api_key: given.ApiKey = None,
) -> None:
    """Show live and finished runs in the browser: curves, samples, comparisons."""
    from culm.verbs.board import show_board

    show_board(runs or ["runs"], host, port, api_key)
