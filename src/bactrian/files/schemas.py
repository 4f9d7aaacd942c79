"""Values from outside against a schema: no type is quietly turned into another, and what is wrong is one line.

A schema is a pydantic model (or any type that pydantic knows) whose own configuration says how strict it is.
"""

import reprlib
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from bactrian.errors import InputError

Value = TypeVar("Value")


def validate(schema: TypeAdapter[Value], value: Any, where: str, kind: type[InputError], within: str = "") -> Value:
    """The value as its schema has it. Raises `kind`: `where`, then the first key that is wrong, `within` before it."""
    try:
        return schema.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    key = f"{within}{'.'.join(map(str, first['loc']))}"
    if first["type"] == "missing":
        raise kind(f"{where}: {key} is missing")
    message = first["msg"].removeprefix("Value error, ")
    raise kind(f"{where}: {key} is {reprlib.repr(first['input'])}: {message[0].lower() + message[1:]}")
