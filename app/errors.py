"""The exception tree: everything that the program itself finds wrong.

RecommenderError
├── DataError             ratings, movies or links that cannot be used
│   └── DownloadError     a data set that cannot be fetched
├── ConfigError           an option or hyper-parameter outside its range
├── ArtifactError         a version folder that is damaged, or cannot be written
│   └── NoModelError      nothing is published yet
└── UnknownUserError      a user without any rating in the model's data

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
    """A version folder that is missing, damaged, or cannot be written."""


class NoModelError(ArtifactError):
    """No version has been published in the artifacts folder."""


class UnknownUserError(RecommenderError):
    """A user who has no rating in the data that the model was trained on."""

    def __init__(self, user_id: int) -> None:
        super().__init__(
            f"user_id {user_id} has no rating in this model's data; "
            "for new users, name a few movies that they like: /recommend_cold?liked=1,2,3"
        )
        self.user_id = user_id
