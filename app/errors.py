"""The exception tree: everything that the program itself finds wrong.

RecommenderError
├── DataError             ratings, movies or links that cannot be used
│   └── DownloadError     a data set that cannot be fetched
├── ConfigError           an option or hyper-parameter outside its range
├── ArtifactError         a version folder that is damaged
│   ├── NoModelError      nothing is published yet
│   └── UnwritableError   the artifacts folder, or a file of lists, cannot be written now
├── UnknownVersionError   a version that is not there
├── VersionRefusedError   a version that must not become active, or none to go back to
├── UnknownUserError      a user without any rating in the model's data
├── UnknownMovieError     a movie outside the model's catalogue
└── UnknownGenreError     a genre that no movie of the catalogue has

A message gives the value, what was expected, and the remedy. This module knows neither exit codes nor HTTP: the command
line and ``app.routers.problems`` translate.
"""

from __future__ import annotations


class RecommenderError(Exception):
    """Base of every error that this program raises on purpose."""


class DataError(RecommenderError):
    """Ratings, movies or links that cannot be used as they are."""


class DownloadError(DataError):
    """A data set that could not be fetched."""


class ConfigError(RecommenderError):
    """An option or hyper-parameter outside its range."""


class ArtifactError(RecommenderError):
    """A version folder that is missing or damaged."""


class NoModelError(ArtifactError):
    """No version has been published in the artifacts folder."""


class UnwritableError(ArtifactError):
    """The artifacts folder, or a file of lists, cannot be written: no space, no permission, or another is at it."""


class UnknownVersionError(RecommenderError):
    """A version that is not in the artifacts folder."""

    def __init__(self, version: str) -> None:
        super().__init__(f"there is no version {version[:40]!r}; those that are there: python -m app.cli models list")
        self.version = version


class VersionRefusedError(RecommenderError):
    """A version that is damaged and must not become active, or no earlier one to go back to."""


class UnknownUserError(RecommenderError):
    """A user who has no rating in the data that the model was trained on."""

    def __init__(self, user_id: int, version: str | None = None) -> None:
        super().__init__(
            f"user_id {user_id} has no rating in this model's data; "
            "for new users, name a few movies that they like: /recommend_cold?liked=1,2,3"
        )
        self.user_id = user_id
        self.version = version  # that does not know the user


class UnknownMovieError(RecommenderError):
    """A movie that the model's catalogue does not hold."""

    def __init__(self, movie_id: int) -> None:
        super().__init__(
            f"movie_id {movie_id} is not in this model's catalogue, which holds the movies that somebody rated well; "
            "find one by its title: /movies?query=toy%20story"
        )


class UnknownGenreError(RecommenderError):
    """A genre that no movie of the model's catalogue has."""

    def __init__(self, genre: str, known: list[str]) -> None:
        super().__init__(f"expected one of {', '.join(known)}; got {genre[:40]!r}")
