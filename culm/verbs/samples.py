"""Decoded samples on a terminal, with the learned text marked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

SHOWN = 600  # characters of a sample


def show_samples(console: Console, samples: Sequence[Sequence[tuple[str, bool]]]) -> None:
    """samples: spans (text, whether it is learned) of each."""
    console.print("\n[bold]Samples[/], learned text in «»")
    for spans in samples:
        left = SHOWN
        for text, learned in spans:
            shown = text[:left]
            left -= len(shown)
            style = "green" if learned else "dim"
            console.print(f"«{shown}»" if learned else shown, style=style, markup=False, end="")
            if not left:
                console.print(" ...", end="")
                break
        console.print("\n")
