"""Deployment settings, read from the environment once, by the roots only.

Every variable stands in README's table. Hyper-parameters are no settings: they belong to the command line of
``train_als.py`` and travel with the model in ``config.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What differs between deployments; ``RECS_<NAME>`` in the environment, defaults for a developer's machine."""

    model_config = SettingsConfigDict(env_prefix="RECS_", frozen=True, env_ignore_empty=True)

    artifacts_dir: Path = Field(
        default=Path("artifacts"),
        description="Folder that the trainer publishes versions to and the service reads them from.",
    )
    reload_seconds: float = Field(
        default=5.0,
        ge=0,
        allow_inf_nan=False,
        description="How often each process looks for a newly activated version; 0 for never.",
    )
    admin_token: SecretStr | None = Field(
        default=None,
        description="Bearer token of whoever may list and switch versions over HTTP; without one nobody may.",
    )

    cache_size: int = Field(
        default=10_000, ge=0, description="How many answers each process keeps; 0 keeps none in the process."
    )
    cache_bytes: int = Field(
        default=64 * 2**20, ge=0, description="How many bytes of answers each process keeps at most."
    )
    cache_seconds: float = Field(
        default=300.0, gt=0, allow_inf_nan=False, description="How long an answer is kept, in the process and in Redis."
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis in which all processes share the answers that cost more than asking it; none without.",
    )
    max_concurrency: int = Field(
        default=256,
        ge=1,
        description="Requests that each process works on at a time, and as many with a body; others are refused.",
    )
    max_body_bytes: int = Field(default=2**20, ge=1, description="Size of a request's body; a larger one is refused.")
    cors_origins: str = Field(
        default="",
        description="Origins whose pages may call this service, comma-separated, or *; none by default.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Readable lines, or JSON for a collector of logs."
    )
    log_level: Literal["debug", "info", "warning", "error"] | None = Field(
        default=None,
        description="What is logged: info has a line for each request, debug also names the user; by default what "
        "uvicorn was told.",
    )

    @field_validator("admin_token", "redis_url", mode="before")
    @classmethod
    def _without_blanks(cls, secret: object) -> object:
        """A line's end from a file of secrets is no part of the secret: no header could carry it."""
        return (secret.strip(" \t\r\n") or None) if isinstance(secret, str) else secret

    movielens_url: str = Field(
        default="https://files.grouplens.org/datasets/movielens",
        description="Where the trainer downloads MovieLens archives from; set it to use a mirror.",
    )
    movielens_dir: Path | None = Field(
        default=None,
        validation_alias="MOVIELENS_DIR",
        description="Folder with ratings.csv and movies.csv that the trainer uses unless --data-dir is given.",
    )
