"""Small models, made by hand or trained, and the service in this process: what several rooms' tests build on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
from fastapi import FastAPI

from app.als import AlsConfig, Factors, confidence, learn
from app.artifacts import MANIFEST, LoadedModel, TrainedModel, content_digest
from app.core import Dataset, IdMap, build_positives, clean, positives
from app.datasets.synthetic import synthesize
from app.history import build_history
from app.movies import Movie, build_movies
from app.ranker import RankerConfig
from app.second_stage import Learner, served_ranker

BIG_USER, BIG_MOVIE = 2**62 + 1, 2**53 + 1  # ids that a float64 or int32 would change

# user_id, movie_id, rating. User 7 likes nothing; nobody likes movie 99, so it is outside the catalogue.
RATINGS = (
    (1, 1, 5.0),
    (1, 2, 4.0),
    (1, 5, 2.0),
    (2, 1, 4.5),
    (2, 3, 5.0),
    (2, 99, 1.0),
    (7, 1, 1.0),
    (7, 3, 3.5),
    (9, 2, 4.0),
    (9, 3, 4.0),
    (9, 5, 4.0),
    (9, 10, 4.0),
    (BIG_USER, BIG_MOVIE, 5.0),
    (BIG_USER, 1, 4.0),
)
# movie_id: title, genres, year, imdb_id, tmdb_id
MOVIES: dict[int, tuple[str, str, int | None, str, str]] = {
    1: ("Toy Story (1995)", "Adventure|Animation|Children", 1995, "0114709", "862"),
    2: ('Good, the Bad and the "Ugly", The (1966)', "Western", 1966, "0060196", ""),
    3: ("Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)", "", 2001, "", "194"),
    5: ("Ψ|天 no year", "Drama", None, "", ""),
    10: ("NA", "Sci-Fi|Film-Noir", 2000, "", ""),
}


def make_model(
    ratings: Sequence[tuple[int, int, float]] = RATINGS,
    *,
    factors: int = 4,
    random_state: int = 0,
    dataset: str = "hand-made",
) -> TrainedModel:
    """Make a model of these ratings, in the order of their time, with random factors."""
    rated = pd.DataFrame(ratings, columns=["user_id", "movie_id", "rating"])
    rated = rated.astype({"user_id": np.int64, "movie_id": np.int64, "rating": np.float32})
    rated["timestamp"] = np.arange(len(rated), dtype=np.int64)
    liked = positives(rated)
    users, items = IdMap.of(rated["user_id"]), IdMap.of(liked["movie_id"])
    config = AlsConfig(factors=factors)
    rng = np.random.default_rng(random_state)
    learned = build_positives(liked, users, items)
    return TrainedModel(
        users=users,
        items=items,
        factors=Factors(
            rng.normal(size=(len(users), factors)).astype(np.float32),
            rng.normal(size=(len(items), factors)).astype(np.float32),
        ),
        confidence=learned.with_values(confidence(learned, config)),
        history=build_history(rated, users, items),
        movies=pd.DataFrame(
            [
                (movie_id, *MOVIES.get(movie_id, (f"Movie {movie_id}", "Drama", None, "", "")))
                for movie_id in items.ids.tolist()
            ],
            columns=["movie_id", "title", "genres", "year", "imdb_id", "tmdb_id"],
        ).astype({"year": "Int64"}),
        config={"model": "ALS", "als": asdict(config), "min_rating": 4.0, "n_ratings": len(ratings)},
        metrics={"stage": "none", "protocols": {}},
        dataset=dataset,
        fingerprint=hashlib.sha256(repr(ratings).encode()).hexdigest(),
        documents={"MODEL_CARD.md": "# Ψ\n", "report/index.html": "<!doctype html>"},
    )


LIKES_NOTHING, LIKES_ONE = 10_001, 10_002  # users of the trained model


@cache
def trained() -> tuple[Dataset, TrainedModel]:
    """Train both stages, quickly, on invented ratings and tags; some movies have no genre or no year."""
    return train(invent())


def invent() -> Dataset:
    """Invent ratings in which a session's movies follow each other, tags, and two users more."""
    raw = synthesize(8_000, random_state=1, transitions=0.6)
    rng = np.random.default_rng(0)
    tagged = raw.ratings.iloc[np.sort(rng.choice(len(raw.ratings), 900, replace=False))]
    tags = tagged[["user_id", "movie_id"]].assign(tag=rng.choice(["dark", "Funny", "slow", "epic"], len(tagged)))
    more = [
        (LIKES_NOTHING, 1, 2.0, 1_200_000_000),
        (LIKES_NOTHING, 2, 3.5, 1_200_000_000),
        (LIKES_ONE, 3, 5.0, 1_200_000_000),
    ]
    columns = ["user_id", "movie_id", "rating", "timestamp"]
    ratings = pd.concat([raw.ratings, pd.DataFrame(more, columns=columns).astype(raw.ratings.dtypes)])
    movies = raw.movies.copy()
    movies.loc[3::20, "genres"] = ""
    movies.loc[4::20, "title"] = movies["title"].str.slice(0, -len(" (1990)"))
    changed = replace(
        raw,
        ratings=ratings.reset_index(drop=True),
        movies=movies,
        tags=tags.assign(timestamp=tagged["timestamp"] + 1).reset_index(drop=True),
    )
    return clean("invented", changed)


def train(dataset: Dataset, als: AlsConfig | None = None) -> tuple[Dataset, TrainedModel]:
    """Train both stages on everything, quickly."""
    als = als or AlsConfig(factors=8, iterations=3, num_threads=1)
    ranker = RankerConfig(n_stages=2, num_iterations=20)
    liked = positives(dataset.ratings)
    users, items = IdMap.of(dataset.ratings["user_id"]), IdMap.of(liked["movie_id"])
    learned, history = build_positives(liked, users, items), build_history(dataset.ratings, users, items)
    factors = learn(learned, als)
    learner = Learner(dataset, users, items, als)
    return dataset, TrainedModel(
        users=users,
        items=items,
        factors=factors,
        confidence=learned.with_values(confidence(learned, als)),
        history=history,
        movies=dataset.movies[dataset.movies["movie_id"].isin(items.ids)],
        config={"model": "ALS", "als": asdict(als), "min_rating": 4.0, "ranker": asdict(ranker)},
        metrics={"stage": "none", "protocols": {}},
        dataset=dataset.name,
        fingerprint=dataset.fingerprint,
        ranker=served_ranker(learner, history, factors, learned, ranker, held_out=None, refit=True),
    )


def in_memory(model: TrainedModel) -> LoadedModel:
    """Give a trained model the shape that the service works with, without any file between."""
    rows = model.movies.astype({"year": object}).itertuples(index=False)
    return LoadedModel(
        version="in memory",
        manifest={},
        als_config=AlsConfig.of(model.config["als"]),
        users=model.users,
        items=model.items,
        factors=model.factors,
        positives_indptr=model.confidence.indptr,
        positives_items=model.confidence.indices,
        history=model.history,
        movies=build_movies(
            (
                Movie(
                    movie_id=row.movie_id,
                    title=row.title,
                    genres=tuple(row.genres.split("|")) if row.genres else (),
                    year=None if pd.isna(row.year) else row.year,
                    imdb_id=row.imdb_id,
                    tmdb_id=row.tmdb_id,
                )
                for row in rows
            ),
            np.bincount(model.confidence.indices, minlength=len(model.items)).astype(np.float32),
        ),
        min_rating=model.config["min_rating"],
        metrics=model.metrics,
        ranker=model.ranker,
    )


def forge(folder: Path, into: Path, change: Callable[[Path], object]) -> Path:
    """Copy a version into ``into``, change its files, and make its checksums and its name right again."""
    copy = into / "forged"
    shutil.copytree(folder, copy)
    for path in copy.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
    change(copy)
    manifest = json.loads((copy / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"] = {
        path.relative_to(copy).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
        }
        for path in copy.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    (copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return copy.rename(into / f"20200101T000000Z-{content_digest(manifest['files'])}")


@contextmanager
def serve(app: FastAPI) -> Iterator[Callable[..., httpx.Response]]:
    """Start the application in this process; yields ``request(url, method="GET")``."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    with asyncio.Runner() as runner:
        lifespan = app.router.lifespan_context(app)
        runner.run(_enter(lifespan))

        def request(url: str, method: str = "GET", **options: Any) -> httpx.Response:
            async def send() -> httpx.Response:
                async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                    return await client.request(method, url, **options)

            return runner.run(send())

        try:
            yield request
        finally:
            runner.run(lifespan.__aexit__(None, None, None))


async def _enter(lifespan: Any) -> None:
    await lifespan.__aenter__()
