"""What values a setting takes: how each kind is parsed, judged and shown."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, Protocol

from eventbus.errors import ConfigError

__all__ = [
    "Choice",
    "FileName",
    "Integer",
    "Judged",
    "Kind",
    "Listed",
    "Network",
    "NetworkKind",
    "Ratio",
    "SecretBytes",
    "Text",
    "check_secret",
    "secret_problem",
]

SECRET_BYTES_MIN: Final = 32

Network = IPv4Network | IPv6Network


class Kind(Protocol):
    """What values a setting takes."""

    @property
    def allowed(self) -> str:
        """The end of the sentence "it must be ..."."""
        ...

    def parse(self, text: str) -> object:
        """Convert the text of a variable; `accepts` judges the result. Raises: ValueError, ConfigError."""
        ...

    def accepts(self, value: object) -> bool: ...

    def show(self, value: Any) -> str:
        """The value as one would write it in the environment."""
        ...


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number in decimal digits, both ends included."""

    minimum: int
    maximum: int

    @property
    def allowed(self) -> str:
        return f"a whole number from {self.minimum} to {self.maximum}"

    def parse(self, text: str) -> int:
        # int() alone would also take underscores, blanks and digits of other scripts.
        if not re.fullmatch(r"-?[0-9]{1,18}", text, re.ASCII):
            raise ValueError(text)
        return int(text)

    def accepts(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.minimum <= value <= self.maximum

    def show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A decimal fraction, both ends included."""

    minimum: float
    maximum: float

    @property
    def allowed(self) -> str:
        return f"a number from {self.minimum:g} to {self.maximum:g}"

    def parse(self, text: str) -> float:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text, re.ASCII):
            raise ValueError(text)
        return float(text)

    def accepts(self, value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.minimum <= value <= self.maximum

    def show(self, value: Any) -> str:
        return f"{value:g}"


@dataclass(frozen=True, slots=True)
class Choice:
    """One word of an enum."""

    of: type[StrEnum]

    @property
    def allowed(self) -> str:
        return "one of " + ", ".join(self.of)

    def parse(self, text: str) -> StrEnum:
        return self.of(text)

    def accepts(self, value: object) -> bool:
        return isinstance(value, self.of)

    def show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Text:
    """A string that matches a pattern as a whole."""

    pattern: str
    allowed: str

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Judged:
    """A string of which a function says whether it will do."""

    allowed: str
    will_do: Callable[[str], bool]

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and self.will_do(value)

    def show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class FileName:
    """The name of a file, which is read when the settings are used."""

    allowed: str = "the name of a file"

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and value != "" and "\0" not in value

    def show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class NetworkKind:
    """An address or a CIDR block."""

    allowed: str = "an IP address or a CIDR block such as 10.0.0.0/8"

    def parse(self, text: str) -> Network:
        return ip_network(text)

    def accepts(self, value: object) -> bool:
        return isinstance(value, IPv4Network | IPv6Network)

    def show(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True, slots=True)
class Listed:
    """Items separated by commas; blanks around them do not count."""

    item: Kind

    @property
    def allowed(self) -> str:
        return f"a list, separated by commas, each {self.item.allowed}"

    def parse(self, text: str) -> tuple[object, ...]:
        return tuple(self.item.parse(part.strip()) for part in text.split(",") if part.strip())

    def accepts(self, value: object) -> bool:
        return isinstance(value, tuple) and all(self.item.accepts(part) for part in value)

    def show(self, value: Any) -> str:
        return ",".join(self.item.show(part) for part in value)


@dataclass(frozen=True, slots=True)
class SecretBytes:
    """Key material. It comes as text or from a file, and no message ever shows it."""

    allowed: str = f"a random secret of at least {SECRET_BYTES_MIN} bytes (make one with: openssl rand -hex 32)"

    def parse(self, text: str) -> bytes:
        return text.encode()

    def accepts(self, value: object) -> bool:
        return isinstance(value, bytes) and secret_problem(value) is None

    def show(self, value: Any) -> str:
        return "(hidden)"


def secret_problem(secret: bytes) -> str | None:
    """Why a secret cannot be used, without showing it; None for a good one."""
    if b"-----BEGIN" in secret:
        # A public key in the place of the shared secret would let everyone who knows it sign tokens.
        return "is a PEM key and no shared secret: give a public key as EVENTBUS_JWT_PUBLIC_KEY_FILES"
    if len(secret) < SECRET_BYTES_MIN:
        return f"has {len(secret)} bytes and needs at least {SECRET_BYTES_MIN} (make one with: openssl rand -hex 32)"
    return None


def check_secret(secret: bytes) -> None:
    """Check the shared secret of HS256. Raises: ConfigError: it is too short, or a PEM key."""
    if problem := secret_problem(secret):
        raise ConfigError(f"the JWT secret {problem}", field="jwt_secret")
