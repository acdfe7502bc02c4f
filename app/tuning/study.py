"""The file of a search: an optuna study in SQLite, which a later search of the same question goes on with."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from filelock import FileLock, Timeout

from app.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "failed"]
WARM_UP = 5  # iterations: before, many factors with little alpha look worse than they become


def require_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            "hyper-parameters are searched with optuna, which is not installed; pip install -r requirements.txt"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@contextmanager
def open_study(path: Path, name: str) -> Iterator[optuna.Study]:
    """Open the study of a question, or begin it; close its file in the end."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    storage_errors = (SQLAlchemyError, sqlite3.Error, optuna.exceptions.OptunaError)
    with ExitStack() as connections:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(path)
            connections.enter_context(FileLock(f"{path}.lock", timeout=0))
            # Not by a URL: there a path with ?, % or braces would name another file.
            connect = lambda: connections.enter_context(closing(sqlite3.connect(path)))  # noqa: E731
            study = optuna.create_study(
                storage=optuna.storages.RDBStorage("sqlite:///study", engine_kwargs={"creator": connect}),
                study_name=name,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=WARM_UP),
                load_if_exists=True,
            )
            _give_up_unfinished(study)
        except Timeout as error:
            raise ConfigError(
                f"{path} is in use by another search; wait for it, or name another: --study FILE"
            ) from error
        # The last three are what optuna raises for a study of another version of it.
        except (*storage_errors, OSError, RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"{path} cannot be used to store the search: {_first_line(error)}. Expected the SQLite file of an "
                "earlier search, or a place where one can be made; name another, or remove it to begin anew."
            ) from error
        try:
            yield study
        except storage_errors as error:
            raise ArtifactError(
                f"the search could not be stored in {path}: {_first_line(error)}. See that the disk has room and the "
                "file is still there, then run the same command again to go on."
            ) from error


def _refuse_foreign(path: Path) -> None:
    """Raise sqlite3.DatabaseError for a database of something else, which optuna would add its tables to."""
    if path.exists():
        with closing(sqlite3.connect(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not {"studies", "trials", "version_info"} <= tables:
            raise sqlite3.DatabaseError(f"it is a database of something else, with the table {min(tables)}")


def _give_up_unfinished(study: optuna.Study) -> None:
    """Mark the trials that a killed process left as failed."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Return the trials that were told a value or pruned, not those that a killed process left."""
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def best_value(study: optuna.Study) -> float | None:
    values = [
        trial.value for trial in finished_trials(study) if state_of(trial) == "complete" and trial.value is not None
    ]
    return max(values, default=None)


def state_of(trial: optuna.trial.FrozenTrial) -> State:
    if "error" in trial.user_attrs:
        return "failed"
    return "complete" if trial.state.name == "COMPLETE" else "pruned"
