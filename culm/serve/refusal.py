"""Errors of the service. A transport maps each class to a status of its own."""

from __future__ import annotations


class Refusal(Exception):
    """Base class; the message is written for the client.

    retry_seconds: after this time another try may succeed; None if unknown.
    """

    def __init__(self, message: str, retry_seconds: int | None = None) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class InvalidRequest(Refusal):
    """Retrying cannot help. field: the field of `Query` that is wrong, if it is a single one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ContextTooShort(InvalidRequest):
    """Prompt and answer together exceed the context of the model."""


class InvalidForm(InvalidRequest):
    """The form of the answer is not valid, not supported or too complex."""


class FormFailed(Refusal):
    """The form of an answer became too complex while it was written."""

    def __init__(self) -> None:
        super().__init__("The form of the answer became too complex; give a simpler one.")


class UnknownModel(Refusal):
    """No model or adapter has this name."""


class Overloaded(Refusal):
    """All slots and all places of the queue are taken."""

    def __init__(self) -> None:
        super().__init__("The server is busy; try again soon.", retry_seconds=2)


class RateLimited(Refusal):
    """The client has used its share."""


class TooSlow(Refusal):
    """A limit on time has passed. waiting: before the first token."""

    def __init__(self, seconds: float, waiting: bool) -> None:
        what = "The first token of the answer" if waiting else "The answer"
        super().__init__(f"{what} took more than {seconds:g} seconds.", 5 if waiting else None)
        self.waiting = waiting


class NotRead(Refusal):
    """The client does not read its answer, which would fill the memory."""

    def __init__(self) -> None:
        super().__init__("The answer was not read as fast as it was written.")


class ShuttingDown(Refusal):
    """No new requests are taken."""

    def __init__(self, retry_seconds: int | None = None) -> None:
        super().__init__("The server is shutting down.", retry_seconds)


class NotFinite(Refusal):
    """The model gave NaN instead of probabilities or vectors."""

    def __init__(self) -> None:
        super().__init__("The model gave no valid numbers; its weights may be damaged.")


class EngineStopped(Refusal):
    """The engine's thread has ended, and with it all that this process can do."""

    def __init__(self) -> None:
        super().__init__("The engine has stopped; the server must be restarted.", retry_seconds=30)


class NotReady(Refusal):
    """Requests failed one after the other; the next one that succeeds ends this state."""

    def __init__(self) -> None:
        super().__init__("The engine fails; other replicas should answer.", retry_seconds=5)


class EngineFailed(Refusal):
    """An error of the engine, which is in the log, ended the request."""

    def __init__(self) -> None:
        super().__init__("The server failed; its log says why.")
