"""What report.json's JSON Schema has against a document: the keywords that it uses, and an error for any other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

TYPES = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip
WORDS = {"$schema", "$defs", "title", "description", "default"}  # that demand nothing
UNDERSTOOD = {"$ref", "anyOf", "const", "enum", "type", "properties", "required", "additionalProperties", "items"}


@cache
def report_schema() -> dict[str, Any]:
    from exporter.report.document import Document

    return Document.model_json_schema(mode="serialization")


def complaints(value: Any, schema: Any = None, at: str = "report") -> Iterator[str]:
    """A line for each place where a value is not as a part of the schema (without one: the whole) says."""
    schema = report_schema() if schema is None else schema
    if unknown := set(schema) - WORDS - UNDERSTOOD:
        raise NotImplementedError(f"{at}: {unknown}")
    if "$ref" in schema:
        yield from complaints(value, report_schema()["$defs"][schema["$ref"].rpartition("/")[2]], at)
    if "anyOf" in schema and all(any(complaints(value, one, at)) for one in schema["anyOf"]):
        yield f"{at}: {value!r} is none of what it may be"
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        yield f"{at}: {value!r} is another value"
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at}: {value!r} is no {kind}"
    elif kind == "array":
        for index, one in enumerate(value):
            yield from complaints(one, schema["items"], f"{at}[{index}]")
    elif kind == "object":
        yield from _members(value, schema, at)


def _members(value: dict[str, Any], schema: dict[str, Any], at: str) -> Iterator[str]:
    known, others = schema.get("properties", {}), schema["additionalProperties"]
    yield from (f"{at}: {key} is missing" for key in schema.get("required", ()) if key not in value)
    for key, one in value.items():
        if key in known:
            yield from complaints(one, known[key], f"{at}.{key}")
        elif others is False:
            yield f"{at}: {key} is not known"
        elif others is not True:
            yield from complaints(one, others, f"{at}.{key}")
