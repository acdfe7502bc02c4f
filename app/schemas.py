"""The JSON of the API: what requests are answered with, and examples for its documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from app.filters import Filter
from app.recommender import ListOptions, ListSource
from app.rerank import Dials

MAX_ID = 2**63 - 1
MAX_EXCLUDED, MAX_GENRES = 1_000, 20
MAX_K, MAX_BATCH = 100, 1_000
MAX_YEAR = 9999
MAX_MEMBERS = 30  # of a body: more than there are options

_TOY_STORY = {
    "movie_id": 1,
    "title": "Toy Story (1995)",
    "genres": ["Adventure", "Animation", "Children", "Comedy", "Fantasy"],
    "year": 1995,
    "score": 0.731275,
}
_VERSION = "20261123T101500Z-1a2b3c4d"

_LISTED = {
    "version": _VERSION,
    "is_active": True,
    "is_previous": False,
    "trained_at": "2026-11-23T10:15:00+00:00",
    "dataset": "ml-latest-small",
    "n_ratings": 100836,
    "n_users": 610,
    "n_items": 6298,
    "has_ranker": False,
    "stage": "test",
    "protocol": "rated",
    "metrics": {"recall@10": 0.1466, "ndcg@10": 0.0837},
    "promotion": {"activate": True, "reasons": ["no version was active"]},
    "damage": None,
}


def _example(**values: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": values})


class Because(BaseModel):
    """A liked movie that a score comes from."""

    model_config = _example(movie_id=2, title="Jumanji (1995)", contribution=0.0412)

    movie_id: int
    title: str
    contribution: float = Field(
        description="Its part of the first stage's score; all liked movies' parts add up to it."
    )


class ListedMovie(BaseModel):
    """One movie."""

    movie_id: int
    title: str
    genres: list[str] = Field(description="Empty where MovieLens lists none.")
    year: int | None = Field(description="From the title; null where it has none.")


class FoundMovie(ListedMovie):
    """One movie of a list."""

    model_config = _example(**_TOY_STORY)

    score: float = Field(description="Compares movies within one list; lists of different sources are not comparable.")


class MovieResult(FoundMovie):
    """One recommended movie."""

    because: list[Because] = Field(
        default=[], description="Only with explain=true: the liked movies that contributed most, the most first."
    )
    reasons: list[str] = Field(
        default=[], description="Only with explain=true: what the second stage saw in the movie, the weightiest first."
    )


class _ForUser(BaseModel):
    user_id: int


class _ForLiked(BaseModel):
    liked: list[int] = Field(description="The movies that were used.")
    ignored: list[int] = Field(description="Ids of the request that are not in the catalogue.")


class _ForMovie(BaseModel):
    movie_id: int


class _ForText(BaseModel):
    query: str


class MovieList(BaseModel):
    """What every list says about itself."""

    k: int = Field(description="How many movies were asked for.")
    n_results: int = Field(description="How many there are: fewer than k where fewer are left.")
    version: str = Field(description="The model version that answered.")


class FoundMovies(MovieList, _ForText):  # pydantic puts the fields of the last base first
    """Movies found by title; a score of 1 is a title that matches exactly."""

    results: list[FoundMovie]


class SimilarMovies(MovieList, _ForMovie):
    """Movies that the same people like."""

    source: ListSource = Field(description="What ordered the list.")
    results: list[FoundMovie]


class PopularMovies(MovieList):
    """The movies with the most positives."""

    source: ListSource = Field(description="What ordered the list.")
    results: list[FoundMovie]


class RecommendationList(MovieList):
    """Movies recommended to somebody."""

    source: ListSource = Field(description="What ordered the list.")
    results: list[MovieResult]


class UserRecommendations(RecommendationList, _ForUser):
    """Recommendations for a user of the training data."""

    model_config = _example(user_id=1, k=1, n_results=1, version=_VERSION, source="als", results=[_TOY_STORY])


class ColdRecommendations(RecommendationList, _ForLiked):
    """Recommendations for someone new, from movies that they like."""

    model_config = _example(
        liked=[2, 3], ignored=[999999], k=1, n_results=1, version=_VERSION, source="fold_in", results=[_TOY_STORY]
    )


_StrictId = Annotated[int, Field(strict=True, ge=1, le=MAX_ID, json_schema_extra={"format": "int64"})]
_StrictYear = Annotated[int, Field(strict=True, ge=1, le=MAX_YEAR)]
_StrictDial = Annotated[float, Field(strict=True, ge=0, le=1)]


OPTIONS = {
    "genre": "Only movies of this genre; of several, of any of these. An unknown one is refused, with those known.",
    "year_min": "Only movies of this year or later.",
    "year_max": "Only movies of this year or earlier.",
    "exclude": f"Movies that must not be listed, at most {MAX_EXCLUDED}.",
    "novelty": "Move the list towards movies that few people know.",
    "diversity": "Move it towards movies that differ from each other.",
    "calibrate": "Move its genres towards the mix that the user likes.",
    "explain": "Say for each movie why it is listed.",
    "ranker": "Let the second stage order the list, where the version has one.",
}


class BatchRequest(BaseModel):
    """Many users at once; the options are those of `/recommend`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"example": {"user_ids": [1, 2, 999999], "k": 3}}
    )

    user_ids: list[_StrictId] = Field(min_length=1, max_length=MAX_BATCH, description="Repetitions are answered, too.")
    k: int = Field(10, strict=True, ge=1, le=MAX_K, description="How many movies to list for each.")
    genre: list[str] = Field([], max_length=MAX_GENRES, description=OPTIONS["genre"])
    year_min: _StrictYear | None = Field(None, description=OPTIONS["year_min"])
    year_max: _StrictYear | None = Field(None, description=OPTIONS["year_max"])
    exclude: list[_StrictId] = Field([], max_length=MAX_EXCLUDED, description=OPTIONS["exclude"])
    novelty: _StrictDial = Field(0.0, description=OPTIONS["novelty"])
    diversity: _StrictDial = Field(0.0, description=OPTIONS["diversity"])
    calibrate: _StrictDial = Field(0.0, description=OPTIONS["calibrate"])
    explain: bool = Field(False, strict=True, description=OPTIONS["explain"])
    ranker: bool = Field(True, strict=True, description=OPTIONS["ranker"])

    @model_validator(mode="before")
    @classmethod
    def _has_few_members(cls, members: object) -> object:
        """Refuse what could only be an attack before each unknown member becomes an error of its own."""
        if isinstance(members, dict) and len(members) > MAX_MEMBERS:
            raise ValueError(f"expected at most {MAX_MEMBERS} members, got {len(members)}")
        return members

    @field_validator("year_max")
    @classmethod
    def _is_not_before_year_min(cls, year_max: int | None, others: ValidationInfo) -> int | None:
        year_min = others.data.get("year_min")
        if year_min and year_max and year_min > year_max:
            raise ValueError(f"expected a year from year_min, {year_min}, on, got {year_max}")
        return year_max

    def options(self) -> ListOptions:
        """Return what is wished of each list."""
        wanted = Filter(tuple(self.genre), self.year_min, self.year_max, tuple(self.exclude))
        dials = Dials(self.novelty, self.diversity, self.calibrate)
        return ListOptions(self.ranker, dials, self.explain, wanted)


class BatchEntry(BaseModel):
    """One user's list; an unknown user has an `error` instead of a `source`."""

    user_id: int
    source: ListSource | None = Field(default=None, description="What ordered the list.")
    error: Literal["unknown_user"] | None = None
    results: list[MovieResult]


class BatchRecommendations(BaseModel):
    """Lists in the order in which their users were named."""

    model_config = _example(
        k=1,
        version=_VERSION,
        results=[
            {"user_id": 1, "source": "als", "results": [_TOY_STORY]},
            {"user_id": 999999, "error": "unknown_user", "results": []},
        ],
    )

    k: int
    version: str
    results: list[BatchEntry]


class MovieDetails(ListedMovie):
    """Everything that is known of a movie."""

    imdb_id: str | None
    tmdb_id: str | None
    n_positives: int = Field(description="How many users like it: ratings of 4 or more.")
    version: str = Field(description="The model version that answered.")


class GenreShare(BaseModel):
    """A genre's part in what somebody likes."""

    genre: str
    share: float


class UserProfile(_ForUser):
    """What is known of a user, of the movies in the catalogue."""

    version: str = Field(description="The model version that answered.")
    n_ratings: int = Field(description="How many movies of the catalogue they rated: those that somebody likes.")
    n_liked: int = Field(description="How many of them are positives: ratings of 4 or more.")
    liked: list[ListedMovie] = Field(description="The last ten that they like, the newest first.")
    favourite_genres: list[GenreShare] = Field(description="The five with the largest shares.")


class ReloadProblem(BaseModel):
    """Why the active version is not the one being served."""

    reason: str
    since: str = Field(description="ISO 8601, UTC.")


class Health(BaseModel):
    """Which model is being served."""

    model_config = _example(
        status="ok",
        model="ALS",
        n_users=610,
        n_items=6298,
        version=_VERSION,
        trained_at="2026-11-23T10:15:00+00:00",
        dataset="ml-latest-small",
        ranker=True,
        index="exact",
        dials={"diversity": {"0.3": -0.007}},
        reload_error={  # shown although it is rare: a null would not be
            "reason": "artifacts/versions/20261124T101500Z-5e6f7a8b/als.npz: is missing; expected 3537920 bytes, …",
            "since": "2026-11-24T10:15:04+00:00",
        },
    )

    status: Literal["ok"]
    model: Literal["ALS"]
    n_users: int
    n_items: int
    version: str
    trained_at: str
    dataset: str = Field(description='Name of the training data; "synthetic" means that no recommendation is real.')
    ranker: bool = Field(description="Whether a second stage orders the lists.")
    index: str = Field(description='What finds the best movies of all: "exact", or the index of a large catalogue.')
    dials: dict[str, dict[str, float]] = Field(
        description="What NDCG@10 of the held-out run changes by with a dial at a setting; empty if not measured."
    )
    reload_error: ReloadProblem | None = Field(
        description="Null where the active version is the one being served; else why it is not."
    )


class ModelVersion(BaseModel):
    """One version of the model; what it says of itself is null where it cannot be read."""

    model_config = _example(**_LISTED)

    version: str
    is_active: bool
    is_previous: bool = Field(description="Whether a rollback would go to it.")
    trained_at: str | None
    dataset: str | None
    n_ratings: int | None
    n_users: int | None
    n_items: int | None
    has_ranker: bool
    stage: str | None = Field(description='What was held out: "test", "validation", or "none" if it was not evaluated.')
    protocol: str | None
    metrics: dict[str, float] = Field(description="Of the held-out run, under that protocol.")
    promotion: dict[str, Any] = Field(description="What the promotion gate decided when it was trained, and why.")
    damage: str | None = Field(description="Why it cannot be read; its checksums are only looked at to activate it.")


class ModelList(BaseModel):
    """All versions, newest first."""

    active: str | None
    previous: str | None
    serving: str | None = Field(description="The version that the answering process serves.")
    versions: list[ModelVersion]


class Activation(BaseModel):
    """A version that was made active."""

    model_config = _example(version=_VERSION, replaced="20261122T101500Z-5e6f7a8b", serving=_VERSION, warnings=[])

    version: str
    replaced: str | None = Field(description="What was active before; null if nobody could say.")
    serving: str | None = Field(
        description="What the answering process serves now; the others follow within RECS_RELOAD_SECONDS."
    )
    warnings: list[str]


class Probe(BaseModel):
    """Answer of a liveness or readiness probe."""

    status: Literal["alive", "ready"]


class ParameterProblem(BaseModel):
    """One request parameter that cannot be used."""

    parameter: str
    in_: str = Field(alias="in")
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str
    title: str
    status: int
    detail: str
    version: str | None = Field(default=None, description="The model version that does not know the user (404).")
    errors: list[ParameterProblem] | None = Field(default=None, description="Only for invalid parameters (422).")
