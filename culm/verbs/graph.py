"""`culm plan`, `culm inspect` and `culm eval` of points for the nodes of a graph."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from culm import log
from culm.config import SettingError
from culm.files import json_text, refuse_existing
from culm.graph.batches import EdgeBatches
from culm.graph.edges import Graph
from culm.graph.folder import NamedPoints, load_points
from culm.graph.settings import GraphRun
from culm.graph.train import accept
from culm.train.checkpoint.folder import verify
from culm.train.run_folder import check, read_settings
from culm.verbs.format import count, size
from culm.verbs.plan import settings_rows
from culm.verbs.plan_needs import section

STATES = 3  # numbers of each coordinate: the point, its gradient, its momentum


def show_graph_plan(config: GraphRun, origins: dict[str, str]) -> None:
    """Print settings, the graph and what the run needs; starts nothing.

    Raises:
        SettingError: the edges, or the folder, cannot be used.
    """
    console = Console(highlight=False, soft_wrap=True)
    section(console, "Settings", settings_rows(config, origins))
    graph, train = config.data.read(), config.train
    _check_folder(console, config, graph)
    model = config.model.build(len(graph.names))
    edges = train.steps * train.batch_size
    distances = train.batch_size * (1 + train.negatives)
    rows: list[tuple[str, ...]] = [
        ("graph", f"{len(graph.names):,} nodes, {len(graph.edges):,} edges"),
        ("parameters", count(model.points.numel())),
        ("edges read", f"{edges:,}, {edges / len(graph.edges):.1f} epochs"),
        ("distances", f"{distances:,} in each step"),
        ("memory", f"{size(STATES * model.points.nbytes)} of points, gradients and momentum"),
    ]
    section(console, "Graph", rows)
    for remark in graph.remarks:
        console.print(remark)
    console.print("No problem found. Start it with `culm train` and the same settings.")


def _check_folder(console: Console, config: GraphRun, graph: Graph) -> None:
    """Whether the run could start, or resume, in its folder."""
    folder, train = Path(config.folder), config.train
    check(folder, config)
    progress, damaged = verify(folder)
    for one in damaged:
        console.print(f"{one.path}: damaged ({one.reason}); the run resumes from an earlier one.")
    if progress is not None:
        accept(folder, progress, EdgeBatches(graph, train.batch_size, train.negatives, config.seed))
        console.print(f"Resumes after step {progress.step:,} of {train.steps:,}.")


def refuse_text(*texts: str) -> None:
    """Raises SettingError if a text is to be inspected, or one of its layers."""
    if any(texts):
        raise SettingError(
            "attention: neither this nor logit-lens and histograms go with points of a graph; give "
            "--disc or --near alone"
        )


def show_points(
    run: str, disc: bool, near: str | None, out: str | None, kind: str, overwrite: bool
) -> None:
    """Print what the points are, the nearest nodes of one, or where the picture of all is.

    Raises:
        SettingError: there is no such node, or the picture cannot be written there.
    """
    points, console = load_points(run), Console(highlight=False, soft_wrap=True)
    if near is not None:
        for name, distance in points.near(near):
            console.print(f"{distance:8.3f}  {name}", markup=False)
    if disc:
        console.print(str(_pictured(run, points, out, kind, overwrite)), markup=False)
    if near is None and not disc:
        config = points.model.config
        for name, value in (
            ("nodes", f"{len(points.names):,}"),
            ("space", f"{config.geometry}, {config.dimension} dimensions"),
            ("curvature", f"{_curvature(points):.4g}"),
            ("parameters", f"{points.model.points.numel():,}"),
        ):
            console.print(f"{name:<12}{value}", markup=False)


def _curvature(points: NamedPoints) -> float:
    flat = points.model.config.geometry == "euclidean"
    return 0.0 if flat else -float(points.model.curvature())


def _pictured(run: str, points: NamedPoints, out: str | None, kind: str, overwrite: bool) -> Path:
    if kind not in ("png", "svg"):
        raise SettingError(f"format: {kind!r} is not one of png, svg")
    folder = Path(run if out is None else out)
    path = folder / f"disc.{kind}"
    refuse_existing(path, overwrite)
    from culm.graph.disc import disc_of, draw_disc  # matplotlib takes a second

    folder.mkdir(parents=True, exist_ok=True)
    flat = points.model.config.geometry == "euclidean"
    try:
        graph = graph_of(run, points)
    except SettingError as error:
        log.say(f"The picture has no edges: {error}")
        graph = None
    draw_disc(path, disc_of(points.model.disc(), flat), points.names, graph)
    return path


def graph_of(run: str, points: NamedPoints) -> Graph:
    """The graph that a run was trained on.

    Raises:
        SettingError: it is no run, or its file of edges is gone or has other nodes.
    """
    settings = read_settings(Path(run), GraphRun)
    if settings is None:
        raise SettingError(f"{run}: no run.yaml here names the file of edges; give the run")
    graph = settings.data.read()
    if graph.names != points.names:
        raise SettingError(f"{settings.data.path}: has other nodes than {run} was trained on")
    return graph


def show_reconstruction(run: str, as_json: bool) -> None:
    """Print the mean average precision and the mean rank of all nodes."""
    points = load_points(run)
    graph = graph_of(run, points)
    settings = read_settings(Path(run), GraphRun)
    assert settings is not None
    found = settings.eval.measure(points.model, graph)
    if as_json:
        print(json_text(found))
        return
    precision = found["map"]
    print(
        f"map: {precision['value']:.4f} ({precision['low']:.4f} - {precision['high']:.4f}) over "
        f"{precision['items']:,} nodes"
    )
    print(f"mean rank: {found['mean_rank']:.2f}")
