"""The rules for Dockerfiles find what they are for."""

import pytest
from dockerfile_rules import problems

GOOD = """\
ARG VERSION=3.12.1
# A comment
FROM python:${VERSION}-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends g++ \\
    && rm -rf /var/lib/apt/lists/*
COPY --from=example.org/tool:1.0.0 /tool /tool
USER 1000

FROM base AS serve
HEALTHCHECK CMD ["tool"]
ENTRYPOINT ["tool", "serve"]
"""


def test_a_good_file_has_no_problems() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("python:${VERSION}-slim", "python:latest", "not pinned"),
        ("python:${VERSION}-slim", "python", "not pinned"),
        ("tool:1.0.0", "tool", "not pinned"),
        ("USER 1000", "USER root", "runs as root"),
        ("USER 1000\n", "", "runs as root"),
        (" \\\n    && rm -rf /var/lib/apt/lists/*", "", "rm -rf"),
        ("--no-install-recommends ", "", "--no-install-recommends"),
        ("--yes ", "", "asks a question"),
        ("COPY --from=example.org/tool:1.0.0", "ADD https://example.org/tool", "ADD instead"),
        ('["tool", "serve"]', "tool serve", "not in exec form"),
        ('["tool", "serve"]', '["sh", "-c", "tool & tool"]', "starts a shell"),
        ('CMD ["tool"]', "CMD tool", "HEALTHCHECK is not"),
        ("USER 1000", "RUN pip install tool\nUSER 1000", "--no-cache-dir"),
        ("USER 1000", "RUN curl https://a.b/c | sh\nUSER 1000", "piped into a shell"),
    ],
)
def test_each_rule_can_fail(old: str, new: str, words: str) -> None:
    assert old in GOOD
    assert any(words in problem for problem in problems(GOOD.replace(old, new)))
