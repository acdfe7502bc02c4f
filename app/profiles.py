"""What a model knows of one user, in words that a person can check: how much they rated, what they like.

``artifacts.LoadedModel ─▶ describe_user ─▶ routers``. Nothing here is learned or scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from app.artifacts import LoadedModel
from app.core import UNKNOWN
from app.errors import UnknownUserError
from app.movies import Movie
from app.rerank import genre_mix

N_LIKED, N_GENRES = 10, 5  # how many are shown


@dataclass(frozen=True)
class Profile:
    """One user, of the movies in the catalogue.

    ``liked`` are the last positives, the newest first; ``favourite_genres`` the largest shares of what they like, where
    a movie is divided among its genres, and those without any have no part.
    """

    n_ratings: int
    n_liked: int
    liked: tuple[Movie, ...]
    favourite_genres: tuple[tuple[str, float], ...]


def describe_user(model: LoadedModel, user_id: int) -> Profile:
    """Return what is known of a user.

    Raises
    ------
    UnknownUserError
        If the user has no rating in the training data.
    """
    user = model.users.index_of(user_id)
    if user == UNKNOWN:
        raise UnknownUserError(user_id, model.version)
    rated = model.history.of(user)
    liked = rated.item_index[rated.rating >= model.min_rating]
    mix = genre_mix(model.movies.genres_of(liked), np.ones(len(liked)))
    favourites = [int(genre) for genre in np.argsort(-mix, kind="stable")[:N_GENRES] if mix[genre] > 0]
    return Profile(
        n_ratings=len(rated),
        n_liked=len(liked),
        liked=tuple(model.movies[item] for item in liked[::-1][:N_LIKED]),
        favourite_genres=tuple((str(model.movies.genre_names[genre]), float(mix[genre])) for genre in favourites),
    )
