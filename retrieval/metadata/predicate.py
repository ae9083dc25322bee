"""Predicates: what a stranger may ask of metadata columns, and nothing else.

duckdb parses a predicate into a tree. The tree is walked here, and written as SQL anew: only what
this file knows how to write is ever executed. What it doesn't know is refused by name, whatever a
later version of duckdb adds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import FilterError

_COMPARISONS = {
    "COMPARE_EQUAL": "=",
    "COMPARE_NOTEQUAL": "<>",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "<=",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_DISTINCT_FROM": "IS DISTINCT FROM",
    "COMPARE_NOT_DISTINCT_FROM": "IS NOT DISTINCT FROM",
}
_CONJUNCTIONS = {"CONJUNCTION_AND": " AND ", "CONJUNCTION_OR": " OR "}
_OPERATORS = {
    "OPERATOR_NOT": "(NOT {})",
    "OPERATOR_IS_NULL": "({} IS NULL)",
    "OPERATOR_IS_NOT_NULL": "({} IS NOT NULL)",
}
_INFIX = ("+", "-", "*", "/", "//", "%", "||", "~~", "!~~", "~~*", "!~~*", "~~~")
FUNCTIONS = (
    *("lower", "upper", "trim", "length", "strlen", "nullif"),
    *("contains", "prefix", "starts_with", "suffix", "ends_with"),
    *("regexp_matches", "regexp_full_match"),
    *("like_escape", "not_like_escape", "ilike_escape", "not_ilike_escape"),
    *("abs", "floor", "ceil", "round", "sqrt", "ln", "greatest", "least", "isnan"),
)
TYPES = (
    *("boolean", "tinyint", "smallint", "integer", "bigint", "hugeint"),
    *("utinyint", "usmallint", "uinteger", "ubigint", "float", "double", "decimal"),
    *("varchar", "date", "timestamp"),
)
_TYPE_NAMES = {
    **{name: name for name in TYPES},
    **{"bool": "boolean", "int": "integer", "int4": "integer", "int8": "bigint", "long": "bigint"},
    **{"real": "float", "float4": "float", "float8": "double", "numeric": "decimal"},
    **{"text": "varchar", "string": "varchar"},
}
_INTEGER = re.compile(r"[0-9]+(_[0-9]+)*")
_NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_PLACE = ("class", "type", "alias", "query_location", "query_location_length", "qualified_name")


@dataclass(frozen=True)
class Predicate:
    """A predicate that may be executed.

    Parameters
    ----------
    sql : str
        Written by this module alone.
    columns : tuple of str
        The metadata columns that it looks at, as they are spelled in the index.
    """

    sql: str
    columns: tuple[str, ...]


def predicate_of(tree: dict[str, Any], columns: Sequence[str]) -> Predicate:
    """Write the SQL of a predicate that duckdb's ``json_serialize_sql`` took apart.

    Parameters
    ----------
    tree : dict
        Its ``where_clause``.
    columns : sequence of str
        The metadata columns that exist.

    Raises
    ------
    FilterError
        If it holds an expression, a function or a type that isn't allowed, or names no column.
    """
    used: dict[str, None] = {}
    sql = _Writer(columns, used).write(tree)
    return Predicate(sql, tuple(used))


def quote(name: str) -> str:
    """Return a column's name as SQL writes it."""
    return '"' + name.replace('"', '""') + '"'


def find_column(name: str, columns: Sequence[str]) -> str | None:
    """Return how a column is spelled: exactly so, or else the one that differs by case alone.

    Raises
    ------
    FilterError
        If several differ by case alone.
    """
    if name in columns:
        return name
    alike = [each for each in columns if each.casefold() == name.casefold()]
    if len(alike) > 1:
        raise FilterError(
            f"the metadata columns {' and '.join(alike)} differ by case alone, and {name!r} could "
            f"be either: spell it as it stands, in double quotes."
        )
    return alike[0] if alike else None


class _Writer:
    """Walks a tree; every method returns SQL, or raises."""

    def __init__(self, columns: Sequence[str], used: dict[str, None]) -> None:
        self._columns, self._used = columns, used

    def write(self, node: Any) -> str:
        kind = node.get("class") if isinstance(node, dict) else None
        writer = {
            "COLUMN_REF": self._column,
            "CONSTANT": self._constant,
            "COMPARISON": self._comparison,
            "CONJUNCTION": self._conjunction,
            "BETWEEN": self._between,
            "OPERATOR": self._operator,
            "FUNCTION": self._function,
            "CAST": self._cast,
        }.get(str(kind))
        if writer is None:
            raise _refusal(f"an expression of class {kind}")
        return writer(node)

    def _column(self, node: dict[str, Any]) -> str:
        (names,) = _parts(node, "column_names")
        if len(names) != 1:
            raise _refusal(f"the qualified name {'.'.join(names)}; name the column alone")
        column = find_column(names[0], self._columns)
        if column is None:
            raise FilterError(
                f"where names {names[0]!r}, and the index has no such metadata column; it has "
                f"{', '.join(self._columns) or 'none at all'}."
            )
        self._used[column] = None
        return quote(column)

    def _constant(self, node: dict[str, Any]) -> str:
        (literal,) = _parts(node, "literal")
        kind, text = literal.get("kind"), str(literal.get("text"))
        if kind == "STRING" and "\0" not in text:
            return "'" + text.replace("'", "''") + "'"
        if kind == "INTEGER" and _INTEGER.fullmatch(text):
            return text
        if kind == "NUMERIC" and _NUMBER.fullmatch(text):
            return text
        if kind == "BOOLEAN" and text in ("true", "false"):
            return text
        if kind == "NULL_LITERAL":
            return "NULL"
        raise _refusal(f"a constant of kind {kind}")

    def _comparison(self, node: dict[str, Any]) -> str:
        left, right = _parts(node, "left", "right")
        operator = _known(_COMPARISONS, node["type"], "the comparison")
        return f"({self.write(left)} {operator} {self.write(right)})"

    def _conjunction(self, node: dict[str, Any]) -> str:
        (children,) = _parts(node, "children")
        word = _known(_CONJUNCTIONS, node["type"], "the conjunction")
        return "(" + word.join(self.write(child) for child in children) + ")"

    def _between(self, node: dict[str, Any]) -> str:
        value, lower, upper = (self.write(each) for each in _parts(node, "input", "lower", "upper"))
        return f"({value} BETWEEN {lower} AND {upper})"

    def _operator(self, node: dict[str, Any]) -> str:
        (children,) = _parts(node, "children")
        written = [self.write(child) for child in children]
        if node["type"] == "COMPARE_IN" and len(written) > 1:
            return f"({written[0]} IN ({', '.join(written[1:])}))"
        if node["type"] == "OPERATOR_COALESCE":
            return f"coalesce({', '.join(written)})"
        form = _known(_OPERATORS, node["type"], "the operator")
        if len(written) != 1:
            raise _refusal(f"the operator {node['type']} with {len(written)} operands")
        return form.format(*written)

    def _function(self, node: dict[str, Any]) -> str:
        name, arguments, *_ = _parts(node, "function_name", "arguments", "is_operator", "order_bys")
        is_infix = name in _INFIX and len(arguments) == 2
        is_sign = name in ("+", "-") and len(arguments) == 1
        if not (is_infix or is_sign or name.lower() in FUNCTIONS):
            raise _refusal(f"the function {name}", ("coalesce", *FUNCTIONS))
        if node["order_bys"].get("orders"):
            raise _refusal(f"an order within {name}")
        if any(argument["name"] for argument in arguments):
            raise _refusal(f"a named argument of {name}")
        written = [self.write(argument["expression"]) for argument in arguments]
        if is_infix:
            return f"({written[0]} {name} {written[1]})"
        if is_sign:
            return f"({name} {written[0]})"
        return f"{name.lower()}({', '.join(written)})"

    def _cast(self, node: dict[str, Any]) -> str:
        child, target, is_try = _parts(node, "child", "type_expr", "try_cast")
        name, sizes = _parts(target, "type_name", "children")
        plain = _TYPE_NAMES.get(str(name).lower())
        if plain is None:
            raise _refusal(f"a cast to {str(name).lower()}", TYPES)
        if sizes:
            plain += "(" + ", ".join(self._constant(size) for size in sizes) + ")"
        return f"{'TRY_CAST' if is_try else 'CAST'}({self.write(child)} AS {plain})"


def _parts(node: dict[str, Any], *names: str) -> list[Any]:
    """Return what a node holds under these names; all else that it could hold has to be empty."""
    missing = [name for name in names if name not in node]
    if missing:
        raise _refusal(f"{node.get('class')} as this version of duckdb describes it")
    path = node.get("qualified_name", {}).get("path", [""])
    others = {key: value for key, value in node.items() if key not in (*names, *_PLACE)}
    filled = sorted(key for key, value in others.items() if value)
    if filled or len(path) != 1:
        kind = f"{node.get('class')} {node.get('function_name') or node.get('type')}"
        raise _refusal(f"{kind} with {', '.join(filled) or 'a qualified name'}")
    return [node[name] for name in names]


def _known(known: dict[str, str], name: str, what: str) -> str:
    if name not in known:
        raise _refusal(f"{what} {name}")
    return known[name]


def _refusal(what: str, allowed: Sequence[str] = ()) -> FilterError:
    rest = f"; allowed are {', '.join(allowed)}" if allowed else ""
    return FilterError(
        f"where holds {what}, which a predicate may not: it compares metadata columns and "
        f"constants, joined by AND, OR and NOT{rest}."
    )
