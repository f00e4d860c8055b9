"""The board's routes: its page, the list of runs, curves and details of those chosen."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Response
from pydantic import BaseModel, Field

import culm
from culm.files import json_text
from culm.serve.board.page.page import page
from culm.serve.board.reduce import Curve, reduced, smoothed, within
from culm.serve.board.run import Axis, Run
from culm.serve.board.runs import Runs
from culm.serve.clients import Clients
from culm.serve.http import error
from culm.serve.http.guard import Guard

MOST = 24  # runs that are shown at once
LONGEST = 300  # characters of a setting


class Shown(BaseModel):
    """What the charts show. run: keys, with the version that the page has, as KEY@VERSION. start,
    end: of x. buckets: points of a curve. smooth: share of the points that are averaged. log:
    whether x is logarithmic.
    """

    run: Annotated[list[str], Field(max_length=MOST)] = []
    x: Axis = "step"
    start: float | None = None
    end: float | None = None
    buckets: Annotated[int, Field(ge=2, le=2000)] = 500
    smooth: Annotated[float, Field(ge=0, le=0.5)] = 0
    log: bool = False


def build(runs: Runs, clients: Clients | None = None, local: bool = True) -> FastAPI:
    """The application, which reads the runs while it lives. local: as in `Guard`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with runs:
            yield

    app = FastAPI(
        title="Culm board", version=culm.__version__, lifespan=lifespan,
        docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
    )  # fmt: skip
    app.add_middleware(Guard, clients=clients or Clients(), local=local)
    error.install(app)

    # Not async: these run in threads, since a run may be being read.
    @app.get("/runs")
    def listed() -> Response:
        with runs.lock:
            names = runs.names()
            found = [{"name": names[run.key], **run.summary()} for run in runs]
        folders = list(map(str, runs.folders))
        return _json({"folders": folders, "complete": runs.complete, "runs": found})

    @app.get("/curves")
    def curves(shown: Annotated[Shown, Query()]) -> Response:
        found = {}
        for named in shown.run:
            key, _, version = named.partition("@")
            with runs.lock:
                run = runs.get(key)
                if run is None:
                    raise error.ApiError(404, "There is no such run on this board.", "not_found")
                if run.version != version:
                    found[key] = {"version": run.version, "curves": _curves(run, shown)}
        return _json(found)

    @app.get("/details")
    def details(run: Annotated[tuple[str, ...], Query(max_length=MOST)] = ()) -> Response:
        with runs.lock:
            chosen = [one for key in run if (one := runs.get(key)) is not None]
            samples = {one.key: one.samples for one in chosen}
            return _json({"settings": differences(chosen), "samples": samples})

    app.add_api_route("/", page, methods=["GET", "HEAD"])
    return app


def _json(values: Any) -> Response:
    return Response(json_text(values), media_type="application/json")


def _curves(run: Run, shown: Shown) -> dict[str, Any]:
    return {name: _points(curve, shown) for name, curve in run.curves(shown.x).items()}


def _points(curve: Curve, shown: Shown) -> dict[str, list[float]]:
    """Numbers of a curve for the page; low and high only where they say more than the mean."""
    if shown.log:
        curve = Curve(*(part[curve.x > 0] for part in curve))
    if shown.start is not None and shown.end is not None:
        curve = within(curve, shown.start, shown.end)
    curve = reduced(smoothed(curve, shown.smooth), shown.buckets, shown.log)
    found = {"x": curve.x.tolist(), "mean": _short(curve.mean)}
    if not np.array_equal(curve.low, curve.high) or shown.smooth:
        found |= {"low": _short(curve.low), "high": _short(curve.high)}
    return found


def _short(values: np.ndarray) -> list[float]:
    """Six digits are more than a screen shows."""
    return json.loads(f"[{','.join(f'{value:.6g}' for value in values.tolist())}]")


def differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The settings in which runs differ, except for their folder: {name, values by run}."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name != "folder")
    found = []
    for name in names:
        values = {run.key: repr(run.settings.get(name)) for run in runs}
        if len(set(values.values())) > 1:
            texts = {key: text[:LONGEST] for key, text in values.items()}
            found.append({"name": name, "values": texts})
    return found
