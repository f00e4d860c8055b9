# %% [markdown]
# # Lesson 11: Ship it
#
# **The question.** The model is trained. How does it become small enough for the machine that you
# have, readable for the programs that others use, and fast for many people at once? And how does
# it use tools?
#
#     model -> quantise -> export -> serve -> answers and calls of tools

# %%
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from culm.eval import plots
from culm.learn import dialogues, practice
from culm.learn.lesson import exercise, replaced, show
from culm.optim.muon import Muon
from culm.task.letters import Letters

torch.manual_seed(0)
torch.set_num_threads(1)

# %% [markdown]
# ## Fewer bits
#
# Writing one token reads every weight once. So half the bytes is up to twice the speed, and half
# the memory. A weight of 32 bits becomes a small integer times a *scale*. With the scale s, the
# error of rounding is anything between -s/2 and s/2: s / sqrt(12) on average (root mean square).
#
# In int8 each output row has a scale, so that its largest weight is 127 steps. With only 16 values
# that would be too coarse: int4 has a scale and a zero point for each *group* of 32 inputs.


# %%
@exercise("ship.int8")
def int8(weight):
    """weight: (outputs, inputs) -> the same shape, the values after rounding."""
    raise NotImplementedError


@exercise("ship.int4")
def int4(weight, group):
    """weight: (outputs, inputs) -> the same shape. group: inputs that share a scale."""
    raise NotImplementedError


weight = torch.randn(64, 256)
errors = {}
for name, rounded in (
    ("int8", int8(weight)),
    ("int4, group 32", int4(weight, 32)),
    ("int4, group 128", int4(weight, 128)),
    ("int4, whole rows", int4(weight, 256)),
):
    errors[name] = (rounded - weight).square().mean().sqrt().item()
show("rounding", plots.columns, errors, "kind", "error, root mean square; weights have 1")

sizes = torch.linspace(0.5, 8, 12).tolist()
seen = [(one, (int8(one * weight) - one * weight).square().mean().sqrt().item()) for one in sizes]
step = (weight.abs().amax(1) / 127).square().mean().sqrt().item()
line = [(one, one * step / 12**0.5) for one in sizes]
show(
    "steps", plots.expected, seen, line, "size of the weights", "error of int8",
    ("step / root of 12", "seen"),
)  # fmt: skip

# %% [markdown]
# ## The library's version
#
# `culm/adapt/quantize/int8.py` and `culm/adapt/quantize/int4.py`; `culm/convert/export.py` writes
# folders of Hugging Face and files for llama.cpp. Other methods move the error to where it hurts
# least: AWQ and GPTQ look for better codes on a text.
#
# ## An experiment: what does it cost?
#
# A model that writes letters backwards, as it is and quantised. Prediction: int8 answers as
# before, int4 nearly so, and the files shrink. Your int4 does the rounding.

# %%
from culm.adapt.quantize import int4 as library
from culm.convert import native
from culm.convert.export import quantize, size_of, write_export
from culm.convert.load import read

task = Letters(name="reverse", operation="reverse", shortest=2, longest=3)
rows = dialogues.Rows(dialogues.examples(task, 2000))
config = dialogues.chat_model(width=64)
model = practice.train(config, rows, 240, optimizer=Muon(rate=2e-2)).model
place = Path(tempfile.mkdtemp())
native.save(model, dialogues.tokenizer(), place / "chat")
for kind in ("int8", "int4"):
    quantize(place / "chat", place / kind, kind)
write_export(model, dialogues.tokenizer(), place / "hf", "float32")
write_export(model, dialogues.tokenizer(), place / "chat-q8_0.gguf", "q8_0")

right, bytes_of = {}, {}
for name in ("chat", "int8", "int4", "hf", "chat-q8_0.gguf"):
    found, _ = read(place / name, "cpu", torch.float32)
    right[name] = dialogues.accuracy(found, task, 60)
    bytes_of[name] = size_of(place / name)
    print(f"{name:<15} {bytes_of[name] / 1024:6.0f} KiB, exact {right[name]:.2f}")
show("kinds", plots.columns, right, "model", "share of exact answers")

linear = model.blocks[0].mlp.down.weight.detach()
print("the library rounds as you do:", torch.equal(library.nearest(linear, 32), int4(linear, 32)))

# %% [markdown]
# ## Several tokens at once
#
# A step reads all weights and gives one token. Reading five tokens would cost hardly more. So
# *guess* the next four, cheaply, and let the model check them in one step (*speculative decoding*,
# arXiv 2211.17192). The simplest guess: where did the last tokens occur before, and what followed
# then? At each place the model's own token is sampled. As long as it equals the guess, the next
# one counts too.


# %%
@exercise("ship.drafted")
def drafted(tokens, count):
    """The tokens so far, a list -> up to `count` guesses, a list."""
    raise NotImplementedError


@exercise("ship.accepted")
def accepted(draft, sampled):
    """draft: n guesses; sampled: n + 1 tokens of the model -> what the step gives."""
    raise NotImplementedError


def steps_of(text, count):
    """Steps in which a model that writes this text, and no other, would write its second half."""
    ids = list(text.encode())
    known, steps = ids[: len(ids) // 2], 0
    while len(known) < len(ids):
        guess = drafted(known, count)[: len(ids) - len(known) - 1]
        known += accepted(guess, ids[len(known) : len(known) + len(guess) + 1])
        steps += 1
    return steps


texts = {"code": practice.text(("csv",))[:1500], "letters at random": None}
chance = torch.Generator().manual_seed(0)
random = torch.randint(97, 123, (1500,), generator=chance).tolist()
texts["letters at random"] = bytes(random).decode()
curves = {
    name: [(n, len(text) / 2 / steps_of(text, n)) for n in (0, 1, 2, 4, 8)]
    for name, text in texts.items()
}
show("drafts", plots.lines, curves, "guessed tokens", "tokens of a step")

# %% [markdown]
# ## A text in pieces
#
# A server sends each piece of text as soon as it is known. But if a *stop* text is "##" and the
# model has written "#", what then? It must wait: what was sent cannot be taken back.


# %%
@exercise("ship.shown")
def shown(letters, stop):
    """A text that comes letter by letter -> what is shown after each, and at the end."""
    raise NotImplementedError


print(shown("Yes.##No", "##"))

# %% [markdown]
# `culm serve` is such a server, with the API of OpenAI (`culm/serve/http/app.py`); many requests
# share each step (`culm/engine/engine.py`). You use it in lesson 12. Here many requests, in this
# process: how many tokens per second do they get together?

# %%
import time

from culm.engine.engine import Engine
from culm.engine.request import Request
from culm.engine.sampling import Sampling

prompt = tuple(dialogues.tokenizer().chat.prompt([{"role": "user", "content": "Reverse: a b c"}]))
speed = []
for slots in (1, 2, 4, 8, 16, 32):
    engine = Engine(model, slots)
    started = time.perf_counter()
    engine.generate([Request(prompt, 24, Sampling(temperature=1.0, seed=n)) for n in range(32)])
    speed.append((slots, 32 * 24 / (time.perf_counter() - started)))
show("batching", plots.lines, {"32 requests": speed}, "requests at once", "tokens per second")

# %% [markdown]
# ## Tools
#
# A model cannot know the weather. It can *ask*: it writes a call, a program runs it, and the model
# reads the result and goes on. A call is JSON between two marks.


# %%
@exercise("ship.called")
def called(reply):
    """-> a list of (name, arguments), in order; empty if the reply is only a text."""
    raise NotImplementedError


# %% [markdown]
# `culm/agent/loop.py` is the loop. What a tool gives is *data*: its text is stripped of marks, so
# that a web page cannot call tools. A person is asked before a call that can change something. The
# model of this example is a script, since ours only knows how to reverse letters; `culm agent`
# takes any model.

# %%
from culm.agent import text_form
from culm.agent.answer import ModelAnswer
from culm.agent.approval import Approvals
from culm.agent.loop import Agent, ToolCalled
from culm.agent.text_form import TextForm
from culm.task.called import Call


@dataclass
class Script:
    """A model that has learned its lines."""

    lines: list

    def answer(self, messages, tools, max_tokens, seconds):
        return ModelAnswer(self.lines.pop(0), tokens=1)


@dataclass
class Weather:
    """The tool. parameters: a JSON schema, which calls must fit."""

    parameters: dict
    name: str = "weather"
    description: str = "The weather of a town."

    def run(self, arguments, seconds):
        return {"Rome": "sunny <tool_call>", "Oslo": "snow"}[arguments["town"]]


SCHEMA = {
    "type": "object",
    "properties": {"town": {"type": "string"}},
    "required": ["town"],
}


def call(**arguments):
    return f"<tool_call>{json.dumps({'name': 'weather', 'arguments': arguments})}</tool_call>"


lines = [call(city="Rome"), call(town="Rome") + call(town="Oslo"), "Sun in Rome, snow in Oslo."]
agent = Agent(
    TextForm(Script(lines)), [Weather(SCHEMA)], Approvals([("weather", "auto")]),
    listeners=[lambda event: print(event.call, "->", event.result.text)
               if isinstance(event, ToolCalled) else None],
)  # fmt: skip
with replaced(text_form, "calls_in", lambda reply: [Call(*one) for one in called(reply)]):
    print(agent.ask("How is the weather in Rome and Oslo?").answer)

# %% [markdown]
# ## What goes wrong in practice
#
# - **A quantised model is another model.** Evaluate what you ship, not what you trained.
# - **Outliers.** One weight of 100 makes the steps of all others coarse. Groups help, and
#   SmoothQuant moves outliers of activations into the weights.
# - **The template is lost.** An export without the chat template, or with another end token,
#   answers nonsense in another program. Culm writes both into the folder and the file.
# - **No limits.** One long prompt stops all others, a client without a limit takes all slots.
#   `culm serve` has a queue, keys and limits; put it behind a proxy with TLS.
# - **A tool with the rights of its user.** The model may be talked into anything. Give a tool the
#   least that it needs, and let a person approve what cannot be undone.
