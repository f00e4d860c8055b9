"""Who may ask, and how much: API keys with a name, a priority and limits."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import PositiveInt, model_validator

from culm.config import Config, SettingError
from culm.serve.refusal import RateLimited

MINUTE = 60.0


class Limits(Config):
    """What one client may use; None: any amount.

    requests_per_minute, tokens_per_minute: a client that was idle may use a minute's share at once.
        Tokens are those of prompts and answers. parallel: requests that wait or run at once.
    priority: a higher one is served first and may interrupt lower ones.
    """

    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    parallel: PositiveInt | None = None
    priority: int = 0


class KeyConfig(Config):
    """One API key: where it is read from, and its limits.

    name: for the log; it must not tell the key. file, env: a file, or a variable of the
        environment, that has the key alone. A key is never written into a settings file.
    """

    name: str
    file: str | None = None
    env: str | None = None
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _one_place(self) -> KeyConfig:
        if (self.file is None) == (self.env is None):
            raise ValueError("file: give either file or env, which has the key")
        return self

    def read(self) -> str:
        """The key.

        Raises:
            SettingError: it is not there, or empty.
        """
        try:
            key = os.environ[self.env] if self.env else Path(str(self.file)).read_text("utf-8")
        except KeyError:
            raise SettingError(f"keys: {self.name}: there is no variable {self.env}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"keys: {self.name}: {self.file}: {error}") from None
        if not key.strip():
            raise SettingError(f"keys: {self.name}: the key is empty")
        return key.strip()


class Bucket:
    """An allowance that fills up at a constant rate, up to what a minute gives."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self.limit, self._clock = per_minute, clock
        self._left, self._at = float(per_minute), clock()

    @property
    def left(self) -> float:
        """What may be used now; less than 0 if more was used than allowed."""
        now = self._clock()
        filled = self._left + max(now - self._at, 0.0) * self.limit / MINUTE
        self._left, self._at = min(filled, float(self.limit)), now
        return self._left

    def use(self, amount: float) -> None:
        self._left = self.left - amount

    def wait(self, amount: float) -> float:
        """Seconds until so much may be used."""
        return max(amount - self.left, 0.0) * MINUTE / self.limit


class Client:
    """One client and what it has used.

    name: "" is anyone, where no key is needed. salt: keeps its prompts from those of others in the
    prefix cache.
    """

    def __init__(
        self,
        name: str = "",
        limits: Limits = Limits(),
        salt: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.limits, self.salt = name, limits, salt
        self.open = 0  # requests that wait or run
        each = (limits.requests_per_minute, limits.tokens_per_minute)
        self.requests, self.tokens = (Bucket(one, clock) if one else None for one in each)

    def admit(self, count: int) -> None:
        """Count requests that begin; each must `leave`.

        Raises:
            RateLimited: the client has used its share; the error says when there is more.
        """
        if self.limits.parallel is not None and self.open + count > self.limits.parallel:
            raise RateLimited(f"You may have {self.limits.parallel} requests at once.", 1)
        wait = self.requests.wait(count) if self.requests else 0.0
        if self.requests and count > self.requests.limit:
            raise RateLimited(f"You may have {self.requests.limit} requests a minute.", None)
        if self.requests and wait:
            text = f"You may have {self.requests.limit} requests a minute."
            raise RateLimited(text, math.ceil(wait))
        if self.tokens and (wait := self.tokens.wait(1)):
            raise RateLimited(f"You may have {self.tokens.limit} tokens a minute.", math.ceil(wait))
        if self.requests:
            self.requests.use(count)
        self.open += count

    def leave(self, count: int, tokens: int) -> None:
        """Count requests that end, and the tokens of their prompts and answers."""
        self.open -= count
        if self.tokens:
            self.tokens.use(tokens)

    def headers(self) -> dict[str, str]:
        """What is left, as OpenAI's API says it."""
        named = {"requests": self.requests, "tokens": self.tokens}
        return {
            f"x-ratelimit-{what}-{name}": value
            for name, bucket in named.items() if bucket
            for what, value in (
                ("limit", str(bucket.limit)),
                ("remaining", str(max(int(bucket.left), 0))),
                ("reset", f"{bucket.wait(bucket.limit):.3f}s"),
            )
        }  # fmt: skip


class Share:
    """What one query uses of its client's share, until it ends.

    Raises:
        RateLimited: as `Client.admit`.
    """

    def __init__(self, client: Client, count: int) -> None:
        client.admit(count)
        self._client, self._count = client, count

    def end(self, tokens: int) -> None:
        """The query has ended; only the first call counts. tokens: of its prompts and answers."""
        if self._count:
            self._client.leave(self._count, tokens)
        self._count = 0


class Clients:
    """All clients by their keys; without any, everyone may ask."""

    def __init__(self, keys: Iterable[tuple[str, Client]] = ()) -> None:
        """keys: pairs (key, client).

        Raises:
            SettingError: two clients have the same name or key.
        """
        self._keys = list(keys)
        self.anyone = Client()  # who asks where no key is needed
        for what, values in (
            ("name", [client.name for _, client in self._keys]),
            ("key", [key for key, _ in self._keys]),
        ):
            if len(set(values)) < len(values):
                raise SettingError(f"keys: two of them have the same {what}")

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return not self._keys

    def find(self, key: bytes) -> Client | None:
        """The client of a key; takes the same time whichever it is."""
        if self.open:
            return self.anyone
        found = None
        for known, client in self._keys:
            if hmac.compare_digest(key, known.encode()):
                found = client
        return found


def clients_of(keys: Iterable[KeyConfig], api_key: str | None = None) -> Clients:
    """The clients of a settings file. api_key: one more, without limits.

    Raises:
        SettingError: a key cannot be read, or two have the same name or key.
    """
    pairs = [(one.read(), one.name, one.limits) for one in keys]
    if api_key:
        pairs.append((api_key, "api-key", Limits()))
    return Clients(
        (key, Client(name, limits, hashlib.sha256(key.encode()).hexdigest()))
        for key, name, limits in pairs
    )
