"""Ollama: a GGUF file and the Modelfile that describes it.

Ollama's own template language is that of Go. The template is made from the form of the model's
chat template (`culm.ship.chat_form`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from culm.atomic import atomic
from culm.config import SettingError
from culm.convert import gguf
from culm.convert.card import card
from culm.files import refuse_nonempty
from culm.model.transformer import Transformer
from culm.ship.chat_form import Around, ChatForm, form_of
from culm.ship.target import TargetConfig, read_language_model, refuse_options
from culm.tokenizer.tokenizer import Tokenizer

MODELFILE, WEIGHTS = "Modelfile", "model.gguf"
# Names of Ollama for the generation settings of Hugging Face.
SAMPLING = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}  # fmt: skip


class Ollama(TargetConfig):
    """context: tokens of a dialogue (`num_ctx`); by default as many as the model reads."""

    kind: Literal["ollama"] = "ollama"
    context: PositiveInt | None = None

    def write(self, source: str, out: Path, dtype: str, family: str) -> None:
        refuse_options("ollama", family=family)
        model, tokenizer = read_language_model(source, "Ollama")
        if self.context is not None and self.context > model.config.context:
            raise SettingError(
                f"--for.context: {self.context} is longer than the {model.config.context} tokens "
                "that the model reads"
            )
        text = modelfile(tokenizer, self.context or model.config.context)
        refuse_nonempty(out, MODELFILE)
        with atomic(out, replaces=("lineage.json",)) as fresh:
            fresh.mkdir()
            gguf.export(model, tokenizer, fresh / WEIGHTS, dtype or "f16", shown=out / WEIGHTS)
            (fresh / MODELFILE).write_text(text, encoding="utf-8")
            (fresh / "README.md").write_text(_card(model, out.name), encoding="utf-8")


def _card(model: Transformer, folder: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("._-") or "model"  # as Ollama takes it
    usage = f"```bash\nollama create {name} -f {MODELFILE}\nollama run {name}\n```"
    return card(model, folder, note=f"In the folder of this file:\n\n{usage}")


def modelfile(tokenizer: Tokenizer, context: int) -> str:
    """The text of a Modelfile: weights, template, parameters."""
    if tokenizer.template is None:
        template = "{{ .Prompt }}"
    else:
        template = go_template(form_of(tokenizer), _added(tokenizer))
    names = {id: name for name, id in tokenizer.specials.items()}
    stops = [names[id] for id in sorted(tokenizer.stop_ids) if id in names]
    lines = [
        f"FROM ./{WEIGHTS}",
        f'TEMPLATE """{template}"""',
        f"PARAMETER num_ctx {context}",
        *(f'PARAMETER stop "{name}"' for name in stops),  # Ollama knows no escapes there
        *(f"PARAMETER {name} {value}" for name, value in _sampling(tokenizer).items()),
    ]
    return "\n".join(lines) + "\n"


def _added(tokenizer: Tokenizer) -> str:
    """What Ollama adds before every prompt itself, as llama.cpp, so that no template may."""
    names = {id: name for name, id in tokenizer.specials.items()}
    return "".join(names.get(id, "") for id in tokenizer.start)


def _sampling(tokenizer: Tokenizer) -> dict[str, Any]:
    given = tokenizer.generation
    if given.get("do_sample") is False:
        return {"temperature": 0}
    found = {ours: given.get(theirs) for theirs, ours in SAMPLING.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def go_template(form: ChatForm, added: str = "") -> str:
    """A form in the language of Go's text/template, with the variables of Ollama.

    All text stands in quoted strings, so white space between actions has no meaning. The answer
    that a client began, the last message, is left open. added: a begin that is written elsewhere.
    """
    system, inside = form.system or Around("", ""), form.inside
    given = f"{_quoted(system.before)}{{{{ $.System }}}}{_quoted(system.after)}"
    first = f"{{{{ if and $.System (le $i 1) }}}}{given}{{{{ end }}}}" if inside else ""
    opening = f"{{{{ if not .System }}}}{_quoted(form.unasked)}{{{{ end }}}}" * bool(form.unasked)
    if form.system and not inside:
        opening += f"{{{{ if .System }}}}{given.replace('$.', '.')}{{{{ end }}}}"
    lines = [
        _quoted(form.begin.removeprefix(added)),
        opening,
        "{{ range $i, $_ := .Messages }}",
        "{{ $last := eq (len (slice $.Messages $i)) 1 }}",
        f'{{{{ if eq .Role "user" }}}}{_quoted(form.user.before)}{first}{{{{ .Content }}}}'
        f"{_quoted(form.user.after)}",
        f'{{{{ else if eq .Role "assistant" }}}}{_quoted(form.assistant.before)}{{{{ .Content }}}}'
        f"{{{{ if not $last }}}}{_quoted(form.assistant.after)}{{{{ end }}}}{{{{ end }}}}",
        f'{{{{ if and $last (ne .Role "assistant") }}}}{_quoted(form.prompt)}{{{{ end }}}}',
        "{{ end }}",
    ]
    trimmed = "\n".join(line for line in lines if line).replace("}}\n{{", "}}\n{{- ")
    return trimmed.replace("{{-  ", "{{- ")


def _quoted(text: str) -> str:
    """An action that writes a text. Three quotes, a mark of Modelfiles, cannot arise in it, nor
    what Ollama drops from them, such as spaces of other scripts.
    """
    if not text:
        return ""
    literal = json.dumps(text, ensure_ascii=False).replace('\\"', "\\u0022")
    return "{{ " + "".join(map(_printable, literal)) + " }}"


def _printable(letter: str) -> str:
    """A character, or its escape in Go."""
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"
