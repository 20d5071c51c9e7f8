"""Plain nested data as typed dataclasses: every mistake in it is told by its dotted key."""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from drbode.config.errors import BadInput, nearest, one_of, refuse, shown
from drbode.config.functions import is_function

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """Limits of a number: `low` and `high` are themselves allowed unless `open_low` is set."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False

    def holds(self, value: float) -> bool:
        if self.low is not None and (value <= self.low if self.open_low else value < self.low):
            return False
        return self.high is None or value <= self.high

    def describe(self, kind: str) -> str:
        """`kind`, such as 'a whole number', within these limits."""
        parts = []
        if self.low is not None:
            parts.append(f"above {self.low:g}" if self.open_low else f"at least {self.low:g}")
        if self.high is not None:
            parts.append(f"at most {self.high:g}")
        return f"{kind} {' and '.join(parts)}"


@dataclass(frozen=True, eq=False)  # hashable, as annotations have to be
class OneOf:
    """The names of a registry's entries; `or_function`: also a Python function, module:function."""

    names: Collection[str]
    or_function: bool = False

    def holds(self, value: str) -> bool:
        return value in self.names or (self.or_function and is_function(value))

    def describe(self, _kind: str) -> str:
        return one_of([*self.names, *(["module:function"] if self.or_function else [])])


def build(schema: type[T], tree: Mapping[str, Any]) -> T:
    """Plain nested data as an instance of the dataclass `schema`.

    Raises BadInput that names every unknown key, missing value, wrong type and value out of range.
    """
    problems: list[str] = []
    result = _convert(schema, tree, "", problems)
    refuse(problems)
    return typing.cast(T, result)


def _convert(kind: Any, value: Any, key: str, problems: list[str]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _convert_block(typing.cast(type, kind), value, key, problems)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(args[1], v, f"{key}.{k}", problems) for k, v in value.items()}
    if origin is list and isinstance(value, Sequence) and not isinstance(value, str):
        return [_convert(args[0], v, key, problems) for v in value]
    if origin is list and args[0] is not str and not isinstance(value, Mapping):
        return [_convert(args[0], value, key, problems)]  # stages=sft is stages=[sft]
    ok, result = _convert_scalar(kind, value)
    if not ok:
        near = nearest(str(value), _choices(kind))
        if _takes_text(kind) and isinstance(value, int | float):
            # Of a commit id such as 2714e31 the command line makes a number.
            near = f"; text that reads as a number is put in quotes: '{key}=\"...\"'"
        problems.append(f"{key}: expected {_describe(kind)}, got {shown(value)}{near}")
    return result


def _convert_block(kind: type, value: Any, key: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{key}: expected a block of keys, got {shown(value)}")
        return None
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [f.name for f in dataclasses.fields(kind)]
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in names:
            problems.append(f"{prefix}{name}: there is no such key{nearest(str(name), names)}")
    before = len(problems)
    parts = {}
    for name in names:
        if name not in value or value[name] == "???":
            problems.append(f"{prefix}{name}: no value is set; set {prefix}{name}=...")
        else:
            parts[name] = _convert(hints[name], value[name], prefix + name, problems)
    if len(problems) > before:
        return None
    try:
        return kind(**parts)
    except BadInput as error:
        problems.append(str(error))
        return None


def _convert_scalar(kind: Any, value: Any) -> tuple[bool, Any]:
    """Whether `value` is of the type `kind`, and the value as that type."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        ok, result = _convert_scalar(args[0], value)
        return ok and args[1].holds(result), result
    if origin in (typing.Union, types.UnionType):
        for option in args:
            ok, result = _convert_scalar(option, value)
            if ok:
                return True, result
        return False, value
    if origin is Literal:
        return value in args, value
    if origin is list:
        ok = isinstance(value, list) and all(_convert_scalar(args[0], v)[0] for v in value)
        return ok, value
    if origin is dict:
        ok = isinstance(value, Mapping) and all(
            _convert_scalar(args[1], v)[0] for v in value.values()
        )
        return ok, value
    if kind is Any:
        return True, value
    if kind is type(None):
        return value is None, None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return True, float(value)
    if kind is int and isinstance(value, bool):
        return False, value
    if kind is float:
        return isinstance(value, float) and value == value, value
    return isinstance(value, kind), value


def _describe(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return str(args[1].describe(_describe(args[0])))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(a) for a in args)
    if origin is Literal:
        return one_of(args)
    if origin is list:
        return f"a list of {_describe(args[0])}"
    if origin is dict:
        return f"{{name: {_describe(args[1])}}}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    names |= {Any: "value"}
    return "null" if kind is type(None) else names.get(kind, str(kind))


def _takes_text(kind: Any) -> bool:
    """Whether any text is of the type `kind`."""
    return kind is str or any(option is str for option in typing.get_args(kind))


def _choices(kind: Any) -> list[str]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return [str(a) for a in args]
    if origin is Annotated:
        return list(args[1].names) if isinstance(args[1], OneOf) else []
    return [choice for a in args for choice in _choices(a)]
