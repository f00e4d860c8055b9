"""The OpenAPI document of the server: what it declares is what it answers."""

import json
import shutil
import subprocess

import httpx2 as httpx
import pytest
from jsonschema import Draft202012Validator

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@pytest.fixture(scope="module")
def document(running):
    return httpx.get(f"{running.url}/openapi.json").json()


def operations(document):
    return [one for methods in document["paths"].values() for one in methods.values()]


def test_every_error_has_the_shape_that_is_declared(running, document):
    """FastAPI would declare status 422, which no answer has."""
    for one in operations(document):
        assert set(one["responses"]) == {"200", "default"}
    schema = document["components"]["schemas"]["ErrorBody"]
    parts = {"$defs": document["components"]["schemas"]}
    text = json.dumps({**schema, **parts}).replace("#/components/schemas/", "#/$defs/")
    validator = Draft202012Validator(json.loads(text))
    for answer in (
        httpx.get(f"{running.url}/nothing"),
        httpx.put(f"{running.url}/v1/models"),
        httpx.get(f"{running.url}/v1/models/other"),
        httpx.post(f"{running.url}/v1/completions", json={}),
        httpx.post(f"{running.url}/v1/completions", content=b"x"),
        httpx.post(f"{running.url}/v1/embeddings", json={"model": "other", "input": "x"}),
        httpx.get(f"{running.url}/", headers={"host": "evil.example"}),
    ):
        assert answer.status_code >= 400
        validator.validate(answer.json())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("schemathesis"), reason="needs schemathesis")
def test_schemathesis_finds_no_fault(running, document, tmp_path):
    for name, schema in document["components"]["schemas"].items():
        fields = schema.get("properties", {}) if name.endswith("Request") else {}
        if "model" in fields:  # others would get no further than status 404
            fields["model"] = {"type": "string", "const": "reciter"}
        for limit in set(LIMITS) & set(fields):
            fields[limit] = {"type": "integer", "minimum": 1, "maximum": 5}
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(document))
    checks = (
        "not_a_server_error,response_schema_conformance,content_type_conformance,"
        "response_headers_conformance,status_code_conformance"
    )
    done = subprocess.run(
        ["schemathesis", "run", path, "--url", running.url, "--phases", "coverage,fuzzing",
         "--max-examples", "60", "--checks", checks, "--seed", "2", "--max-time", "170",
         "--request-timeout", "20"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
