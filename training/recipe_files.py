"""Recipe files: TOML read into dataclasses that are complete and checked, and written again.

What recipes of all kinds share; `training.recipe` has those of runs, `training.decoder.recipe`
those of decoders.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .errors import RecipeError
from .schema.ranges import check_ranges

_ABSENT = "none"  # the value of an override that leaves a section out


def list_recipe_files(folder: Path) -> dict[str, str]:
    """Return the recipes of a folder: name to the header comment of its file."""
    return {
        path.stem: "\n".join(read_header(path.read_text(encoding="utf-8")))
        for path in sorted(folder.glob("*.toml"))
    }


def read_recipe_file(
    name_or_path: str | os.PathLike[str], overrides: Iterable[str], *, folder: Path, kind: str
) -> tuple[dict[str, Any], Path]:
    """Read the fields of a recipe, and change single ones.

    Parameters
    ----------
    name_or_path : str or path
        A path if it ends in ``.toml`` or names a folder, else a name of `list_recipe_files`.
    overrides : iterable of str
        See `apply_override`.
    folder : Path
        Of the shipped recipes.
    kind : str
        What they are called in messages: ``"recipe"``.

    Returns
    -------
    fields : dict
        Not yet checked.
    path : Path
        Where they are from.

    Raises
    ------
    RecipeError
        If there is no such recipe, it isn't TOML, or an override is of another form.
    """
    text = os.fspath(name_or_path)
    is_path = text.endswith(".toml") or os.path.basename(text) != text
    path = Path(text) if is_path else folder / f"{text}.toml"
    if not path.is_file():
        raise RecipeError(
            f"there is no {kind} {text!r}; shipped are {', '.join(list_recipe_files(folder))}; "
            f"or give the path of a .toml file."
        )
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}.") from error
    for override in overrides:
        apply_override(fields, override)
    return fields, path


def read_header(text: str) -> list[str]:
    """Return the lines of the comment that a file begins with, without their marks."""
    header = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").strip())
    return header


def apply_override(fields: dict[str, Any], override: str) -> None:
    """Change one field of nested ``fields``, by ``"section.field=value"`` with the value as TOML.

    Raises
    ------
    RecipeError
        If it isn't of this form, or there is no such section.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"override {override!r} has no '='; write it as 'train.epochs=3'.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, name = key.strip().split(".")
    place = fields
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise RecipeError(f"override {override!r}: {section!r} is a field, not a section.")
    if value == _ABSENT and isinstance(place.get(name), dict):
        del place[name]
    else:
        place[name] = value


def build_section(schema: type[Any], fields: Any, *, prefix: str, where: str) -> Any:
    """Return the dataclass ``schema`` filled with ``fields``, sections in it included.

    Parameters
    ----------
    schema : type
    fields : dict
    prefix : str
        Of the names of fields in messages: ``"model."``.
    where : str
        What the fields are from, for messages.

    Raises
    ------
    RecipeError
        Names a field that is unknown, missing, or of another type.
    """
    hints = get_type_hints(schema)
    section = prefix.rstrip(".") or "the recipe"
    if not isinstance(fields, dict):
        raise RecipeError(f"{where}: {section} is {fields!r}, expected a section of fields.")
    if unknown := sorted(set(fields) - set(hints)):
        raise RecipeError(
            f"{where}: unknown field {prefix}{unknown[0]}; "
            f"{section} has the fields {', '.join(hints)}."
        )
    missing = [n for n in hints if n not in fields and types.NoneType not in get_args(hints[n])]
    if missing:
        raise RecipeError(
            f"{where}: missing field {prefix}{missing[0]}; a recipe is complete, without defaults: "
            f"{section} has the fields {', '.join(hints)}."
        )
    values: dict[str, Any] = {}
    for name, hint in hints.items():
        field, value = prefix + name, fields.get(name)
        forms = [form for form in get_args(hint) or (hint,) if dataclasses.is_dataclass(form)]
        if value is None:
            values[name] = None
        elif forms:
            form = _form_of(forms, value, field=field, where=where)
            values[name] = build_section(form, value, prefix=f"{field}.", where=where)
        else:
            values[name] = _checked(hint, value, field=field, where=where)
    built = schema(**values)
    check_ranges(built, section)
    return built


def _form_of(forms: list[Any], fields: Any, *, field: str, where: str) -> Any:
    """Return the dataclass that the ``kind`` of a section names, of the forms it may have."""
    by_kind = {
        get_args(hints["kind"])[0]: form
        for form in forms
        if "kind" in (hints := get_type_hints(form))
    }
    if not by_kind or not isinstance(fields, dict):
        return forms[0]
    kind = fields.get("kind")
    if kind not in by_kind:
        raise RecipeError(
            f"{where}: field {field}.kind is {kind!r}, expected one of "
            f"{', '.join(map(repr, by_kind))}."
        )
    return by_kind[kind]


def _checked(hint: Any, value: Any, *, field: str, where: str) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            allowed = ", ".join(map(repr, get_args(hint)))
            raise RecipeError(f"{where}: field {field} is {value!r}, expected one of {allowed}.")
        return value
    allowed_types = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) is int and float in allowed_types:
        return float(value)
    if type(value) not in allowed_types:  # not isinstance: a bool is an int to it
        names = " or ".join(kind.__name__ for kind in allowed_types)
        raise RecipeError(
            f"{where}: field {field} is {value!r} ({type(value).__name__}), expected {names}."
        )
    return value


def flatten(fields: dict[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    """Yield nested fields under dotted names."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def toml_section(section: str, fields: dict[str, Any]) -> list[str]:
    """Return the lines of a section, and of the sections in it."""
    lines = [f"[{section}]"]
    lines += [f"{n} = {toml_value(v)}" for n, v in fields.items() if not isinstance(v, dict)]
    for name, value in fields.items():
        if isinstance(value, dict):
            lines += ["", *toml_section(f"{section}.{name}", value)]
    return lines


def toml_value(value: str | bool | int | float) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
