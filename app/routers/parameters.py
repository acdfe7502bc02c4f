"""Query parameters that several endpoints take, parsed strictly.

An id is decimal digits and nothing else: Python and Pydantic would also take ``1_000``, ``1.0`` and `` 1``, and a
caller who sends those has a bug that should not be answered with somebody's recommendations.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Query
from fastapi.openapi.models import Example
from pydantic import BeforeValidator, Field

from app.recommender import ListOptions
from app.rerank import Dials

MAX_ID = 2**63 - 1
MAX_DIGITS = 19
MAX_LIKED = 500
MAX_K = 100
_DIGITS = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"[0-9]{1,3}(\.[0-9]{1,17})?|\.[0-9]{1,17}")


def parse_id(text: object) -> int:
    """Parse a user or movie id: 1 to 2⁶³ − 1."""
    return _parse_whole_number(text, MAX_ID)


def parse_k(text: object) -> int:
    """Parse the length of a list: 1 to ``MAX_K``."""
    return _parse_whole_number(text, MAX_K)


def _parse_whole_number(text: object, highest: int) -> int:
    if isinstance(text, int):  # a default
        return text
    digits = isinstance(text, str) and len(text) <= MAX_DIGITS and _DIGITS.fullmatch(text)
    if not digits or not 1 <= int(digits.group()) <= highest:
        raise ValueError(f"expected a whole number from 1 to {highest}, in decimal digits, got {_shorten(text)}")
    return int(digits.group())


def parse_liked(values: object) -> list[int]:
    """Parse comma-separated ids, dropping repetitions; the parameter itself may be repeated, and may be empty."""
    assert isinstance(values, list)
    texts = ",".join(filter(None, values))
    ids = list(dict.fromkeys(parse_id(text) for text in texts.split(","))) if texts else []
    if len(ids) > MAX_LIKED:
        raise ValueError(f"expected at most {MAX_LIKED} different ids, got {len(ids)}; send the most telling ones")
    return ids


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}… ({len(text)} characters)"


def parse_flag(text: object) -> bool:
    """Parse ``true`` or ``false``, and nothing else."""
    if isinstance(text, bool):  # a default
        return text
    if text not in ("true", "false"):
        raise ValueError(f"expected true or false, got {_shorten(text)}")
    return text == "true"


def parse_dial(text: object) -> float:
    """Parse a number from 0 to 1 in plain decimals."""
    if isinstance(text, float):  # a default
        return text
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text) or float(text) > 1:
        raise ValueError(f"expected a number from 0 to 1, such as 0.3, got {_shorten(text)}")
    return float(text)


_EXAMPLE: dict[str, Example] = {"user 1": {"value": 1}}  # on the parameter: Swagger UI fills in no schema example
# The bounds stand inside the parser, for the documentation: the parser has already refused everything else.
UserId = Annotated[
    int,
    Field(ge=1),
    BeforeValidator(parse_id),
    Query(description="A user of the training data.", json_schema_extra={"format": "int64"}, openapi_examples=_EXAMPLE),
]
K = Annotated[
    int,
    Field(ge=1, le=MAX_K),
    BeforeValidator(parse_k),
    Query(description="How many movies to list; fewer come back where fewer are left."),
]
# FastAPI has no word for "form, explode: false", so the parameter is hidden from its schema and described by hand.
Liked = Annotated[list[int], BeforeValidator(parse_liked), Query(include_in_schema=False)]
LIKED_IN_OPENAPI: dict[str, Any] = {
    "name": "liked",
    "in": "query",
    "required": False,
    "description": f"Movies that they like, comma-separated, at most {MAX_LIKED}. Absent or empty: popular movies.",
    "style": "form",
    "explode": False,
    "schema": {"type": "array", "items": {"type": "integer", "format": "int64", "minimum": 1}, "maxItems": MAX_LIKED},
    "example": [1, 2, 3],
}


Flag = Annotated[bool, BeforeValidator(parse_flag)]
Dial = Annotated[float, Field(ge=0, le=1), BeforeValidator(parse_dial)]


async def list_options(
    ranker: Annotated[
        Flag, Query(description="Let the second stage order the list, where the version has one.")
    ] = True,
    novelty: Annotated[Dial, Query(description="Move the list towards movies that few people know.")] = 0.0,
    diversity: Annotated[Dial, Query(description="Move it towards movies that differ from each other.")] = 0.0,
    calibrate: Annotated[Dial, Query(description="Move its genres towards the mix that the user likes.")] = 0.0,
    explain: Annotated[Flag, Query(description="Say for each movie why it is listed.")] = False,
) -> ListOptions:
    """Collect what every list endpoint takes; a coroutine, because others are sent to a thread."""
    return ListOptions(ranker, Dials(novelty, diversity, calibrate), explain)


Options = Annotated[ListOptions, Depends(list_options)]
