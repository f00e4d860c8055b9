"""Serverless containers: a folder from which one image is built, for AWS Lambda and Cloud Run.

On Lambda, the Lambda Web Adapter passes events on as HTTP requests, and streams the answers. On
Cloud Run and elsewhere the adapter does not run, and the image is a plain server.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

import culm
from culm.atomic import atomic
from culm.config import SettingError
from culm.convert import native
from culm.convert.export import size_of
from culm.convert.load import find_model, read
from culm.convert.weights import set_precision
from culm.dtype import dtype_of
from culm.files import refuse_nonempty
from culm.ship.target import TargetConfig, refuse_options

DOCKERFILE, SETTINGS = "Dockerfile", "serve.yaml"
PYTHON = "python:3.12.12-slim-bookworm"
ADAPTER = "public.ecr.aws/awsguru/aws-lambda-adapter:1.0.0"
IMAGE_GB, LIBRARIES_GB = 10.0, 1.6  # limit of an image; torch for CPUs and the rest of it


class Lambda(TargetConfig):
    """memory_mb: of the function, 10,240 at most; it also decides how many cores it has. seconds:
    of one answer, 900 at most.
    """

    kind: Literal["lambda"] = "lambda"
    memory_mb: int = Field(8192, ge=1024, le=10240)
    seconds: int = Field(300, ge=1, le=900)

    def write(self, source: str, out: Path, dtype: str, family: str) -> None:
        refuse_options("lambda", family=family)
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", out.name):
            raise SettingError(
                f"{out}: the folder names the image, in lower-case letters, digits, -, . and _"
            )
        refuse_nonempty(out, DOCKERFILE)
        with atomic(out, replaces=("lineage.json",)) as fresh:
            fresh.mkdir()
            _write_model(source, fresh / "model", dtype)
            self._check(size_of(fresh / "model") / 1e9)
            (fresh / DOCKERFILE).write_text(dockerfile(out.name), encoding="utf-8")
            (fresh / SETTINGS).write_text(self._settings(), encoding="utf-8")
            (fresh / "README.md").write_text(self._card(out.name), encoding="utf-8")

    def _check(self, weights_gb: float) -> None:
        if weights_gb + LIBRARIES_GB > IMAGE_GB:
            raise SettingError(
                f"--for lambda: {weights_gb:.1f} GB of weights, and an image has {IMAGE_GB:.0f} GB "
                "at most; quantise the model first"
            )
        if 1.2 * weights_gb + 0.8 > self.memory_mb / 1024:
            raise SettingError(
                f"--for.memory_mb: {self.memory_mb} is too little for {weights_gb:.1f} GB of "
                "weights and the process; a function has 10240 at most, so quantise the model first"
            )

    def _settings(self) -> str:
        # A function gets one request at a time, so nothing waits.
        values = {
            "host": "0.0.0.0", "slots": 1, "waiting": 4, "answer_seconds": float(self.seconds),
            "keys": [{"name": "api-key", "env": "CULM_API_KEY"}],
        }  # fmt: skip
        return yaml.safe_dump(values, sort_keys=False)

    def _card(self, name: str) -> str:
        return f"""\
# {name}

One image for AWS Lambda and Google Cloud Run. First put the wheel of Culm into this folder
(`python -m build --wheel --outdir .` in its repository), then:

```bash
docker build --platform linux/amd64 --tag {name} .
```

AWS Lambda, with the image in ECR as `$IMAGE` and a role as `$ROLE`:

```bash
aws lambda create-function --function-name {name} --package-type Image \\
    --code "ImageUri=$IMAGE" --role "$ROLE" --timeout {self.seconds} \\
    --memory-size {self.memory_mb} --environment "Variables={{CULM_API_KEY=$KEY}}"
aws lambda create-function-url-config --function-name {name} --auth-type NONE \\
    --invoke-mode RESPONSE_STREAM
aws lambda add-permission --function-name {name} --statement-id url --principal '*' \\
    --action lambda:InvokeFunctionUrl --function-url-auth-type NONE
aws lambda add-permission --function-name {name} --statement-id invoke --principal '*' \\
    --action lambda:InvokeFunction --invoked-via-function-url
aws lambda put-function-concurrency --function-name {name} --reserved-concurrent-executions 4
```

The last line limits what a leaked key can cost.

Google Cloud Run, with the image in Artifact Registry:

```bash
gcloud run deploy {name} --image "$IMAGE" --memory {self.memory_mb}Mi --cpu 4 \\
    --timeout {self.seconds} --concurrency 1 --set-env-vars "CULM_API_KEY=$KEY" \\
    --allow-unauthenticated
```

Both are then a server of OpenAI's API, whose key is `$KEY`.
"""


def _write_model(source: str, folder: Path, dtype: str) -> None:
    """The model in bfloat16, or the precision that is given; a quantised one as it is."""
    found = find_model(source)
    if not dtype and native.is_model(found):
        shutil.copytree(found, folder)
        return
    model, tokenizer = read(source, "cpu", mtp=False)
    set_precision(model, dtype_of(dtype or "bfloat16"), source)
    model.dtype = dtype_of(dtype or "bfloat16")
    native.save(model, tokenizer, folder)


def dockerfile(name: str) -> str:
    """The image: libraries, the adapter for Lambda, the model. Only /tmp can be written there."""
    return f"""\
FROM {PYTHON}

COPY --from={ADAPTER} /lambda-adapter /opt/extensions/lambda-adapter

# Fast decoding on a CPU is compiled at the first start.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \\
    && rm -rf /var/lib/apt/lists/* && useradd --uid 1000 --create-home culm

WORKDIR /app
COPY . .
ARG CULM=culm-{culm.__version__}-py3-none-any.whl
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "./${{CULM}}"

ENV CULM_MODEL=/app/model CULM_NAME={name} CULM_SERVE_CONFIG=/app/{SETTINGS} \\
    PORT=8080 \\
    XDG_CACHE_HOME=/tmp/cache HF_HUB_OFFLINE=1 \\
    AWS_LWA_PORT=8080 AWS_LWA_INVOKE_MODE=response_stream \\
    AWS_LWA_READINESS_CHECK_PATH=/health/ready AWS_LWA_ASYNC_INIT=true
EXPOSE 8080
USER 1000
ENTRYPOINT ["python", "-m", "culm.serve.asgi"]
"""
