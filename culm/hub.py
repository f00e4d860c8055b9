"""The Hugging Face hub: one short question before its libraries, which retry for half a minute."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from culm.config import SettingError

SECONDS = (2.5, 10.0, 10.0, 10.0)  # to connect, to read, to write, for a free connection


def answers(name: str, kind: Literal["model", "dataset"], revision: str | None = None) -> bool:
    """Whether the hub has a model or dataset; False where it cannot be reached.

    Raises:
        SettingError: it is reached, and has none of this name or does not show it.
    """
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)  # type: ignore[arg-type]
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return False
        raise SettingError(f"{name}: {reason(error, kind)}") from None
    except (HTTPError, OSError):  # no network; the second is a hub that HF_HUB_OFFLINE forbids
        return False
    return True


def reason(error: HfHubHTTPError, kind: str) -> str:
    """What the hub refuses, and what to do."""
    if isinstance(error, GatedRepoError):
        return f"this {kind} is gated: accept its terms on its page, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError) or error.response.status_code == 401:
        return (
            f"no such file or folder, and no public {kind} of the hub; check the name, or run "
            "`hf auth login` if it is private"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the hub has no such revision of it; give one of those on its page"
    return f"the hub refuses: {str(error).strip().splitlines()[0]}"
