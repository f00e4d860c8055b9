"""Commands that ask a model. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from culm.cli import arguments as given

app = typer.Typer()
PANEL = "Ask a model"

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


@app.command(rich_help_panel=PANEL)
def generate(
    model: given.Model,
    prompt: Prompt = None,
    prompts: PromptFile = None,
    out: AnswersOut = None,
    samples: Samples = 1,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = None,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    stop: Stop = None,
    seed: AnswerSeed = None,
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


@app.command(rich_help_panel=PANEL)
def chat(
    model: ChatModel,
    system: System = None,
    max_tokens: MaxAnswerTokens = None,
    temperature: Temperature = None,
    top_p: TopP = 1.0,
    seed: AnswerSeed = None,
    context: given.ContextLength = None,
    cache: given.CacheBits = "plain",
    speculate: given.Speculate = None,
    draft_model: given.DraftModel = None,
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    api_key: ServerKey = None,
    json: JsonAnswers = False,
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


@app.command(rich_help_panel=PANEL)
def agent(
    model: AgentModel,
    question: Question,
    tools: ToolNames = "",
    database: DatabasePlaces = None,
    folder: TextFolder = None,
    web: WebEngine = None,
    mcp: McpServers = None,
    approve: given.Approve = None,
    steps: Steps = 12,
    tokens: AgentTokens = 8192,
    seconds: AgentSeconds = 120.0,
    trace: TracePath = None,
    system: System = None,
    form: ToolForm = "tools",
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
