"""The OpenAPI schema of the server."""

import warnings

from reciter import reciter

from culm.serve.http.app import build


def test_every_operation_has_a_name_of_its_own() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = build(reciter(), "reciter").openapi()["paths"]
    names = [operation["operationId"] for path in paths.values() for operation in path.values()]
    assert len(names) == len(set(names)) >= 10
    assert set(paths["/health"]) == {"get"}
