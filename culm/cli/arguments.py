"""Arguments that commands of several files share, with their help."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Settings = Annotated[
    list[str] | None,
    typer.Argument(help="name=value, such as train.steps=100.", metavar="NAME=VALUE"),
]
Model = Annotated[
    str, typer.Argument(help="A run or model folder, a .gguf file, or a Hugging Face id.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, mps, or auto: the best one available.")]
Dtype = Annotated[
    str, typer.Option(help="float32, bfloat16, or auto: the fastest on this machine.")
]
Seed = Annotated[
    int, typer.Option(help="The same seed gives the same result.", min=0, max=2**63 - 1)
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
ApiKey = Annotated[
    str | None, typer.Option(envvar="CULM_API_KEY", help="API key that clients must send.")
]
Approve = Annotated[
    list[str] | None,
    typer.Option(
        help="NAME=ask, NAME=auto or NAME=never, where a name may have *; may be repeated. By "
        "default web and MCP tools ask.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object on each line.")]
