"""`culm inspect --attention | --logit-lens | --histograms`: a model while it reads a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import Tensor

from culm.config import SettingError
from culm.convert.load import read
from culm.eval.inspection import Spread, activations_of, attention_maps, logit_lens, weights_of
from culm.files import refuse_existing
from culm.model.transformer import Transformer
from culm.tokenizer.tokenizer import Tokenizer

SHADES = " ░▒▓█"
LEVELS = " ▁▂▃▄▅▆▇█"
MAX_TOKENS = 64  # of a text that is shown


class TextInspection:
    """A model, a text, and an optional folder for plots.

    Raises:
        SettingError: the text is empty or too long, or the format of plots is unknown.
    """

    def __init__(
        self, path: str, text: str, out: str | None, kind: str = "png", overwrite: bool = False
    ) -> None:
        if kind not in ("png", "svg"):
            raise SettingError(f"format: {kind!r} is not one of png, svg")
        self.model, self.tokenizer = _read(path)
        self.ids = self.tokenizer.encode(text)
        maximum = min(MAX_TOKENS, self.model.config.context)
        if not 1 <= len(self.ids) <= maximum:
            problem = f"{len(self.ids)} tokens; give 1 to {maximum}"
            raise SettingError(f"text: {text[:20]!r} has {problem}")
        self.names = [_visible(self.tokenizer, id) for id in self.ids]
        self.out = None if out is None else Path(out)
        self.kind, self.overwrite = kind, overwrite
        self.console = Console(highlight=False, soft_wrap=True)

    def attention(self) -> None:
        """A map for each layer and head; row t shows what token t attends to."""
        maps = attention_maps(self.model, self.ids)
        if not maps:
            raise SettingError("attention: no layer of this model has a softmax to show")
        for layer, weights in maps.items():
            for head, rows in enumerate(weights):
                self._print(f"layer {layer}, head {head}")
                for name, row in zip(self.names, rows.tolist(), strict=True):
                    self._print(f"{name[:12]:>12} {''.join(_shade(value) for value in row)}")
            if path := self._plot(f"attention-{layer}"):
                from culm.eval.plots import attention

                attention(path, weights, self.names, f"layer {layer}")

    def lens(self) -> None:
        """For each token, what the model would predict next if it ended before each block."""
        logprobs = logit_lens(self.model, self.ids)
        best = logprobs.max(-1)
        table = Table("before", *self.names, box=None, padding=(0, 1))
        layers = [f"block {index}" for index in range(len(self.model.blocks))] + ["the head"]
        said = [[_visible(self.tokenizer, id) for id in row] for row in best.indices.tolist()]
        for layer, words, values in zip(layers, said, best.values.exp().tolist(), strict=True):
            cells = (f"{w} {100 * p:.0f}" for w, p in zip(words, values, strict=True))
            table.add_row(layer, *cells)
        self.console.print(table, markup=False)
        if path := self._plot("logit-lens"):
            from culm.eval.plots import lens

            lens(path, best.values.exp(), said, layers, self.names)

    def histograms(self) -> None:
        """Distributions of weights and activations."""
        for title, spreads in (
            ("weights", list(weights_of(self.model))),
            ("activations", list(activations_of(self.model, self.ids))),
        ):
            self._print_spreads(spreads)
            if path := self._plot(title):
                from culm.eval.plots import histograms

                histograms(path, spreads)

    def _print_spreads(self, spreads: Iterable[tuple[str, Spread]]) -> None:
        for name, found in spreads:
            about = f"mean {found.mean:9.2e}  std {found.std:8.2e}  largest {found.largest:8.2e}"
            self._print(f"{name:<36} {_bars(found.counts)} {about}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False)

    def _plot(self, name: str) -> Path | None:
        if self.out is None:
            return None
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / f"{name}.{self.kind}"
        refuse_existing(path, self.overwrite)
        self._print(f"{path}")
        return path


def show_inspections(
    path: str, attention: str, logit_lens: str, histograms: str, out: str | None, kind: str,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Print up to three inspections, each of its own text; "" leaves one out."""
    if attention:
        TextInspection(path, attention, out, kind, overwrite).attention()
    if logit_lens:
        TextInspection(path, logit_lens, out, kind, overwrite).lens()
    if histograms:
        TextInspection(path, histograms, out, kind, overwrite).histograms()


def _read(path: str) -> tuple[Transformer, Tokenizer]:
    model, tokenizer = read(path, "cpu", "float32")
    return model.eval(), tokenizer


def _visible(tokenizer: Tokenizer, id: int) -> str:
    """A token as one line shows it."""
    text = tokenizer.decode([id], specials=True)
    return text.replace("\n", "⏎").replace(" ", "·") or "∅"


def _shade(share: float) -> str:
    return SHADES[min(len(SHADES) - 1, int(share * len(SHADES)))]


def _bars(counts: Tensor) -> str:
    most = float(counts.max()) or 1.0
    steps: Sequence[float] = (counts / most * (len(LEVELS) - 1)).tolist()
    return "".join(LEVELS[round(step)] for step in steps)
