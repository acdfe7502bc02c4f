"""Deployment settings, read from the environment once, by the roots only.

Every variable stands in README's table. Hyper-parameters are no settings: they belong to the command line of
``train_als.py`` and travel with the model in ``config.json``.
"""

from __future__ import annotations

from pathlib import Path

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

    @field_validator("admin_token", mode="before")
    @classmethod
    def _without_blanks(cls, token: object) -> object:
        """A line's end from a file of secrets is no part of the token: no header could carry it."""
        return (token.strip(" \t\r\n") or None) if isinstance(token, str) else token

    movielens_url: str = Field(
        default="https://files.grouplens.org/datasets/movielens",
        description="Where the trainer downloads MovieLens archives from; set it to use a mirror.",
    )
    movielens_dir: Path | None = Field(
        default=None,
        validation_alias="MOVIELENS_DIR",
        description="Folder with ratings.csv and movies.csv that the trainer uses unless --data-dir is given.",
    )
