"""Commands that offer a model to other programs. Nothing heavy is imported before one runs."""

from __future__ import annotations

from typing import Annotated

import typer

from culm.cli import arguments as given

app = typer.Typer()
PANEL = "Serve"

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
        help="Keep this many tokens of earlier prompts and answers, so that a shared beginning "
        "is read once; 0 keeps none. Each takes the memory of one cached token.",
        min=0,
        show_default="4096",
    ),
]
CommandsFolder = Annotated[
    str | None,
    typer.Option(
        "--commands",
        help="Offer plan, prepare, train, eval and other commands too; they read and write in "
        "this folder.",
    ),
]


@app.command(rich_help_panel=PANEL)
def serve(
    model: Served = "",
    host: Host = None,
    port: Port = None,
    api_key: given.ApiKey = None,
    slots: Slots = None,
    adapter: Adapters = None,
    context: given.ContextLength = None,
    cache: given.CacheBits = "plain",
    speculate: given.Speculate = None,
    draft_model: given.DraftModel = None,
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    reload: Reload = False,
    prefix_tokens: PrefixTokens = None,
    config: ServeFile = None,
    grpc: GrpcPort = None,
    fixture: Script = None,
) -> None:
    """Start an OpenAI-compatible server with a chat page."""
    from culm.serve.settings import read_settings
    from culm.verbs.serve import Options, serve_model

    settings = read_settings(
        config, host=host, port=port, slots=slots, prefix_tokens=prefix_tokens, grpc_port=grpc
    )
    options = Options(adapter or [], context, cache, speculate, device, dtype, reload, draft_model)
    serve_model(model, fixture, settings, api_key, options)


@app.command(rich_help_panel=PANEL)
def route(
    urls: Replicas,
    host: Host = None,
    port: Port = None,
    api_key: given.ApiKey = None,
    slots: Slots = None,
    prefix_tokens: PrefixTokens = None,
    config: ServeFile = None,
) -> None:
    """Share requests between several servers of one model, by the beginnings of their prompts."""
    from culm.serve.route.server import route as go
    from culm.serve.settings import read_settings

    settings = read_settings(config, host=host, port=port, slots=slots, prefix_tokens=prefix_tokens)
    go(urls, settings, api_key)


@app.command(rich_help_panel=PANEL)
def mcp(
    current: typer.Context,
    model: Served = "",
    adapter: Adapters = None,
    context: given.ContextLength = None,
    cache: given.CacheBits = "plain",
    device: given.Device = "auto",
    dtype: given.Dtype = "auto",
    fixture: Script = None,
    commands: CommandsFolder = None,
    approve: given.Approve = None,
) -> None:
    """Offer a model, or Culm's commands, as MCP tools to the program that starts this command."""
    from culm.verbs.mcp import serve_tools, usage_of
    from culm.verbs.serve import Options

    options = Options(adapter or [], context, cache, None, device, dtype)
    known = current.find_root().command.commands  # type: ignore[attr-defined]
    usage = {name: usage_of(command) for name, command in known.items()}
    serve_tools(model, fixture, options, commands, approve or (), usage)
