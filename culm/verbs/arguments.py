"""Arguments that several verbs share, with their help. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Run = Annotated[
    str,
    typer.Argument(help="A run file, or the name of one in configs/run.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(help="name=value, such as train.steps=100.", metavar="NAME=VALUE"),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Train so many runs, each with a seed of its own, in FOLDER/seed-N.",
        show_default=False,
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        help="Train a run for each value, such as train.optimizer.rate=1e-3,3e-3; repeat it to "
        "combine settings.",
        metavar="NAME=VALUE,VALUE",
        show_default=False,
    ),
]
Model = Annotated[
    str, typer.Argument(help="A run or model folder, a .gguf file, or a Hugging Face id.")
]
Texts = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, stdlib, or a Hugging Face dataset id; and settings of the data as in "
        "a run, such as data.invalid=skip."
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the best one available.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, or auto: the fastest on this machine.")
]
Seed = Annotated[
    int, typer.Option(help="The same seed gives the same result.", min=0, max=2**63 - 1)
]
AnswerSeed = Annotated[int | None, typer.Option(help="The same seed gives the same text.", min=0)]

Temperature = Annotated[
    float | None,
    typer.Option(
        help="0 always takes the most likely token; higher is more random. Default: 0.8 for a "
        "text, 0 for a chat.",
        min=0.0,
    ),
]
TopK = Annotated[
    int, typer.Option(help="Sample from the k most likely tokens only; 0: from all.", min=0)
]
TopP = Annotated[
    float,
    typer.Option(
        help="Nucleus sampling: smallest set of tokens with this total probability.",
        min=0.0,
        max=1.0,
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        help="Drop tokens below this fraction of the top token's probability.", min=0.0, max=1.0
    ),
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        "--context", help="Maximum tokens of prompt and answer; less saves memory.", min=2
    ),
]
CacheBits = Annotated[
    Literal["plain", "int8", "int4"],
    typer.Option("--cache", help="Precision of the KV cache; fewer bits save memory."),
]
Speculate = Annotated[
    Literal["mtp", "ngram"] | None,
    typer.Option(help="Draft tokens with the model's heads (mtp) or from repeated text (ngram)."),
]
DraftModel = Annotated[
    str | None,
    typer.Option(help="Draft tokens with a smaller model that has the same tokenizer."),
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there under the name of the output.")
]

# culm quickstart
StartTexts = Annotated[
    list[str] | None,
    typer.Option(help="Files, folders, or a Hugging Face dataset id; may be repeated."),
]
StartFolder = Annotated[str, typer.Option(help="Folder for all results.")]
Minutes = Annotated[float, typer.Option(help="Time for the complete run.", min=0.2, max=10_000)]
MoreTexts = Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", hidden=True)]

# culm plan
Ranks = Annotated[
    int,
    typer.Option(
        "--ranks", "--count", help="Processes, each with a device, that share the run.", min=1
    ),
]
RanksHere = Annotated[
    int, typer.Option("--ranks", help="Processes on each machine, each with a device.", min=1)
]
Nodes = Annotated[int, typer.Option(help="Machines.", min=1)]
Restarts = Annotated[
    int, typer.Option(help="How often failed processes are started again; they resume.", min=0)
]
SchedulerName = Annotated[
    Literal["slurm", "kubernetes", "skypilot", "ray"] | None,
    typer.Option("--for", help="Write the file for this scheduler, and start nothing."),
]
ContainerImage = Annotated[str, typer.Option(help="With Culm, for Kubernetes.")]
JobOut = Annotated[Path | None, typer.Option(help="Where the file goes; printed if not given.")]
TargetDevice = Annotated[
    str | None,
    typer.Option(
        help="Plan for a device that is not here: rtx3090, rtx4090, l4, l40s, a100, h100, h200 or "
        "mi300x."
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        help="Propose size, tokens, batch and rate for a time such as 30m, 2h or 1d; trains "
        "micro-runs on this machine for a tenth of it, 5 minutes at most."
    ),
]

# culm tokenize
TokenizerOut = Annotated[str, typer.Option(help="Folder of the new tokenizer.")]
Vocabulary = Annotated[
    int | None, typer.Option(help="Number of tokens; 4096 unless given.", min=257)
]
TrainingTexts = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, stdlib, or a Hugging Face dataset id; and settings, such as "
        "tokenizer=sentencepiece, tokenizer.digits=grouped or data.invalid=skip."
    ),
]
AnyTokenizer = Annotated[
    str,
    typer.Argument(help="A folder, a .model, .tiktoken or .gguf file, or bytes."),
]
Tokenizers = Annotated[
    list[str], typer.Argument(help="Folders, .model, .tiktoken or .gguf files, or bytes.")
]
TextFiles = Annotated[
    list[str] | None, typer.Argument(metavar="[FILE]...", help="Default: standard input.")
]
Lines = Annotated[bool, typer.Option("--lines", help="Each line is a text.")]
SpecialNames = Annotated[
    bool, typer.Option("--specials", help="Read or show the names of special tokens.")
]
ComparedTexts = Annotated[
    list[str],
    typer.Option("--text", help="A text, or NAME=TEXT for a name of several; may be repeated."),
]
PrintJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# culm prepare
TokenizerFolder = Annotated[str, typer.Option(help="A folder with a tokenizer.")]
CorpusOut = Annotated[str, typer.Option(help="Folder of the prepared corpus.")]
RecordFormat = Annotated[
    str | None,
    typer.Option(
        help="document, chat, pair, ranking, label, steps or prompt; by default what the first "
        "records look like."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no samples before the work.")]
DocumentSplit = Annotated[
    str, typer.Option(help="Unit of a document in text files: file, paragraphs or lines.")
]
HeldOut = Annotated[float, typer.Option(help="Fraction held out for evaluation, up to 0.5.")]

# culm classifier
PositiveTexts = Annotated[
    list[str], typer.Option("--positive", help="Texts as they should be; may be repeated.")
]
NegativeTexts = Annotated[
    list[str], typer.Option("--negative", help="Texts to drop; may be repeated.")
]
ClassifierOut = Annotated[str, typer.Option(help="File of the new classifier (.safetensors).")]

# culm generate
Prompt = Annotated[str | None, typer.Argument(help="Text to continue.")]
PromptFile = Annotated[
    list[str] | None,
    typer.Option(help="Files of prompts or dialogues, each to be answered; may be repeated."),
]
AnswersOut = Annotated[
    str | None,
    typer.Option(help="JSONL of the dialogues with their answers; the same command continues it."),
]
Samples = Annotated[int, typer.Option(help="Answers to each prompt of a file.", min=1)]
MaxTokens = Annotated[int, typer.Option(help="Maximum number of new tokens.", min=1)]
Stop = Annotated[
    list[str] | None, typer.Option(help="Text that ends the generation; may be repeated.")
]

# culm chat
ChatModel = Annotated[
    str,
    typer.Argument(
        help="A run or model folder, a .gguf file, a Hugging Face id, or a server: "
        "http://host:port#MODEL."
    ),
]
ServerKey = Annotated[
    str | None, typer.Option("--api-key", envvar="CULM_API_KEY", help="API key of a server.")
]
JsonAnswers = Annotated[
    bool, typer.Option("--json", help="Write each answer as a line with one JSON object.")
]
System = Annotated[str | None, typer.Option(help="A system prompt.")]
MaxAnswerTokens = Annotated[int | None, typer.Option(help="Maximum tokens per answer.", min=1)]

# culm serve
Host = Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on.", min=1, max=65535, show_default="8000")
]
GrpcPort = Annotated[
    int | None, typer.Option("--grpc", help="Also serve gRPC on this port.", min=0, max=65535)
]
ServeFile = Annotated[
    str | None,
    typer.Option("--config", help="A file of settings (keys, limits); options here come first."),
]
Slots = Annotated[
    int | None,
    typer.Option("--slots", help="Maximum concurrent requests.", min=1, show_default="8"),
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="CULM_API_KEY", help="API key that clients must send.")
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="Serve a LoRA adapter as a model called NAME; may be repeated.",
        metavar="NAME=FOLDER",
    ),
]
Served = Annotated[
    str, typer.Argument(help="A run or model folder, a .gguf file, or a Hugging Face id.")
]
Replicas = Annotated[
    list[str], typer.Argument(help="Addresses of servers, such as http://127.0.0.1:8001.")
]
Script = Annotated[
    str | None,
    typer.Option(
        "--fixture",
        help="Answer as this file says, without a model, to test clients (docs/reference/http.md).",
    ),
]
Reload = Annotated[
    bool, typer.Option("--reload", help="Read the weights again at each POST to /reload.")
]
PrefixTokens = Annotated[
    int | None,
    typer.Option(
        help="Keep so many tokens of earlier prompts and answers, so that what begins alike is "
        "read once; 0: none. Each needs the memory of a token of a slot.",
        min=0,
        show_default="4096",
    ),
]

# culm agent
AgentModel = Annotated[
    str,
    typer.Argument(
        help="A run or model folder, a .gguf file, a Hugging Face id, or the URL of an API, such "
        "as http://localhost:8000/v1 (#NAME chooses one of its models)."
    ),
]
Question = Annotated[str, typer.Argument(help="What the model answers.")]
ToolNames = Annotated[
    str, typer.Option("--tools", help="Some of python, sql, search and web, with commas.")
]
DatabasePlaces = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        help="For sql: an SQLite or DuckDB file, or postgresql://...; may be repeated.",
    ),
]
TextFolder = Annotated[str | None, typer.Option("--folder", help="For search: a folder of texts.")]
WebEngine = Annotated[
    str | None,
    typer.Option(
        "--web",
        help="For web: searxng=URL, brave, or google=ID; keys in BRAVE_API_KEY, GOOGLE_API_KEY.",
    ),
]
McpServers = Annotated[
    str | None, typer.Option("--mcp", help="A file with mcpServers, YAML or JSON.")
]
CommandsFolder = Annotated[
    str | None,
    typer.Option(
        "--commands",
        help="Offer plan, prepare, train, eval and other commands too; they read and write in "
        "this folder.",
    ),
]
Approve = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=ask, NAME=auto or NAME=never, where a name may have *; may be repeated. By "
        "default web and MCP tools ask.",
    ),
]
Steps = Annotated[int, typer.Option(help="Maximum number of answers of the model.", min=1)]
AgentTokens = Annotated[
    int, typer.Option("--tokens", help="Maximum tokens that the model generates in all.", min=1)
]
AgentSeconds = Annotated[
    float, typer.Option("--seconds", help="Maximum time for the question.", min=1)
]
TracePath = Annotated[
    str | None, typer.Option("--trace", help="A file to which each step is appended, as JSON.")
]
ToolForm = Annotated[
    Literal["tools", "text", "unlisted"],
    typer.Option(
        "--form",
        help="text: list the tools in a message, for a template without a place for them. "
        "unlisted: as text without the list, for a model that was trained for its tools.",
    ),
]

# culm eval
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

# culm quantize
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

# culm export
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

# culm push
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

# culm import
ImportFile = Annotated[
    str,
    typer.Argument(
        help="Hugging Face folder or id, .gguf, llama2.c .bin, or a .json of model settings."
    ),
]
ImportOut = Annotated[str, typer.Argument(help="Folder of the new model.")]
ImportTokenizer = Annotated[str | None, typer.Option(help="tok.bin of a llama2.c model.")]

# culm inspect
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

# culm plot
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

# culm compare
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

# culm board
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

# culm bench
BenchWhat = Annotated[str, typer.Argument(help="train or decode.")]
BenchSize = Annotated[str, typer.Option(help="Model size: S (26M), T (tiny, bytes) or L (135M).")]
BenchRows = Annotated[int | None, typer.Option(min=1, help="Sequences decoded together.")]
BenchWeights = Annotated[str | None, typer.Option(help="bf16, int8 or int4; default: each.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object on each line.")]

# culm learn
LearnWords = Annotated[
    list[str] | None,
    typer.Argument(
        help="Nothing: list the lessons. A part or lesson, such as 1 or 3a: copy it. check FILE: "
        "check the exercises of scripts or notebooks. solution EXERCISE: show a right answer.",
        metavar="LESSON | check FILE | solution EXERCISE",
        show_default=False,
    ),
]
LessonFolder = Annotated[str, typer.Option("--out", help="Folder for the copies.")]
