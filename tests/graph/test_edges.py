"""Graphs from files: closures, what is left out, and files that are no graph."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from culm.config import SettingError
from culm.graph.edges import read_graph
from culm.graph.settings import EdgeConfig


def written(folder: Path, text: str, name: str = "edges.tsv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def pairs(path: Path, **settings) -> set[tuple[str, str]]:
    graph = read_graph(path, **settings)
    return {(graph.names[a], graph.names[b]) for a, b in graph.edges}


def test_lines_of_edges(tmp_path: Path) -> None:
    wanted = {("dog", "canine"), ("a b", "canine")}
    text = "dog\tcanine\na b\tcanine\t0.5\n\n"
    assert pairs(written(tmp_path, text)) == wanted
    assert pairs(written(tmp_path, "id1\tid2\n" + text)) == wanted
    assert pairs(written(tmp_path, text.replace("\t", ","), "edges.csv")) == wanted
    packed = tmp_path / "edges.tsv.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert pairs(packed) == wanted


def test_closure_has_an_edge_to_every_ancestor(tmp_path: Path) -> None:
    """Checked against powers of the adjacency matrix, with two ways to the top."""
    direct = "c\tb\nb\ta\nd\tb\nd\tx\nx\ta\nb\tx"
    graph = read_graph(written(tmp_path, direct), closure=True)
    nodes = len(graph.names)
    step = np.zeros((nodes, nodes), dtype=int)
    for child, parent in read_graph(written(tmp_path, direct)).edges:
        step[child, parent] = 1
    reached = sum(np.linalg.matrix_power(step, power) for power in range(1, nodes))
    assert {tuple(edge) for edge in graph.edges.tolist()} == set(zip(*np.nonzero(reached)))  # noqa: B905
    assert "added 3 edges" in graph.remarks[-1]


def test_repeated_edges_and_loops_are_left_out_and_counted(tmp_path: Path) -> None:
    graph = read_graph(written(tmp_path, "b\ta\nb\ta\na\ta\nc\ta\n"))
    assert len(graph.edges) == 2
    assert graph.remarks == (
        "1 repeated edges were left out.",
        "1 edges from a node to itself were left out.",
    )


def test_what_is_not_read_is_said(tmp_path: Path) -> None:
    graph = read_graph(written(tmp_path, "id1\tid2\tweight\na\tb\t0.5\na\tc\n"))
    assert len(graph.edges) == 2
    assert graph.remarks == (
        "1 line is a header (id1 id2) and no edge.",
        "1 lines have further columns, which are not read.",
    )


def test_a_graph_without_negatives_teaches_nothing(tmp_path: Path) -> None:
    for text, learned in (("a\tb\n", False), ("a\tb\na\tc\n", False), ("a\tb\nb\tc\n", True)):
        config = EdgeConfig(path=written(tmp_path, text))
        if learned:
            assert config.read().has_negatives
            continue
        with pytest.raises(SettingError, match="each child has all other nodes as parents"):
            config.read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no edges"),
        ("id1\tid2\n", "has no edges"),
        ("a\ta\n", "has no edges"),
        ("a\tb\nalone\n", "line 2: 'alone' is no edge; give a child and a parent with a tab"),
        ("a\t\n", "is no edge"),
        ("a\tb\nb\tc\nc\ta\nd\ta\n", "is a circle of 3 edges"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingError, match=message) as found:
        read_graph(path)
    assert str(found.value).startswith("data.path: ")


def test_circle_is_named_from_child_to_parent(tmp_path: Path) -> None:
    path = written(tmp_path, "top\tup\nx\ty\ny\tz\nz\tx\nz\ttop\n")
    with pytest.raises(SettingError, match=r"(x -> y -> z|y -> z -> x|z -> x -> y) -> "):
        read_graph(path)
    assert len(read_graph(path, cycles="keep").edges) == 5


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="there is no file"):
        read_graph(tmp_path / "none.tsv")
    path = tmp_path / "edges.tsv"
    path.write_bytes(b"a\t\xff\n")
    with pytest.raises(SettingError, match="cannot be read as UTF-8"):
        read_graph(path)


def test_unknown_node(tmp_path: Path) -> None:
    graph = read_graph(written(tmp_path, "dog\tcanine\n"))
    assert graph.number("canine") == 1
    with pytest.raises(SettingError, match="dig: no such node; did you mean 'dog'"):
        graph.number("dig")


def test_wordnet_nouns(shared) -> None:
    """82,115 synsets, whose closure has 743,241 pairs."""
    graph = read_graph(shared("wordnet/mammal_closure.tsv"))
    assert (len(graph.names), len(graph.edges)) == (1182, 6542)
