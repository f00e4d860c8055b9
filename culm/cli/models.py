"""Commands that convert, inspect and publish models. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.cli import arguments as given

app = typer.Typer()
PANEL = "Convert, inspect, publish"

ScriptFolder = Annotated[
    str, typer.Argument(help="A new folder for a script, its run files, and what they make.")
]
QuantizedOut = Annotated[str, typer.Argument(help="Folder of the quantised model.")]
QuantizeTo = Annotated[
    str,
    typer.Option(
        help="int8, int4, nf4, w8a8 or fp8; with settings '{kind: int4, group: 128}'; or a "
        "list of these, in which the first entry whose targets match a layer applies."
    ),
]
QuantizeMethod = Annotated[
    str,
    typer.Option(
        help="rtn (round to nearest); with --calibrate gptq or awq for int4, smoothquant for w8a8."
    ),
]
Calibrate = Annotated[
    list[str] | None,
    typer.Option(help="Text to calibrate and to measure on; may be repeated.", metavar="TEXT"),
]
ExportOut = Annotated[str, typer.Argument(help="A new folder, or a file that ends in .gguf.")]
ExportDtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16 (the default) or float16; for GGUF f32, f16 (the default), "
        "bf16, q8_0, q6_k, q5_k_m, q5_1, q5_0, q4_k_m, q4_1 or q4_0."
    ),
]
ExportTarget = Annotated[
    str | None,
    typer.Option(
        "--for",
        help="What runs it: ollama, vllm, cloudflare, inferentia or lambda; or with settings, as "
        "in {kind: ollama, context: 4096}.",
    ),
]
Family = Annotated[
    str, typer.Option(help="Hugging Face family where several fit the model, such as phi3.")
]
HubRepository = Annotated[str, typer.Argument(help="OWNER/NAME on the hub; created if needed.")]
VersionTag = Annotated[
    str | None, typer.Option(help="Name of the version; by default v1, then v2 and so on.")
]
License = Annotated[
    str | None, typer.Option(help="Short name of its licence on the hub, such as apache-2.0.")
]
ResultFiles = Annotated[
    list[str] | None,
    typer.Option(help="What culm eval --json printed; default: the results of the run."),
]
Public = Annotated[bool, typer.Option("--public", help="A new repository is visible to everyone.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Upload nothing; print the card and list the files.")
]
ImportFile = Annotated[
    str,
    typer.Argument(
        help="Hugging Face folder or id, .gguf, llama2.c .bin, or a .json of model settings."
    ),
]
ImportOut = Annotated[str, typer.Argument(help="Folder of the new model.")]
ImportTokenizer = Annotated[str | None, typer.Option(help="tok.bin of a llama2.c model.")]
AttentionText = Annotated[
    str, typer.Option(help="Show which tokens of a text attend to which.", metavar="TEXT")
]
LensText = Annotated[
    str, typer.Option(help="Show what each layer would predict next.", metavar="TEXT")
]
HistogramText = Annotated[
    str, typer.Option(help="Show weights, and activations on a text.", metavar="TEXT")
]
Disc = Annotated[
    bool, typer.Option("--disc", help="Draw the points of a graph (culm train poincare).")
]
NearNode = Annotated[
    str | None, typer.Option(help="Show the nearest nodes of a node of a graph.", metavar="NODE")
]
PlotFolder = Annotated[str | None, typer.Option(help="Folder for plots.")]
PlotFormat = Annotated[str, typer.Option(help="Format of plots: png or svg.")]


@app.command(rich_help_panel=PANEL)
def quantize(
    model: given.Model,
    out: QuantizedOut,
    to: QuantizeTo = "int8",
    method: QuantizeMethod = "rtn",
    calibrate: Calibrate = None,
    device: given.Device = "auto",
    overwrite: given.Overwrite = False,
) -> None:
    """Quantise weights: smaller and faster; reports the loss in quality."""
    from culm.verbs.quantize import show_quantized

    show_quantized(model, out, to, method, calibrate or [], device, overwrite)


@app.command(rich_help_panel=PANEL)
def export(
    model: given.Model,
    out: ExportOut,
    target: ExportTarget = None,
    dtype: ExportDtype = "",
    family: Family = "",
    overwrite: given.Overwrite = False,
) -> None:
    """Write a Hugging Face folder, a GGUF file, or what Ollama, vLLM or a cloud service takes."""
    from culm.verbs.export import export_model

    typer.echo(export_model(model, out, target, dtype, family, overwrite))


@app.command("import", rich_help_panel=PANEL)
def import_(
    file: ImportFile,
    out: ImportOut,
    tokenizer: ImportTokenizer = None,
    overwrite: given.Overwrite = False,
) -> None:
    """Convert a model of another format into a Culm folder."""
    from culm.verbs.import_model import import_model

    typer.echo(import_model(file, out, tokenizer, overwrite))


@app.command(rich_help_panel=PANEL)
def inspect(
    model: given.Model,
    attention: AttentionText = "",
    logit_lens: LensText = "",
    histograms: HistogramText = "",
    disc: Disc = False,
    near: NearNode = None,
    out: PlotFolder = None,
    format: PlotFormat = "png",
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


@app.command(rich_help_panel=PANEL)
def lineage(model: given.Model) -> None:
    """Show what a model was made from, down to raw files, and which of these changed since."""
    from culm.verbs.lineage import show_lineage

    show_lineage(model)


@app.command(rich_help_panel=PANEL)
def push(
    model: given.Model,
    repo: HubRepository,
    tag: VersionTag = None,
    license: License = None,
    results: ResultFiles = None,
    public: Public = False,
    dry_run: DryRun = False,
) -> None:
    """Upload a model to the Hugging Face hub as a version, with a card; private by default."""
    from culm.verbs.push import push_model

    push_model(model, repo, tag, license, results or [], public, dry_run)


@app.command(rich_help_panel=PANEL)
def reproduce(model: given.Model, out: ScriptFolder, overwrite: given.Overwrite = False) -> None:
    """Write the commands that make a model again, starting from its raw files."""
    from culm.verbs.reproduce import write_reproduction

    write_reproduction(model, out, overwrite)
