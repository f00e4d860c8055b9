"""The Hugging Face hub: one short question before its libraries, which retry for half a minute."""

from __future__ import annotations

from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from culm.config import SettingError

SECONDS = (2.5, 10.0, 10.0, 10.0)  # to connect, to read, to write, for a free connection


def commit_of(
    name: str, kind: Literal["model", "dataset"], revision: str | None = None
) -> str | None:
    """The commit that a revision of a model or dataset means now; None without the hub.

    A hub that does not say it, as some mirrors, gives an empty text.

    Raises:
        SettingError: it is reached, and has none of this name or does not show it.
    """
    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=SECONDS)  # type: ignore[arg-type]
    except HfHubHTTPError as error:
        if error.response.status_code >= 500:
            return None
        raise SettingError(f"{name}: {reason(error, kind)}") from None
    except HFValidationError as error:
        raise SettingError(f"{name}: not the name of a {kind}: {error}") from None
    except (HTTPError, OSError):  # no network; the second is a hub that HF_HUB_OFFLINE forbids
        return None
    return found.sha or ""


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
