"""Culm on Ray Serve: replicas of one model behind Ray's HTTP proxy, more of them when many ask.

    pip install '.[ray-serve]'
    CULM_MODEL=/models/books-chat CULM_API_KEY=SECRET serve run deploy.ray.serve:build replicas=4

Each replica is the application of `culm.serve.asgi`, with its engine and its queue; variables are
those of that module. All machines of a cluster have the model under the same path.
"""

from __future__ import annotations

import os

from ray import serve

from culm.serve.asgi import app

SLOTS = 8  # requests that a replica computes at once (`slots` of its settings)
VARIABLES = ("CULM_MODEL", "CULM_API_KEY", "CULM_NAME", "CULM_SERVE_CONFIG", "XDG_CACHE_HOME")


@serve.deployment
@serve.ingress(app)  # a function: each replica calls it, and so loads the model, when it starts
class Culm:
    """One replica."""


def build(arguments: dict[str, str]) -> serve.Application:
    """The application. arguments: replicas, the maximum; gpus of each, 0 by default; cpus, 4.

    Ray adds a replica when those that run have more than `SLOTS` requests each.
    """
    given = {"replicas": 4.0, "gpus": 0.0, "cpus": 4.0}
    given |= {name: float(value) for name, value in arguments.items()}
    variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    scaling = {
        "min_replicas": 1, "max_replicas": int(given["replicas"]),
        "target_ongoing_requests": SLOTS,
    }  # fmt: skip
    actor = {
        "num_gpus": given["gpus"], "num_cpus": given["cpus"],
        "runtime_env": {"env_vars": variables},
    }  # fmt: skip
    return Culm.options(
        autoscaling_config=scaling, ray_actor_options=actor, max_ongoing_requests=4 * SLOTS,
        graceful_shutdown_timeout_s=90,
    ).bind()  # fmt: skip
