"""How a setting is described, checked, read and documented: the machinery under `eventbus.config` and `gateway.config`.

A settings class is a frozen dataclass whose fields are made by `setting` (one variable) or `group` (a settings class
inside another). The description of a variable lives in the field's metadata and nowhere else: reading, checking,
command-line flags and `docs/configuration.md` are all made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

from eventbus.errors import ConfigError

__all__ = [
    "PREFIX",
    "Choice",
    "Entry",
    "FileName",
    "Integer",
    "Kind",
    "Listed",
    "Network",
    "NetworkKind",
    "Option",
    "Ratio",
    "SecretBytes",
    "Text",
    "check",
    "entries",
    "group",
    "markdown_table",
    "read",
    "read_secret_file",
    "setting",
    "unknown_variables",
    "variables",
]

PREFIX: Final = "EVENTBUS_"
SECRET_BYTES_MIN: Final = 32
_OPTION: Final = "option"
_GROUP: Final = "group"

Network = IPv4Network | IPv6Network
T = TypeVar("T")


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


@dataclasses.dataclass(frozen=True, slots=True)
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


@dataclasses.dataclass(frozen=True, slots=True)
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


@dataclasses.dataclass(frozen=True, slots=True)
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


@dataclasses.dataclass(frozen=True, slots=True)
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


@dataclasses.dataclass(frozen=True, slots=True)
class FileName:
    """The name of a file, which is read when the settings are used."""

    allowed: str = "the name of a file"

    def parse(self, text: str) -> str:
        return text

    def accepts(self, value: object) -> bool:
        return isinstance(value, str) and value != "" and "\0" not in value

    def show(self, value: Any) -> str:
        return str(value)


@dataclasses.dataclass(frozen=True, slots=True)
class NetworkKind:
    """An address or a CIDR block."""

    allowed: str = "an IP address or a CIDR block such as 10.0.0.0/8"

    def parse(self, text: str) -> Network:
        return ip_network(text)

    def accepts(self, value: object) -> bool:
        return isinstance(value, IPv4Network | IPv6Network)

    def show(self, value: Any) -> str:
        return str(value)


@dataclasses.dataclass(frozen=True, slots=True)
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


@dataclasses.dataclass(frozen=True, slots=True)
class SecretBytes:
    """Key material. It comes as text or from a file, and no message ever shows it."""

    minimum_bytes: int = SECRET_BYTES_MIN

    @property
    def allowed(self) -> str:
        return (
            f"a random secret of at least {self.minimum_bytes} bytes and no PEM key "
            "(make one with: openssl rand -hex 32)"
        )

    def parse(self, text: str) -> bytes:
        return text.encode()

    def accepts(self, value: object) -> bool:
        # A public key in the place of the shared secret would let everyone who knows it sign tokens.
        return isinstance(value, bytes) and len(value) >= self.minimum_bytes and not value.startswith(b"-----BEGIN")

    def show(self, value: Any) -> str:
        return "(hidden)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """The description of one variable.

    Attributes:
        env: its name in the environment.
        help: one sentence for people.
        kind: what it takes.
        unit: of the number, empty for none.
        secret: also readable from the file that `<env>_FILE` names, and never shown.
        default_text: what the docs call the default, where the value itself does not say it.
    """

    env: str
    help: str
    kind: Kind
    unit: str = ""
    secret: bool = False
    default_text: str | None = None

    def refuse(self, value: object, name: str) -> ConfigError:
        """The error for `value` in the field `name`: one sentence with the variable, the value and what is allowed."""
        if self.secret:
            return ConfigError(f"{self.env} is not usable: it must be {self.kind.allowed}", field=name)
        shown = repr(value) if isinstance(value, str) else f"'{self._show(value)}'"
        if len(shown) > 100:
            shown = shown[:100] + "...'"
        return ConfigError(f"{self.env} is {shown}: it must be {self.kind.allowed}", field=name)

    def _show(self, value: object) -> str:
        try:
            return self.kind.show(value)
        except (TypeError, ValueError):
            return repr(value)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One setting of a class or of a class inside it: the field's name, its description and its default."""

    name: str
    option: Option
    default: object

    @property
    def by_file(self) -> bool:
        """Whether the command line takes the name of a file: arguments are visible to everyone on a machine."""
        return isinstance(self.option.kind, SecretBytes)

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        words = self.option.env.removeprefix(PREFIX).lower().replace("_", "-")
        return f"--{words}-file" if self.by_file else f"--{words}"

    @property
    def parameter(self) -> str:
        """The name under which `read` takes the flag's value."""
        return f"{self.name}_file" if self.by_file else self.name

    @property
    def default_text(self) -> str:
        """The default as the docs show it; empty for none."""
        if self.option.default_text is not None:
            return self.option.default_text
        return "" if self.default is None else self.option.kind.show(self.default)


def setting(
    default: T,
    env: str,
    help: str,
    kind: Kind,
    *,
    unit: str = "",
    secret: bool = False,
    default_text: str | None = None,
) -> T:
    """Declare a field that is read from the variable `EVENTBUS_<env>`. A default of None makes it optional."""
    option = Option(env=PREFIX + env, help=help, kind=kind, unit=unit, secret=secret, default_text=default_text)
    return dataclasses.field(default=default, repr=not secret, metadata={_OPTION: option})


def group(kind: type[T]) -> T:
    """Declare a field that holds another settings class."""
    return dataclasses.field(default_factory=kind, metadata={_GROUP: kind})


def entries(cls: type[Any]) -> Iterator[Entry]:
    """All settings of a class, groups opened, in the order of their declaration."""
    for field in dataclasses.fields(cls):
        if inner := field.metadata.get(_GROUP):
            yield from entries(inner)
        elif option := field.metadata.get(_OPTION):
            yield Entry(name=field.name, option=option, default=field.default)


def check(settings: Any) -> None:
    """Check every field of one settings object (not of its groups, which were checked when they were made).

    Raises:
        ConfigError: a value is not of the kind, or out of range; names the variable and what is allowed.
    """
    for field in dataclasses.fields(settings):
        option: Option | None = field.metadata.get(_OPTION)
        value = getattr(settings, field.name)
        inner = field.metadata.get(_GROUP)
        if inner is not None and not isinstance(value, inner):
            raise ConfigError(f"{field.name} must be {inner.__name__}, not {type(value).__name__}", field=field.name)
        if option is None or (value is None and field.default is None):
            continue
        if not option.kind.accepts(value):
            raise option.refuse(value, field.name)


def read(cls: type[T], env: Mapping[str, str], overrides: Mapping[str, object]) -> T:
    """Make a settings object from an environment and from values that stand above it (the command line's).

    Args:
        cls: the settings class.
        env: the environment; an empty variable counts as absent.
        overrides: by field name, also of fields in groups; None counts as absent, a string is parsed like a variable.
            `<field>_file` gives a secret by file.

    Raises:
        ConfigError: a value is wrong, a file cannot be read.
        TypeError: an override that no field has (a defect of the caller).
    """
    left = {name: value for name, value in overrides.items() if value is not None}
    made = _read(cls, env, left)
    if left:
        raise TypeError(f"{cls.__name__} has no setting {', '.join(sorted(left))}")
    return made


def _read(cls: type[T], env: Mapping[str, str], left: dict[str, object]) -> T:
    values: dict[str, object] = {}
    for field in dataclasses.fields(cast(Any, cls)):
        inner = field.metadata.get(_GROUP)
        option: Option | None = field.metadata.get(_OPTION)
        if field.name in left:
            given = left.pop(field.name)
            values[field.name] = _parsed(option, given, field.name) if option and isinstance(given, str) else given
        elif inner is not None:
            values[field.name] = _read(inner, env, left)
        elif option is not None:
            text = _text_of(option, field.name, env, left)
            if text is not None:
                values[field.name] = _parsed(option, text, field.name)
    return cls(**values)


def _text_of(option: Option, name: str, env: Mapping[str, str], left: dict[str, object]) -> str | None:
    if not option.secret:
        return env.get(option.env) or None
    if (given := left.pop(f"{name}_file", None)) is not None:
        return read_secret_file(str(given), variable=f"{option.env}_FILE", field=name)
    text, file = env.get(option.env), env.get(f"{option.env}_FILE")
    if text and file:
        raise ConfigError(f"{option.env} and {option.env}_FILE are both set: set one of them", field=name)
    return read_secret_file(file, variable=f"{option.env}_FILE", field=name) if file else text or None


def _parsed(option: Option, text: str, name: str) -> object:
    try:
        return option.kind.parse(text)
    except ValueError:
        # `from None`: the inner error repeats the text, which may be a secret.
        raise option.refuse(text, name) from None


def read_secret_file(name: str, *, variable: str, field: str | None = None) -> str:
    """Read a secret from a file, without the line break at its end, which editors and `openssl rand` put there.

    Raises:
        ConfigError: the file cannot be read or is not text; names `variable`.
    """
    try:
        text = Path(name).read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{variable} is {name!r}, which cannot be read: {error.strerror}", field=field) from None
    except ValueError:
        raise ConfigError(f"{variable} is {name!r}, which is not UTF-8 text", field=field) from None
    return text.rstrip("\r\n")


def unknown_variables(env: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Warnings for variables that look like settings and are none, each with the closest known name.

    Args:
        env: the environment.
        known: names, and prefixes that end in `*`.
    """
    names = {name for name in known if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in known if name.endswith("*"))
    lines = []
    for name in sorted(env):
        if not name.startswith(PREFIX) or name in names or (prefixes and name.startswith(prefixes)):
            continue
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}?" if close else ""
        lines.append(f"{name} is not a setting and is ignored{hint}")
    return lines


def variables(cls: type[Any]) -> Iterator[str]:
    """The names of all variables that a settings class reads."""
    for entry in entries(cls):
        yield entry.option.env
        if entry.option.secret:
            yield f"{entry.option.env}_FILE"


def markdown_table(settings: Iterable[Entry]) -> str:
    """A table of settings for the docs."""
    rows = ["| variable | default | allowed | what |", "|---|---|---|---|"]
    for entry in settings:
        option = entry.option
        name = f"`{option.env}`" + (f" or `{option.env}_FILE`" if option.secret else "")
        default = f"`{entry.default_text}`" if entry.default_text else "none"
        unit = f" {option.unit}" if option.unit else ""
        allowed = (option.kind.allowed + unit).replace("|", "\\|")
        rows.append(f"| {name} | {default} | {allowed} | {option.help} |")
    return "\n".join(rows) + "\n"
