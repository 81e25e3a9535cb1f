"""How a setting is described, checked, read and documented: the machinery under `eventbus.config` and `gateway.config`.

A settings class is a frozen dataclass whose fields are made by `setting` (one variable) or `group` (a settings class
inside another). The description of a variable lives in the field's metadata and nowhere else: reading, checking,
command-line flags and `docs/configuration.md` are all made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from eventbus.errors import ConfigError
from eventbus.kinds import Kind, SecretBytes, secret_problem

__all__ = [
    "PREFIX",
    "Entry",
    "Option",
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
_OPTION: Final = "option"
_GROUP: Final = "group"

T = TypeVar("T")


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
        if isinstance(value, bytes) and (problem := secret_problem(value)):
            return ConfigError(f"{self.env} {problem}", field=name)
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
        # Without the prefix, which makes every two names alike.
        bare = [known_name.removeprefix(PREFIX) for known_name in sorted(names)]
        close = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1, cutoff=0.6)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
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
