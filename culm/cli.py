"""The command line. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="culm",
    help="Plain text to a served, aligned language model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Run = Annotated[str, typer.Argument(help="A run file, or the name of one in configs/run.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(help="name=value, such as train.steps=100.", metavar="NAME=VALUE"),
]
Model = Annotated[str, typer.Argument(help="A run or model folder, a .gguf file, or a hub id.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the best that is here.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, or auto: the fastest that is here.")]
Seed = Annotated[
    int, typer.Option(help="The same seed gives the same result.", min=0, max=2**63 - 1)
]

Temperature = Annotated[
    float, typer.Option(help="0 takes the likeliest token; higher draws more freely.", min=0.0)
]
TopP = Annotated[
    float, typer.Option(help="Draw from the likeliest tokens of this share.", min=0.0, max=1.0)
]
ContextLength = Annotated[
    int | None,
    typer.Option("--context", help="Tokens of prompt and answer; fewer need less memory.", min=2),
]
CacheBits = Annotated[
    Literal["plain", "int8", "int4"],
    typer.Option("--cache", help="How keys and values are kept; fewer bits need less memory."),
]
Speculate = Annotated[
    Literal["mtp", "ngram"] | None,
    typer.Option(
        "--speculate",
        help="Draft tokens with the model's own heads (mtp) or from repeated text (ngram).",
    ),
]
AnswerSeed = Annotated[int | None, typer.Option(help="The same seed gives the same text.", min=0)]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback on errors.")] = False,
) -> None:
    """Plain text to a served, aligned language model."""


@app.command()
def quickstart(
    text: Annotated[
        list[str] | None, typer.Option(help="Files, folders, or a dataset id; may be repeated.")
    ] = None,
    folder: Annotated[str, typer.Option(help="Where everything is put.")] = "runs/quickstart",
    minutes: Annotated[
        float, typer.Option(help="Time for the whole run.", min=0.2, max=10_000)
    ] = 10.0,
    more: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", hidden=True)] = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """From raw text to a chat model: every stage once, with a report."""
    from culm.quickstart.quickstart import quickstart as go

    go(folder, [*(text or []), *(more or [])], minutes, device, seed)


@app.command()
def train(run: Run, settings: Settings = None) -> None:
    """Train by a run file; started again with the same folder, go on where it stopped."""
    from culm.eval.report import write_report
    from culm.run.settings import read_run
    from culm.run.train import train as go

    config, _ = read_run(run, settings or [])
    result = go(config)
    if not result.finished:
        raise typer.Exit(130)
    write_report(result.folder)
    typer.echo(f"Done: {result.folder}/model, {result.folder}/report.md")


@app.command()
def plan(
    run: Run,
    settings: Settings = None,
    ranks: Annotated[int, typer.Option(help="Processes that would share the run.", min=1)] = 1,
) -> None:
    """What a run would do, need and learn from; starts nothing."""
    from culm.run.settings import read_run
    from culm.verbs.plan import show_plan

    config, origins = read_run(run, settings or [])
    show_plan(config, origins, ranks)


@app.command()
def tokenize(
    path: Annotated[list[str], typer.Argument(help="Files, folders, stdlib, or a dataset id.")],
    out: Annotated[str, typer.Option(help="Folder of the new tokenizer.")] = "runs/tokenizer",
    vocabulary: Annotated[int, typer.Option(help="How many tokens.", min=262)] = 4096,
) -> None:
    """Train a byte-level BPE tokenizer."""
    from culm.data.format.document import DocumentFormat
    from culm.data.source import open_source
    from culm.data.texts import texts_of
    from culm.files import atomic, refuse_nonempty
    from culm.tokenizer.tokenizer import CONFIG
    from culm.tokenizer.train import BPE

    refuse_nonempty(Path(out), CONFIG)
    tokenizer = BPE(vocabulary=vocabulary).build(texts_of(open_source(path), DocumentFormat()))
    with atomic(Path(out)) as fresh:
        tokenizer.save(fresh)
    typer.echo(f"{out}: {tokenizer.vocabulary} tokens")


@app.command()
def prepare(
    path: Annotated[list[str], typer.Argument(help="Files, folders, stdlib, or a dataset id.")],
    tokenizer: Annotated[str, typer.Option(help="A folder with a tokenizer.")],
    out: Annotated[str, typer.Option(help="Folder of the prepared corpus.")],
    format: Annotated[str, typer.Option(help="document, chat, pair or prompt.")] = "document",
    split: Annotated[
        str, typer.Option(help="A document of text is a file, paragraphs or lines.")
    ] = ("file"),
    held_out: Annotated[float, typer.Option(help="Share kept for evaluation, at most 0.5.")] = 0.02,
    seed: Seed = 0,
) -> None:
    """Text to token shards with a manifest; `data.prepared=OUT` trains on them."""
    from culm.config import parse
    from culm.data.prepare import prepare as go
    from culm.data.settings import DataConfig
    from culm.tokenizer.tokenizer import Tokenizer

    values = {"path": path, "format": format, "split": split, "held_out": held_out}
    data = parse(DataConfig, values, "data")
    manifest = go(
        data.open(), data.format, Tokenizer.load(tokenizer), Path(out), data.held_out, seed
    )
    typer.echo(
        f"{out}: {manifest.documents:,} documents, {manifest.bytes:,} bytes, "
        f"{manifest.tokens:,} tokens, {manifest.dropped:,} duplicates dropped"
    )


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str, typer.Argument(help="Text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="Maximum number of new tokens.", min=1)] = 64,
    temperature: Temperature = 0.8,
    top_k: Annotated[
        int, typer.Option(help="Draw from the k likeliest tokens; 0 is all.", min=0)
    ] = 0,
    top_p: TopP = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Least share of the likeliest token's.", min=0.0, max=1.0)
    ] = 0.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends it; may be repeated.")
    ] = None,
    seed: AnswerSeed = None,
    context: ContextLength = None,
    cache: CacheBits = "plain",
    speculate: Speculate = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Continue a text."""
    import culm

    pieces = culm.load(model, device, dtype, context, cache=cache, speculate=speculate).stream(
        prompt, max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        stop=stop, seed=seed,
    )  # fmt: skip
    sys.stdout.write(prompt + next(pieces, ""))  # only now it is known that the prompt fits
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


@app.command()
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens per answer.", min=1)
    ] = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: AnswerSeed = None,
    context: ContextLength = None,
    cache: CacheBits = "plain",
    speculate: Speculate = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Talk to a model in the terminal."""
    import culm
    from culm.serve.terminal import Terminal

    loaded = culm.load(model, device, dtype, context, cache=cache, speculate=speculate)
    Terminal(loaded, system, max_tokens, temperature, top_p, seed).run()


@app.command()
def serve(
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="CULM_API_KEY", help="What clients must present.")
    ] = None,
    slots: Annotated[int, typer.Option(help="Requests that run together.", min=1)] = 8,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            help="An adapter beside the model, called NAME; may be repeated.", metavar="NAME=FOLDER"
        ),
    ] = None,
    context: ContextLength = None,
    cache: CacheBits = "plain",
    speculate: Speculate = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """An OpenAI-compatible server with a chat page."""
    from culm.serve.http.server import check_exposed, check_port

    check_exposed(host, api_key)
    check_port(host, port)
    import culm
    from culm.serve.http.server import serve as go

    adapters = _named(adapter or [])
    path = Path(model).resolve()
    name = path.parent.name if path.name == "model" else path.name
    loaded = culm.load(
        model, device, dtype, context, adapters=adapters, cache=cache, speculate=speculate
    )
    go(loaded, name, host, port, api_key, slots)


def _named(pairs: list[str]) -> dict[str, str]:
    """NAME=FOLDER as a mapping."""
    from culm.config import SettingError

    named: dict[str, str] = {}
    for pair in pairs:
        name, equals, folder = pair.partition("=")
        if not (name and equals and folder):
            raise SettingError(f"--adapter: {pair!r} is not NAME=FOLDER")
        if name in named:
            raise SettingError(f"--adapter: {name!r} is given twice")
        named[name] = folder
    return named


@app.command("eval")
def evaluate(
    model: Model,
    tasks: Annotated[str, typer.Option(help="A file in configs/eval.")] = "tasks",
    questions: Annotated[
        int | None,
        typer.Option(help="Distinct test questions per task; as in the file if not given.", min=1),
    ] = None,
    device: Device = "auto",
) -> None:
    """Exact match on held-out questions, with confidence intervals."""
    from culm.verbs.evaluate import show_evaluation

    show_evaluation(model, tasks, questions, device)


@app.command()
def quantize(
    model: Model,
    out: Annotated[str, typer.Argument(help="Folder of the smaller model.")],
    to: Annotated[
        str,
        typer.Option(
            help="int8, int4, nf4, w8a8 or fp8; with settings '{kind: int4, group: 128}'; or a "
            "list of such, of which a layer takes the first whose targets name it."
        ),
    ] = "int8",
    method: Annotated[
        str,
        typer.Option(
            help="rtn (round to nearest); with text gptq or awq for int4, smoothquant for w8a8."
        ),
    ] = "rtn",
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to calibrate on and measure with; may be repeated.", metavar="TEXT"
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Smaller weights, faster decoding; tells what that costs."""
    from culm.verbs.quantize import show_quantized

    show_quantized(model, out, to, method, calibrate or [], device)


@app.command()
def export(
    model: Model,
    out: Annotated[str, typer.Argument(help="A new folder, or a file that ends in .gguf.")],
    dtype: Annotated[
        str,
        typer.Option(
            help="float32, bfloat16 (the default) or float16; for GGUF f32, f16 (the default), "
            "bf16, q8_0, q6_k, q5_k_m, q5_1, q5_0, q4_k_m, q4_1 or q4_0."
        ),
    ] = "",
    family: Annotated[
        str, typer.Option(help="Of Hugging Face, where several have the model's shape: phi3.")
    ] = "",
) -> None:
    """A Hugging Face folder, or a GGUF file for llama.cpp."""
    from culm.convert.export import export as go
    from culm.convert.export import size_of

    path = go(model, out, dtype, family)
    typer.echo(f"{path}: {size_of(path) / 1e6:,.1f} MB of weights")


@app.command("import")
def import_(
    file: Annotated[
        str, typer.Argument(help="HF folder or hub id, .gguf, llama2.c .bin, or settings .json.")
    ],
    out: Annotated[str, typer.Argument(help="Folder of the new model.")],
    tokenizer: Annotated[str | None, typer.Option(help="tok.bin of a llama2.c model.")] = None,
) -> None:
    """A model from elsewhere as a Culm folder."""
    from culm.verbs.import_model import import_model

    typer.echo(import_model(file, out, tokenizer))


@app.command()
def inspect(
    model: Model,
    attention: Annotated[
        str, typer.Option(help="Draw what each token of a text looks at.", metavar="TEXT")
    ] = "",
    logit_lens: Annotated[
        str, typer.Option(help="What each layer would say next.", metavar="TEXT")
    ] = "",
    histograms: Annotated[
        str, typer.Option(help="Of weights, and of activations on a text.", metavar="TEXT")
    ] = "",
    out: Annotated[str | None, typer.Option(help="Folder for plots.")] = None,
    format: Annotated[str, typer.Option(help="Of plots: png or svg.")] = "png",
) -> None:
    """The parts of a model with shapes, parameters and cache size; what it does with a text."""
    if not (attention or logit_lens or histograms):
        from culm.verbs.inspect import show_model

        show_model(model)
        return
    from culm.verbs.inspect_text import TextInspection

    if attention:
        TextInspection(model, attention, out, format).attention()
    if logit_lens:
        TextInspection(model, logit_lens, out, format).lens()
    if histograms:
        TextInspection(model, histograms, out, format).histograms()


@app.command()
def bench(
    what: Annotated[str, typer.Argument(help="train or decode.")] = "train",
    size: Annotated[str, typer.Option(help="S, T or L of docs/results.md.")] = "S",
) -> None:
    """Training and decoding speed on this machine."""
    from culm.verbs.bench import show_bench

    show_bench(what, size)


@app.command()
def schema() -> None:
    """The JSON schema of run files, for editors."""
    import json

    from culm.run.settings import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=1))


@app.command()
def doctor() -> None:
    """What this machine offers to Culm."""
    from culm.verbs.doctor import show_doctor

    show_doctor()


def main() -> None:
    """Entry point: plain sentences instead of tracebacks, and a non-zero exit on failure."""
    signal.signal(signal.SIGTERM, _end)
    if "--debug" in sys.argv:
        sys.argv = [sys.argv[0], "--debug", *(a for a in sys.argv[1:] if a != "--debug")]
        app()
        return
    try:
        app()
    except SystemExit as ended:
        if ended.__context__ and isinstance(ended.__context__.__cause__, KeyboardInterrupt):
            sys.stderr.write("\nculm: interrupted; the same command starts again\n")
        raise
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        sys.stderr.write(f"culm: {_rank()}{_sentence(error)}\n")
        sys.exit(1)


def _end(number: int, frame: object) -> None:
    """On SIGTERM: by an exception, so that what is half-written is removed."""
    sys.exit(128 + number)


def _rank() -> str:
    """Which process of several this is: the others fail too, when they lose it."""
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if rank != "0" else ""


def _sentence(error: Exception) -> str:
    """What to tell of an error."""
    text = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return where + error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, MemoryError) or "can't allocate memory" in text or "out of memory" in text:
        return (
            "not enough memory; take fewer rows or slots, or a shorter context (`culm plan` tells)"
        )
    if "Connection closed by peer" in text or "Connection reset by peer" in text:
        return "another rank has ended; what it said tells why"
    return text or type(error).__name__


if __name__ == "__main__":
    main()
