"""Query parameters, parsed strictly, and the models that collect them for each endpoint.

An id is decimal digits and nothing else: Python and Pydantic would also take ``1_000``, ``1.0`` and `` 1``, and a
caller who sends those has a bug that should not be answered with somebody's recommendations.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

from app.cache import Part
from app.filters import Filter
from app.recommender import PLAIN, ListOptions
from app.rerank import Dials
from app.schemas import MAX_EXCLUDED, MAX_GENRES, MAX_ID, MAX_K, MAX_YEAR, OPTIONS
from app.title_names import query_words

MAX_DIGITS = 19
MAX_LIKED = 500
MAX_QUERY = 200
_DIGITS = re.compile(r"[0-9]+")
_DECIMAL = re.compile(r"([0-9]{1,3}(\.[0-9]{1,30})?|\.[0-9]{1,30})([eE]-?[0-9]{1,3})?")  # as programs write floats, too
COMMA_SEPARATED = ("liked", "exclude")  # OpenAPI's "form, explode: false", for which FastAPI has no word


def parse_id(text: object) -> int:
    """Parse a user or movie id: 1 to 2⁶³ − 1."""
    return _parse_whole_number(text, MAX_ID)


def parse_k(text: object) -> int:
    """Parse the length of a list: 1 to ``MAX_K``."""
    return _parse_whole_number(text, MAX_K)


def parse_year(text: object) -> int:
    return _parse_whole_number(text, MAX_YEAR)


def _parse_whole_number(text: object, highest: int) -> int:
    digits = isinstance(text, str) and len(text) <= MAX_DIGITS and _DIGITS.fullmatch(text)
    if not digits or not 1 <= int(digits.group()) <= highest:
        raise ValueError(f"expected a whole number from 1 to {highest}, in decimal digits, got {_shorten(text)}")
    return int(digits.group())


def parse_liked(values: object) -> tuple[int, ...]:
    """Parse comma-separated ids, dropping repetitions; the parameter itself may be repeated, and may be empty."""
    return _parse_ids(values, MAX_LIKED, "; send the most telling ones")


def parse_excluded(values: object) -> tuple[int, ...]:
    """Parse comma-separated ids as ``parse_liked`` does, in rising order, which makes no difference."""
    return tuple(sorted(_parse_ids(values, MAX_EXCLUDED)))


def _parse_ids(values: object, most: int, remedy: str = "") -> tuple[int, ...]:
    assert isinstance(values, list)
    texts = ",".join(filter(None, values)).split(",") if any(values) else []
    if len(texts) > most:
        raise ValueError(f"expected at most {most} ids, got {len(texts)}{remedy}")
    return tuple(dict.fromkeys(map(parse_id, texts)))


def parse_genres(values: object) -> tuple[str, ...]:
    """Parse genres in any order; which there are is known to the model, not here."""
    assert isinstance(values, list)
    if len(values) > MAX_GENRES:
        raise ValueError(f"expected at most {MAX_GENRES} genres, got {len(values)}")
    return tuple(sorted({value.casefold() for value in values if value}))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}… ({len(text)} characters)"


def parse_flag(text: object) -> bool:
    """Parse ``true`` or ``false``, and nothing else."""
    if text not in ("true", "false"):
        raise ValueError(f"expected true or false, got {_shorten(text)}")
    return text == "true"


def parse_dial(text: object) -> float:
    """Parse a number from 0 to 1 in plain decimals."""
    if not isinstance(text, str) or not _DECIMAL.fullmatch(text) or float(text) > 1:
        raise ValueError(f"expected a number from 0 to 1, such as 0.3, got {_shorten(text)}")
    return float(text)


def parse_query_text(text: object) -> str:
    """Parse what a title is searched by: something with a letter or a digit."""
    if not isinstance(text, str) or len(text) > MAX_QUERY or not query_words(text):
        raise ValueError(f"expected a title or a part of one, up to {MAX_QUERY} characters, got {_shorten(text)}")
    return text


# The bounds stand behind the parser, for the documentation: the parser has already refused everything else.
_INT64 = {"format": "int64"}
Id = Annotated[int, Field(ge=1, json_schema_extra=_INT64), BeforeValidator(parse_id)]
K = Annotated[int, Field(ge=1, le=MAX_K), BeforeValidator(parse_k)]
Year = Annotated[int, Field(ge=1, le=MAX_YEAR), BeforeValidator(parse_year)]
Flag = Annotated[bool, BeforeValidator(parse_flag)]
Dial = Annotated[float, Field(ge=0, le=1), BeforeValidator(parse_dial)]
_Ids = tuple[Annotated[int, Field(ge=1, json_schema_extra=_INT64)], ...]
Liked = Annotated[_Ids, Field(max_length=MAX_LIKED), BeforeValidator(parse_liked)]
Excluded = Annotated[_Ids, Field(max_length=MAX_EXCLUDED), BeforeValidator(parse_excluded)]
Genres = Annotated[tuple[str, ...], Field(max_length=MAX_GENRES), BeforeValidator(parse_genres)]


class Parameters(BaseModel):
    """Parameters of an endpoint; fields that are tuples may be repeated, of others the last value counts."""

    model_config = ConfigDict(frozen=True)

    def key(self) -> tuple[Part, ...]:
        """Return the values, defaults included: the same for all ways to ask for the same."""
        return tuple(self.__dict__.values())


class FilteredQuery(Parameters):
    """What every list takes: its length, and which movies may be in it."""

    k: K = Field(10, description="How many movies to list; fewer come back where fewer are left.")
    genre: Genres = Field((), description=OPTIONS["genre"], examples=[[]])
    year_min: Year | SkipJsonSchema[None] = Field(None, description=OPTIONS["year_min"])
    year_max: Year | SkipJsonSchema[None] = Field(None, description=OPTIONS["year_max"])
    exclude: Excluded = Field((), description=f"{OPTIONS['exclude']} Comma-separated.")

    def filter(self) -> Filter:
        """Return which movies may be listed.

        Raises
        ------
        RequestValidationError
            If no year can be between the two.
        """
        if self.year_min and self.year_max and self.year_min > self.year_max:
            raise refusal("year_max", f"expected a year from year_min, {self.year_min}, on, got {self.year_max}")
        return Filter(self.genre, self.year_min, self.year_max, self.exclude)


class TurnedQuery(FilteredQuery):
    """A list that can be moved away from the order of its scores."""

    novelty: Dial = Field(0.0, description=OPTIONS["novelty"])
    diversity: Dial = Field(0.0, description=OPTIONS["diversity"])

    def options(self) -> ListOptions:
        """Return what is wished of the list; the second stage orders none but personal ones."""
        return ListOptions(ranker=False, dials=Dials(self.novelty, self.diversity), filter=self.filter())


class PersonalQuery(TurnedQuery):
    """A list for somebody."""

    calibrate: Dial = Field(0.0, description=OPTIONS["calibrate"])
    explain: Flag = Field(False, description=OPTIONS["explain"])
    ranker: Flag = Field(True, description=OPTIONS["ranker"])

    def options(self) -> ListOptions:
        if self.model_fields_set <= _NO_OPTIONS:
            return PLAIN
        dials = Dials(self.novelty, self.diversity, self.calibrate)
        return ListOptions(self.ranker, dials, self.explain, self.filter())


class _ForUser(Parameters):
    user_id: Id = Field(description="A user of the training data.", examples=[1])
    on_unknown: Literal["error", "popular"] = Field(
        "error", description="What an unknown user is answered with: 404, or the most popular movies."
    )


class _ForLiked(Parameters):
    liked: Liked = Field(
        (),
        description=f"Movies that they like, comma-separated, at most {MAX_LIKED}. Absent or empty: popular movies.",
        examples=[[1, 2, 3]],
    )


class _ForMovie(Parameters):
    movie_id: Id = Field(description="A movie of the catalogue.", examples=[1])


class _ForText(Parameters):
    query: Annotated[str, BeforeValidator(parse_query_text)] = Field(
        description="A title or a part of one; case, accents and small typing errors do not matter.",
        examples=["the matrix"],
    )


_NO_OPTIONS = frozenset({"user_id", "liked", "k", "on_unknown"})


class UserQuery(PersonalQuery, _ForUser):  # pydantic puts the fields of the last base first
    """Parameters of ``/recommend``."""


class ColdQuery(PersonalQuery, _ForLiked):
    """Parameters of ``/recommend_cold``."""


class SimilarQuery(TurnedQuery, _ForMovie):
    """Parameters of ``/similar``."""


class PopularQuery(TurnedQuery):
    """Parameters of ``/popular``."""


class MovieQuery(FilteredQuery, _ForText):
    """Parameters of ``/movies``."""


def refusal(name: str, detail: str, place: str = "query") -> RequestValidationError:
    """Return the error that a parameter cannot be used."""
    return RequestValidationError([{"loc": (place, name), "msg": detail}])
