"""The JSON of the API: what requests are answered with, and examples for its documentation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.recommender import ListSource

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


class MovieResult(BaseModel):
    """One movie of a list."""

    model_config = _example(**_TOY_STORY)

    movie_id: int
    title: str
    genres: list[str] = Field(description="Empty where MovieLens lists none.")
    year: int | None = Field(description="From the title; null where it has none.")
    score: float = Field(description="Compares movies within one list; lists of different sources are not comparable.")
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


class RecommendationList(BaseModel):
    """What every list of recommendations says about itself."""

    k: int = Field(description="How many movies were asked for.")
    n_results: int = Field(description="How many there are: fewer than k where fewer are left to recommend.")
    version: str = Field(description="The model version that answered.")
    source: ListSource = Field(description="What ordered the list.")
    results: list[MovieResult]


class UserRecommendations(RecommendationList, _ForUser):  # pydantic puts the fields of the last base first
    """Recommendations for a user of the training data."""

    model_config = _example(user_id=1, k=1, n_results=1, version=_VERSION, source="als", results=[_TOY_STORY])


class ColdRecommendations(RecommendationList, _ForLiked):
    """Recommendations for someone new, from movies that they like."""

    model_config = _example(
        liked=[2, 3], ignored=[999999], k=1, n_results=1, version=_VERSION, source="fold_in", results=[_TOY_STORY]
    )


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
