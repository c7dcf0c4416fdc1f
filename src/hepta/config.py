"""Strict typed configuration: pydantic models, YAML files and ``key=value`` overrides.

Every field carries a *kind*, which decides what a change of it means for work already done:

- ``identity``: changes the result, so another value is another run;
- ``input``: a path (or list of paths) whose content changes the result, wherever it lies;
- ``budget``: more of the same, so the run goes on;
- ``operational``: workers, logging, places; never changes the result.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class HeptaError(Exception):
    """The user's input is wrong: one line says what was found, where, and the fix."""

    exit_code = 2


class MachineError(HeptaError):
    """The input is fine but the machine failed: disk full, no network, out of memory."""

    exit_code = 1


class Interrupted(HeptaError):
    """Stopped by a signal with its state saved; the message says how to go on."""

    exit_code = 130


def identity(default: Any = ..., doc: str = "", **limits: Any) -> Any:
    """A field that changes the result: another value is another run."""
    return Field(default, description=doc, json_schema_extra={"kind": "identity"}, **limits)


def input_path(default: Any = ..., doc: str = "", **limits: Any) -> Any:
    """A field naming input by path; its content's digest, not the path, is the identity."""
    return Field(default, description=doc, json_schema_extra={"kind": "input"}, **limits)


def preset_or_path(default: Any = ..., doc: str = "", **limits: Any) -> Any:
    """As ``input_path``, but the name of a model's preset means the preset, whatever lies in the working directory."""
    return Field(default, description=doc, json_schema_extra={"kind": "input", "presets": True}, **limits)


def budget(default: Any = ..., doc: str = "", **limits: Any) -> Any:
    """A field that buys more of the same: a larger value goes on with the same run."""
    return Field(default, description=doc, json_schema_extra={"kind": "budget"}, **limits)


def operational(default: Any = ..., doc: str = "", **limits: Any) -> Any:
    """A field that never changes the result: workers, logging, places."""
    return Field(default, description=doc, json_schema_extra={"kind": "operational"}, **limits)


class Config(BaseModel):
    """Base of every config: unknown keys are errors, fields are documented and tagged."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), frozen=True)

    @classmethod
    def alternatives(cls) -> "dict[tuple[str, str], type[Config]]":
        """Other classes of a verb's keys, by the key and value that choose them; none, as a rule."""
        return {}

    @classmethod
    def chosen(cls, values: Mapping[str, Any]) -> "type[Config]":
        """The class these values are for: itself, unless a verb's keys depend on one of them."""
        found = (other for (key, value), other in cls.alternatives().items() if values.get(key) == value)
        return next(found, cls)

    @classmethod
    def described(cls, prefix: str = "") -> list[str]:
        """A line for each key: name, default, meaning; nested keys by their dotted names."""
        lines: list[str] = []
        for name, field in cls.model_fields.items():
            value = None if field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(value, Config):
                lines += value.described(f"{prefix}{name}.")
                continue
            default = "" if field.is_required() else f" (default {value})"
            lines.append(f"{prefix}{name}{default}: {field.description}")
        return lines

    @classmethod
    def fields_of_kind(cls, kind: str) -> list[str]:
        """Names of the fields tagged ``kind``, in order of declaration."""
        names = []
        for name, field in cls.model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("kind") == kind:
                names.append(name)
        return names

    @classmethod
    def takes_presets(cls, name: str) -> bool:
        """Whether a field was made by ``preset_or_path``."""
        extra = cls.model_fields[name].json_schema_extra
        return isinstance(extra, dict) and bool(extra.get("presets"))


class StageConfig(Config):
    """What every verb that writes a directory shares."""

    output: Path = operational(doc="directory the result is written to")
    fresh: bool = operational(False, doc="move an existing output aside and start anew")


C = TypeVar("C", bound=Config)


class _Yaml(yaml.SafeLoader):
    """YAML 1.2 scalars (``1e-4`` a number, ``no`` and ``12:30`` words); duplicate keys are errors."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise HeptaError(f"line {line}: key {key!r} stands twice (first on line {seen[key]}); keep one")
            seen[key] = line
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML 1.2 text.

    Args:
        text: the document.
        where: file name for messages.

    Raises:
        HeptaError: not YAML, or a duplicate key; names the file and the line.
    """
    try:
        return yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise HeptaError(f"{where}: {line}not valid YAML: {getattr(error, 'problem', error)}") from None
    except HeptaError as error:
        raise HeptaError(f"{where}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping from a file.

    Raises:
        HeptaError: missing, unreadable, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeptaError(f"{path}: cannot be read: {error}") from None
    value = parse_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HeptaError(f"{path}: expected 'key: value' lines, found a {type(value).__name__}")
    return value


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """Turn ``["lr=1e-3", "checkpoint.every=50"]`` into a nested dict; values are YAML scalars."""
    result: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise HeptaError(f"override {pair!r}: expected key=value, for example lr=1e-3")
        try:
            value = yaml.load(text, Loader=_Yaml)
        except (yaml.YAMLError, HeptaError):
            value = text  # a sentence with a colon is a sentence
        *parents, leaf = key.split(".")
        place = result
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise HeptaError(f"override {pair!r}: {parent!r} was already given a plain value")
        place[leaf] = value
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge ``over`` into ``base``, nested mappings key by key."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = merge(old, value)
        result[key] = value
    return result


def nearest(word: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` for the closest known word, else the list of known words."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(known)


def _keys_at(cls: type[BaseModel], path: Sequence[Any]) -> list[str]:
    model: Any = cls
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        if field is None:
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))


def build(cls: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Validate ``values`` into a config.

    Raises:
        HeptaError: the first wrong key, its value, and the fix, in one line.
    """
    chosen: Any = cls.chosen(values)
    try:
        return chosen.model_validate(dict(values))
    except ValidationError as error:
        # a misspelt key explains a missing one, so it is told first
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        prefix = f"{where}: " if where else ""
        if first["type"] == "extra_forbidden":
            known = _keys_at(chosen, first["loc"][:-1])
            raise HeptaError(f"{prefix}unknown key {key!r}; {nearest(str(first['loc'][-1]), known)}") from None
        if first["type"] == "missing":
            option = key.replace("_", "-")
            raise HeptaError(f"{prefix}key {key!r} is missing; give it as --{option} or {key}=…") from None
        message = first["msg"].removeprefix("Value error, ")
        if not key:  # of several keys together: the message names them
            raise HeptaError(f"{prefix}{message}") from None
        raise HeptaError(f"{prefix}{key}: {message} (found {first['input']!r})") from None


def load_config(
    cls: type[C],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
) -> C:
    """Build a config from a YAML file, then ``key=value`` pairs, then options that are not None."""
    values: dict[str, Any] = read_yaml(file) if file else {}
    values = merge(values, parse_overrides(overrides))
    values = merge(values, {k: v for k, v in (options or {}).items() if v is not None})
    return build(cls, values, str(file) if file else "")
