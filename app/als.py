"""Alternating least squares: learn from positives, and fold a history into a user's factor.

``core.Positives ─▶ learn ─▶ Factors ─▶ artifacts``. ``learn`` fits all factors (``fit_als``) and then solves each
user's once more, so that recent positives count most (``app.fold_in``). The fit itself is ``implicit``'s; what one must
know about it is handled here and nowhere else. It is imported when a fit begins, so the service does not load it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from app.core import Positives
from app.errors import ConfigError
from app.fold_in import solve_user_factors
from app.threads import cancelling_pool, count_cores, one_blas_thread, raise_if_cancelled

_MIN_REGULARIZATION = 1e-6  # far less is lost in float64 beside YᵀCY

Device = Literal["cpu", "gpu", "auto"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu", "auto")


@dataclass(frozen=True)
class AlsConfig:
    """Hyper-parameters of one fit.

    The loss is Σ_ui c_ui (p_ui − x_uᵀy_i)² + λ(‖X‖² + ‖Y‖²), with c = alpha·g for observed entries of grade g and c = 1
    for all others; p is 1 where observed, else 0. It is not the paper's c = 1 + alpha·r, and λ is not scaled by counts.
    The grade is g = 1 + grading·s, s the strength of the positive (``core.Positives``). After the fit each user's
    factor is solved once more with c = alpha·g·½^(n/half_life), n the number of that user's later positives.

    Parameters
    ----------
    factors : int
        Length of a factor, at least 1.
    regularization : float
        λ, at least 1e-6, which keeps every user's normal equations solvable.
    alpha : float
        Confidence of a positive of grade 1, greater than 0. Ungraded, ``alpha = 1`` weighs positives like the
        unobserved.
    iterations : int
        Sweeps over items and users, at least 1.
    grading : float
        How much more a higher rating counts, 0 (not at all) to below 1: with .5 a 4.0 counts half as much as a 4.5, and
        a 5.0 half as much again.
    half_life : float
        Half-life of a positive's confidence in the user's own factor, in movies; 0 leaves the factor as it was fitted.
    random_state : int
        Seed of the initial factors, 0 to 2³² − 1.
    num_threads : int
        Threads of the fit, 0 for all cores. On the CPU it changes the time, never a bit of the result.
    device : {"cpu", "gpu", "auto"}
        ``auto`` takes a CUDA device if there is one. On a GPU, results are not repeatable to the bit.
    """

    # Chosen on validation: ml-latest-small, protocol rated, four earlier positives of each user, 4 seeds, mean NDCG@20
    # (`benchmarks/hyper_parameters.py`). 128 factors: .114, against .109 with 64; 192 are no better. Regularization 14
    # and 28 give .112 at alpha 7; alpha 5 .112, 10 .114. 15 iterations: .114. Gradings of 0 to .5 are alike (.114 to
    # .116; .5 has the most Recall@10), .75 gives .106. Recency: .092 without; half-lives of 2 and 3 are alike, 1 and 5
    # worse.
    factors: int = 128
    regularization: float = 20.0
    alpha: float = 7.0
    iterations: int = 10
    grading: float = 0.5
    half_life: float = 2.0
    random_state: int = 42
    num_threads: int = 0
    device: Device = "cpu"

    def __post_init__(self) -> None:
        _require_int("factors", self.factors, 1, 4096)
        _require_int("iterations", self.iterations, 1, 10_000)
        _require_int("random_state", self.random_state, 0, 2**32 - 1)
        _require_int("num_threads", self.num_threads, 0, 1024)
        if not (_is_number(self.regularization) and _MIN_REGULARIZATION <= self.regularization < np.inf):
            found = f"regularization is {self.regularization!r}"
            raise ConfigError(f"{found}; expected a finite number of at least {_MIN_REGULARIZATION:g}")
        if not (_is_number(self.alpha) and 0 < self.alpha < np.inf):
            raise ConfigError(f"alpha is {self.alpha!r}; expected a finite number greater than 0")
        if not (_is_number(self.grading) and 0 <= self.grading < 1):
            raise ConfigError(f"grading is {self.grading!r}; expected a number from 0 to below 1")
        if not (_is_number(self.half_life) and 0 <= self.half_life < np.inf):
            raise ConfigError(f"half_life is {self.half_life!r}; expected a number of movies, or 0 for no recency")
        if self.device not in DEVICES:
            raise ConfigError(f"device is {self.device!r}; expected one of {', '.join(DEVICES)}")

    @classmethod
    def of(cls, values: dict[str, Any]) -> AlsConfig:
        """Build a configuration from a mapping that may hold more keys, as ``config.json`` does."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class Factors:
    """The result of a fit; the score of item i for user u is ``user_factors[u] @ item_factors[i]``.

    ``user_factors`` has shape (n_users, factors), ``item_factors`` (n_items, factors); both float32, C-contiguous.
    """

    user_factors: NDArray[np.float32]
    item_factors: NDArray[np.float32]


@dataclass(frozen=True)
class Iteration:
    """Where a fit stands after an iteration.

    ``number`` counts from 1; ``loss`` is that of ``AlsConfig``, divided by Σ_ui c_ui; ``factors()`` are the fitted ones
    as they stand now, which the next iteration may change in place.
    """

    number: int
    loss: float
    factors: Callable[[], Factors]


OnIteration = Callable[[Iteration], object]


def learn(positives: Positives, config: AlsConfig, on_iteration: OnIteration | None = None) -> Factors:
    """Learn everything that is served: fit, then solve each user's factor with recency (``AlsConfig.half_life``).

    Parameters and errors are those of ``fit_als``, which is given the graded positives.

    Returns
    -------
    Factors
        Users without positives have the factor 0.
    """
    fitted = fit_als(positives.with_values(grade(positives.strength, config)), config, on_iteration)
    return weigh_recent(fitted, positives, config)


def weigh_recent(fitted: Factors, positives: Positives, config: AlsConfig) -> Factors:
    """Solve each user's factor once more with recency, given the item factors of a fit on the same positives."""
    if config.half_life == 0:
        return fitted
    values = confidence(positives, config) * recency(positives.n_later, config.half_life)
    user_factors = solve_user_factors(
        fitted.item_factors, positives.with_values(values), config.regularization, config.num_threads
    )
    return Factors(user_factors, fitted.item_factors)


def grade(strength: NDArray[np.float32], config: AlsConfig) -> NDArray[np.float64]:
    """Return g = 1 + grading·s of each positive; its mean over the scale of ratings is 1."""
    return 1.0 + config.grading * strength.astype(np.float64)


def confidence(positives: Positives, config: AlsConfig) -> NDArray[np.float64]:
    """Return c = alpha·g of each positive, of shape (nnz,): without recency."""
    return config.alpha * grade(positives.strength, config)


def recency(n_later: NDArray[np.int32], half_life: float) -> NDArray[np.float64]:
    """Return ½^(n/half_life), 1 for the newest positive; all 1 if ``half_life`` is 0, which stands for none."""
    if half_life == 0:
        return np.ones(len(n_later))
    weights: NDArray[np.float64] = 0.5 ** (n_later / half_life)
    return weights


def fit_als(user_items: sp.csr_matrix, config: AlsConfig, on_iteration: OnIteration | None = None) -> Factors:
    """Factorise graded positives by implicit-feedback ALS.

    Parameters
    ----------
    user_items : csr_matrix of shape (n_users, n_items), float32
        Grade g of each observed entry, greater than 0; 1 for binary data.
    config : AlsConfig
    on_iteration : callable, optional
        Called after each iteration, for a progress bar or to stop the fit by an exception.

    Returns
    -------
    Factors
        Rows without entries have the factor 0. The user factors agree with the *final* item factors, as fold-in does,
        up to the difference between three conjugate-gradient steps and an exact solution.

    Raises
    ------
    ConfigError
        If the matrix has no entries or one that is not a number greater than 0, if the factors overflow, or if a GPU
        is asked for and there is none.

    References
    ----------
    Hu, Koren, Volinsky, "Collaborative Filtering for Implicit Feedback Datasets" (ICDM 2008); Takács, Pilászy, Tikk,
    "Applications of the Conjugate Gradient Method for Implicit Feedback Collaborative Filtering" (RecSys 2011).
    """
    _check_user_items(user_items, config.alpha)
    create_model = _import_implicit(config, track_loss=on_iteration is not None)
    from implicit.recommender_base import ModelFitError

    # Around the constructor too, which is where implicit checks. Its own threads already use the cores.
    with one_blas_thread():
        model = create_model()
        # implicit solves rows first, then columns. Items as rows puts users last in each iteration
        # (docs/decisions/0001).
        item_users = (user_items * np.float32(config.alpha)).T.tocsr()
        try:
            model.fit(item_users, show_progress=False, callback=_per_iteration(model, on_iteration))
        except ModelFitError as error:
            raise ConfigError(f"the factors overflow with {config}; use a smaller alpha") from error
    return _factors_of(model)


@contextmanager
def side_by_side(n_fits: int, config: AlsConfig) -> Iterator[tuple[ThreadPoolExecutor, AlsConfig]]:
    """Share the threads among fits that run at the same time, which gains more than threads within a small fit.

    Yields
    ------
    pool : ThreadPoolExecutor
        To run the fits in; a GPU takes one at a time.
    config : AlsConfig
        The given one with each fit's share of the threads. The results do not depend on it.
    """
    n_threads = config.num_threads or count_cores()
    n_workers = 1 if uses_gpu(config.device) else min(n_fits, n_threads)
    # The limit once around all of them: each would lift the others' when it ends.
    with one_blas_thread(), cancelling_pool(n_workers) as pool:
        yield pool, replace(config, num_threads=n_threads // n_workers)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _require_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


def _check_user_items(user_items: sp.csr_matrix, alpha: float) -> None:
    if user_items.nnz == 0:
        raise ConfigError(f"the matrix of shape {user_items.shape} has no entries; expected at least one positive")
    wrong = user_items.data[~(np.isfinite(user_items.data) & (user_items.data > 0))]
    if len(wrong):
        raise ConfigError(f"the matrix holds {wrong[0]}; expected finite grades greater than 0")
    if alpha * user_items.data.max() <= 1:
        warnings.warn(
            f"alpha {alpha:g} gives no positive more confidence than an unobserved entry has (1); usual are 5 to 40",
            stacklevel=3,
        )


def _import_implicit(config: AlsConfig, track_loss: bool) -> Callable[[], Any]:
    """Load implicit for the device and return what makes its model; alpha is in the matrix, so it is 1 there."""
    options: dict[str, Any] = {
        "factors": config.factors,
        "regularization": config.regularization,
        "alpha": 1.0,
        "iterations": config.iterations,
        "random_state": int(config.random_state),  # a RandomState object breaks implicit's seeding
        "calculate_training_loss": track_loss,
    }
    if uses_gpu(config.device):
        from implicit.gpu.als import AlternatingLeastSquares as GpuAls

        return lambda: GpuAls(**options)
    from implicit.cpu.als import AlternatingLeastSquares as CpuAls

    return lambda: CpuAls(**options, num_threads=config.num_threads)


def uses_gpu(device: Device) -> bool:
    """Tell whether a fit would run on a GPU; ConfigError if one is asked for and there is none."""
    if device == "cpu":
        return False
    import implicit.gpu

    if device == "gpu" and not implicit.gpu.HAS_CUDA:
        raise ConfigError("device is 'gpu', but implicit finds no CUDA device; use --device cpu or auto")
    return bool(implicit.gpu.HAS_CUDA)


def _per_iteration(model: Any, on_iteration: OnIteration | None) -> Callable[[int, float, float | None], None]:
    def callback(iteration: int, _seconds: float, loss: float | None) -> None:
        raise_if_cancelled()
        if on_iteration is not None and loss is not None:
            on_iteration(Iteration(iteration + 1, float(loss), lambda: _factors_of(model)))

    return callback


def _factors_of(model: Any) -> Factors:
    """Take the factors from a model that was fitted on items × users."""
    return Factors(user_factors=_to_array(model.item_factors), item_factors=_to_array(model.user_factors))


def _to_array(factors: Any) -> NDArray[np.float32]:
    array = factors.to_numpy() if hasattr(factors, "to_numpy") else factors
    return np.ascontiguousarray(array, dtype=np.float32)


PRESETS: dict[str, AlsConfig] = {
    "default": AlsConfig(),
    # The point that published notebooks report on this split.
    "reference": AlsConfig(factors=64, regularization=0.02, alpha=21.0, iterations=20, grading=0.0, half_life=0.0),
}
