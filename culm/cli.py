"""The command line. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.verbs import arguments as given
from culm.verbs.near import Verbs
from culm.verbs.tokenize_commands import tokenize

app = typer.Typer(
    cls=Verbs,
    name="culm",
    help="Plain text to a served, aligned language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


app.add_typer(tokenize)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Plain text to a served, aligned language model."""


@app.command()
def quickstart(
    text: given.StartTexts = None,
    folder: given.StartFolder = "runs/quickstart",
    minutes: given.Minutes = 10.0,
    more: given.MoreTexts = None,
    device: given.Device = "auto",
    seed: given.Seed = 0,
) -> None:
    """Train a chat model from raw text: every stage once, with a report."""
    from culm.quickstart.quickstart import quickstart as go

    go(folder, [*(text or []), *(more or [])], minutes, device, seed)


@app.command()
def train(
    run: given.Run = "",
    settings: given.Settings = None,
    seeds: given.Seeds = None,
    sweep: given.Sweep = None,
) -> None:
    """Train by a run file; the same command resumes an interrupted run."""
    if seeds is not None or sweep:
        from culm.verbs.series import train_series

        train_series(run, settings or [], seeds, sweep or [])
        return
    from culm.verbs.train import train_run

    train_run(run, settings or [])


@app.command()
def launch(
    run: given.Run = "",
    settings: given.Settings = None,
    ranks: given.RanksHere = 1,
    nodes: given.Nodes = 1,
    restarts: given.Restarts = 3,
    scheduler: given.SchedulerName = None,
    image: given.ContainerImage = "culm:latest",
    out: given.JobOut = None,
) -> None:
    """Train on several processes here, or write the file that starts them on a cluster."""
    from culm.verbs.launch import launch_run

    launch_run(run, settings or [], ranks, nodes, restarts, scheduler, image, out)


@app.command()
def plan(
    run: given.Run = "",
    settings: given.Settings = None,
    ranks: given.Ranks = 1,
    device: given.TargetDevice = None,
    budget: given.TimeBudget = None,
) -> None:
    """Show what a run would do, need and learn from; or what to train in a given time."""
    from culm.graph.settings import GraphRun
    from culm.verbs.any_run import read_any_run

    config, origins = read_any_run(run, settings or [])
    if isinstance(config, GraphRun):
        from culm.verbs.graph import show_graph_plan

        show_graph_plan(config, origins)
        return
    if budget is not None:
        from culm.verbs.plan_budget import show_budget

        show_budget(run, config, budget, ranks, device)
        return
    from culm.verbs.plan import show_plan

    show_plan(config, origins, ranks, device)


@app.command()
def prepare(
    path: given.Texts,
    tokenizer: given.TokenizerFolder,
    out: given.CorpusOut,
    format: given.RecordFormat = None,
    split: given.DocumentSplit = "file",
    held_out: given.HeldOut = 0.02,
    seed: given.Seed = 0,
    overwrite: given.Overwrite = False,
    quiet: given.Quiet = False,
) -> None:
    """Write texts as token shards with a manifest; `data.prepared=OUT` trains on them."""
    from culm.verbs.prepare import prepare_corpus

    prepare_corpus(path, tokenizer, out, format, split, held_out, seed, overwrite, quiet)


@app.command()
def classifier(
    positive: given.PositiveTexts,
    negative: given.NegativeTexts,
    out: given.ClassifierOut,
    settings: given.Settings = None,
    seed: given.Seed = 0,
    overwrite: given.Overwrite = False,
) -> None:
    """Train a classifier of good and bad texts, for `data.clean`."""
    from culm.verbs.classifier import train_classifier

    train_classifier(positive, negative, out, settings or (), seed, overwrite)


@app.command()
def generate(
    model: given.Model,
    prompt: given.Prompt = None,
    prompts: given.PromptFile = None,
    out: given.AnswersOut = None,
    samples: given.Samples = 1,
    max_tokens: given.MaxTokens = 64,
    temperature: given.Temperature = None,
    top_k: given.TopK = 0,
    top_p: given.TopP = 1.0,
    min_p: given.MinP = 0.0,
    stop: given.Stop = None,
    seed: given.AnswerSeed = None,
    context: given.ContextLength = None,
    cache: given.CacheBits = "plain",
    speculate: given.Speculate = None,
    draft_model: given.DraftModel = None,
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    overwrite: given.Overwrite = False,
) -> None:
    """Continue a text; or answer all prompts of a file, to fine-tune another model on them."""
    import culm
    from culm.verbs.generate import check_arguments, write_answer_file, write_continuation

    check_arguments(prompt, prompts, out, samples, overwrite)
    loaded = culm.load(
        model, device, dtype, context, cache=cache, speculate=speculate, draft=draft_model
    )
    if prompts is not None and out is not None:
        write_answer_file(
            loaded, model, prompts, out, samples, max_tokens, overwrite, temperature=temperature,
            top_k=top_k, top_p=top_p, min_p=min_p, stop=stop, seed=seed,
        )  # fmt: skip
        return
    write_continuation(
        loaded, prompt or "", max_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        min_p=min_p, stop=stop, seed=seed,
    )  # fmt: skip


@app.command()
def chat(
    model: given.ChatModel,
    system: given.System = None,
    max_tokens: given.MaxAnswerTokens = None,
    temperature: given.Temperature = None,
    top_p: given.TopP = 1.0,
    seed: given.AnswerSeed = None,
    context: given.ContextLength = None,
    cache: given.CacheBits = "plain",
    speculate: given.Speculate = None,
    draft_model: given.DraftModel = None,
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    api_key: given.ServerKey = None,
    json: given.JsonAnswers = False,
) -> None:
    """Talk to a model in the terminal, or answer a question from a pipe."""
    from culm.config import parse
    from culm.serve.terminal.models import ChatSettings
    from culm.verbs.chat import Options
    from culm.verbs.chat import chat as talk

    chosen = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    given_values = {name: value for name, value in chosen.items() if value is not None}
    options = Options(api_key, context, cache, speculate, draft_model, device, dtype)
    talk(model, system, parse(ChatSettings, given_values), json, options)


@app.command()
def serve(
    model: given.Served = "",
    host: given.Host = None,
    port: given.Port = None,
    api_key: given.ApiKey = None,
    slots: given.Slots = None,
    adapter: given.Adapters = None,
    context: given.ContextLength = None,
    cache: given.CacheBits = "plain",
    speculate: given.Speculate = None,
    draft_model: given.DraftModel = None,
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    reload: given.Reload = False,
    prefix_tokens: given.PrefixTokens = None,
    config: given.ServeFile = None,
    grpc: given.GrpcPort = None,
    fixture: given.Script = None,
) -> None:
    """Start an OpenAI-compatible server with a chat page."""
    from culm.serve.settings import read_settings
    from culm.verbs.serve import Options, serve_model

    settings = read_settings(
        config, host=host, port=port, slots=slots, prefix_tokens=prefix_tokens, grpc_port=grpc
    )
    options = Options(adapter or [], context, cache, speculate, device, dtype, reload, draft_model)
    serve_model(model, fixture, settings, api_key, options)


@app.command()
def route(
    urls: given.Replicas,
    host: given.Host = None,
    port: given.Port = None,
    api_key: given.ApiKey = None,
    slots: given.Slots = None,
    prefix_tokens: given.PrefixTokens = None,
    config: given.ServeFile = None,
) -> None:
    """Share requests between several servers of one model, by the beginnings of their prompts."""
    from culm.serve.route.server import route as go
    from culm.serve.settings import read_settings

    settings = read_settings(config, host=host, port=port, slots=slots, prefix_tokens=prefix_tokens)
    go(urls, settings, api_key)


@app.command()
def mcp(
    model: given.Served = "",
    adapter: given.Adapters = None,
    context: given.ContextLength = None,
    cache: given.CacheBits = "plain",
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    fixture: given.Script = None,
    commands: given.CommandsFolder = None,
    approve: given.Approve = None,
) -> None:
    """Offer a model, or Culm's commands, as MCP tools to the program that starts this command."""
    from culm.verbs.mcp import serve_tools, usage_of
    from culm.verbs.serve import Options

    options = Options(adapter or [], context, cache, None, device, dtype)
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    usage = {name: usage_of(command) for name, command in known.items()}
    serve_tools(model, fixture, options, commands, approve or (), usage)


@app.command()
def agent(
    model: given.AgentModel,
    question: given.Question,
    tools: given.ToolNames = "",
    database: given.DatabasePlaces = None,
    folder: given.TextFolder = None,
    web: given.WebEngine = None,
    mcp: given.McpServers = None,
    approve: given.Approve = None,
    steps: given.Steps = 12,
    tokens: given.AgentTokens = 8192,
    seconds: given.AgentSeconds = 120.0,
    trace: given.TracePath = None,
    system: given.System = None,
    form: given.ToolForm = "tools",
    api_key: given.ApiKey = None,
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
) -> None:
    """Answer a question with tools: Python, databases, search, MCP servers."""
    from culm.agent.loop import Budget
    from culm.agent.toolbox import ToolSettings
    from culm.verbs.agent import Options, answer_question

    names = [name.strip() for name in tools.split(",") if name.strip()]
    settings = ToolSettings(names, database or [], folder, web, mcp)
    budget = Budget(steps, tokens, seconds)
    options = Options(
        settings, budget, approve or [], system or "", trace, form, api_key, device, dtype
    )
    answer_question(model, question, options)


@app.command("eval")
def evaluate(
    model: given.Evaluated,
    suite: given.Suite = "tasks",
    questions: given.Questions = None,
    data: given.SuiteData = None,
    text: given.EvalText = None,
    against: given.Against = None,
    out: given.EvaluationOut = None,
    contamination: given.ContaminationText = None,
    lm_eval: given.LmEval = None,
    include_path: given.IncludePath = None,
    judge: given.JudgeURL = None,
    as_json: given.AsJson = False,
    device: given.Device = "auto",
    dtype: given.EvalDtype = None,
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


@app.command()
def quantize(
    model: given.Model,
    out: given.QuantizedOut,
    to: given.QuantizeTo = "int8",
    method: given.QuantizeMethod = "rtn",
    calibrate: given.Calibrate = None,
    device: given.Device = "auto",
    overwrite: given.Overwrite = False,
) -> None:
    """Quantise weights: smaller and faster; reports the loss in quality."""
    from culm.verbs.quantize import show_quantized

    show_quantized(model, out, to, method, calibrate or [], device, overwrite)


@app.command()
def export(
    model: given.Model,
    out: given.ExportOut,
    target: given.ExportTarget = None,
    dtype: given.ExportDtype = "",
    family: given.Family = "",
    overwrite: given.Overwrite = False,
) -> None:
    """Write a Hugging Face folder, a GGUF file, or what Ollama, vLLM or a cloud service takes."""
    from culm.verbs.export import export_model

    typer.echo(export_model(model, out, target, dtype, family, overwrite))


@app.command("import")
def import_(
    file: given.ImportFile,
    out: given.ImportOut,
    tokenizer: given.ImportTokenizer = None,
    overwrite: given.Overwrite = False,
) -> None:
    """Convert a model of another format into a Culm folder."""
    from culm.verbs.import_model import import_model

    typer.echo(import_model(file, out, tokenizer, overwrite))


@app.command()
def inspect(
    model: given.Model,
    attention: given.AttentionText = "",
    logit_lens: given.LensText = "",
    histograms: given.HistogramText = "",
    disc: given.Disc = False,
    near: given.NearNode = None,
    out: given.PlotFolder = None,
    format: given.PlotFormat = "png",
    overwrite: given.Overwrite = False,
) -> None:
    """Show a model's parts with shapes, parameters and cache size, or what it does with a text."""
    from culm.files import is_points

    if disc or near is not None or is_points(model):
        from culm.verbs.graph import refuse_text, show_points

        refuse_text(attention, logit_lens, histograms)
        show_points(model, disc, near, out, format, overwrite)
        return
    if not (attention or logit_lens or histograms):
        from culm.verbs.inspect import show_model

        show_model(model)
        return
    from culm.verbs.inspect_text import show_inspections

    show_inspections(model, attention, logit_lens, histograms, out, format, overwrite)


@app.command()
def lineage(model: given.Model) -> None:
    """Show what a model was made from, down to raw files, and what of it changed since."""
    from culm.verbs.lineage import show_lineage

    show_lineage(model)


@app.command()
def push(
    model: given.Model,
    repo: given.HubRepository,
    tag: given.VersionTag = None,
    license: given.License = None,
    results: given.ResultFiles = None,
    public: given.Public = False,
    dry_run: given.DryRun = False,
) -> None:
    """Upload a model to the Hugging Face hub as a version, with a card; private by default."""
    from culm.verbs.push import push_model

    push_model(model, repo, tag, license, results or [], public, dry_run)


@app.command()
def reproduce(
    model: given.Model, out: given.ScriptFolder, overwrite: given.Overwrite = False
) -> None:
    """Write the commands that make a model again, from its raw files on."""
    from culm.verbs.reproduce import write_reproduction

    write_reproduction(model, out, overwrite)


@app.command()
def plot(
    runs: given.PlottedRuns,
    metric: given.PlottedMetrics = None,
    out: given.PlotFile = "runs/plot.png",
    over: given.PlotAxis = "step",
    overwrite: given.Overwrite = False,
) -> None:
    """Plot metrics of runs to compare them; runs with different seeds make a band."""
    from culm.verbs.plot import show_plot

    show_plot(runs, metric or [], out, over, overwrite)


@app.command()
def compare(
    runs: given.PlottedRuns,
    metric: given.ComparedMetric = "bits_per_byte",
    out: given.PlotFile = "runs/compare.png",
    over: given.ComparedAxis = None,
    panels: given.ComparedPanels = None,
    overwrite: given.Overwrite = False,
) -> None:
    """Compare where runs end, with 95 % intervals over seeds; the table begins with the least."""
    from culm.verbs.compare import show_compare

    show_compare(runs, metric, out, over, panels, overwrite)


@app.command()
def board(
    runs: given.BoardFolders = None,
    host: given.BoardHost = "127.0.0.1",
    port: given.BoardPort = 6006,
    api_key: given.ApiKey = None,
) -> None:
    """Show live and finished runs in the browser: curves, samples, comparisons."""
    from culm.verbs.board import show_board

    show_board(runs or ["runs"], host, port, api_key)


@app.command()
def learn(
    words: given.LearnWords = None,
    out: given.LessonFolder = "lessons",
    overwrite: given.Overwrite = False,
) -> None:
    """A course on language models: list the lessons, copy one, check your answers."""
    from culm.learn.commands import learn as study

    raise typer.Exit(study(words or [], out, overwrite))


@app.command()
def bench(
    what: given.BenchWhat = "train",
    size: given.BenchSize = "S",
    rows: given.BenchRows = None,
    weights: given.BenchWeights = None,
    json: given.AsJson = False,
) -> None:
    """Measure training or decoding speed on this machine."""
    from culm.verbs.bench import show_bench

    show_bench(what, size, rows, weights, json)


@app.command()
def schema() -> None:
    """Print the JSON schema of run files, for editors."""
    import json

    from culm.verbs.schema import schema as described

    typer.echo(json.dumps(described(), indent=1))


@app.command()
def doctor() -> None:
    """Show what this machine offers to Culm."""
    from culm.verbs.doctor import show_doctor

    show_doctor()


def main() -> None:
    """Entry point: plain sentences instead of tracebacks, and a non-zero exit on failure."""
    from culm.verbs.failure import run

    run(app)


if __name__ == "__main__":
    main()
