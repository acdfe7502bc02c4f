"""Alternating least squares: fit on a matrix of positives, and fold a history into a user's factor.

``core.build_user_items ─▶ fit_als ─▶ Factors ─▶ artifacts``; ``solve_user_factor`` also serves unseen users online. The
fit itself is ``implicit``'s; what one must know about it is handled here and nowhere else. It is imported when a fit
begins, so the service does not load it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app.errors import ConfigError

Device = Literal["cpu", "gpu", "auto"]
DEVICES: tuple[Device, ...] = ("cpu", "gpu", "auto")


@dataclass(frozen=True)
class AlsConfig:
    """Hyper-parameters of one fit.

    The loss is Σ_ui c_ui (p_ui − x_uᵀy_i)² + λ(‖X‖² + ‖Y‖²), with c = alpha·r for observed entries of value r and c = 1
    for all others; p is 1 where observed, else 0. It is not the paper's c = 1 + alpha·r, and λ is not scaled by counts.

    Parameters
    ----------
    factors : int
        Length of a factor, at least 1.
    regularization : float
        λ, greater than 0, which keeps every user's normal equations solvable.
    alpha : float
        Confidence of an observed entry of value 1, greater than 0. On binary data ``alpha = 1`` weighs positives like
        the unobserved.
    iterations : int
        Sweeps over items and users, at least 1.
    random_state : int
        Seed of the initial factors, 0 to 2³² − 1.
    num_threads : int
        Threads of the fit, 0 for all cores. On the CPU it changes the time, never a bit of the result.
    device : {"cpu", "gpu", "auto"}
        ``auto`` takes a CUDA device if there is one. On a GPU, results are not repeatable to the bit.
    """

    # Of 120 settings on validation (ml-latest-small, protocol rated, 3 seeds: `python benchmarks/grid.py`) the best
    # with 64 factors: NDCG@20 .0808, the reference .0728. 128 factors with alpha 3 gain .0005, for twice the memory.
    factors: int = 64
    regularization: float = 10.0
    alpha: float = 7.0
    iterations: int = 15
    random_state: int = 42
    num_threads: int = 0
    device: Device = "cpu"

    def __post_init__(self) -> None:
        _require_int("factors", self.factors, 1, 4096)
        _require_int("iterations", self.iterations, 1, 10_000)
        _require_int("random_state", self.random_state, 0, 2**32 - 1)
        _require_int("num_threads", self.num_threads, 0, 1024)
        for name in ("regularization", "alpha"):
            value = getattr(self, name)
            is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
            if not (is_number and 0 < value < np.inf):
                raise ConfigError(f"{name} is {value!r}; expected a finite number greater than 0")
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


def fit_als(user_items: sp.csr_matrix, config: AlsConfig, on_iteration: Callable[[], object] | None = None) -> Factors:
    """Factorise positives by implicit-feedback ALS.

    Parameters
    ----------
    user_items : csr_matrix of shape (n_users, n_items), float32
        Grade r of each observed entry, greater than 0; 1 for binary data.
    config : AlsConfig
    on_iteration : callable, optional
        Called after each iteration, for a progress bar.

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
    # Before the limit below: implicit loads another BLAS, and a limit holds only for what is loaded already.
    create_model = _import_implicit(config)
    from implicit.recommender_base import ModelFitError

    # Around the constructor too, which is where implicit checks. Its own threads already use the cores.
    with threadpool_limits(1, "blas"):
        model = create_model()
        # implicit solves rows first, then columns. Items as rows puts users last in each iteration
        # (docs/decisions/0001).
        item_users = (user_items * np.float32(config.alpha)).T.tocsr()
        try:
            model.fit(item_users, show_progress=False, callback=_per_iteration(on_iteration))
        except ModelFitError as error:
            raise ConfigError(f"the factors overflow with {config}; use a smaller alpha") from error
    return Factors(user_factors=_to_array(model.item_factors), item_factors=_to_array(model.user_factors))


def gramian(item_factors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return YᵀY of shape (factors, factors), which every fold-in over the same items shares."""
    exact = item_factors.astype(np.float64)
    return exact.T @ exact


def solve_user_factor(
    item_factors: NDArray[np.float32],
    gramian: NDArray[np.float64],
    item_indices: NDArray[np.integer[Any]],
    confidence: NDArray[np.floating[Any]],
    regularization: float,
) -> NDArray[np.float32]:
    """Solve one user's factor with the item factors held fixed (fold-in).

    Solves (YᵀY + Yᵀ(C−I)Y + λI) x = YᵀC p, where unobserved items have c = 1 and p = 0: all items count, not only those
    that the user liked.

    Parameters
    ----------
    item_factors : ndarray of shape (n_items, factors), float32
        Y.
    gramian : ndarray of shape (factors, factors), float64
        YᵀY, without λI.
    item_indices : ndarray of shape (n_liked,), int
        Rows of Y that the user liked, each once.
    confidence : ndarray of shape (n_liked,), float
        c of each liked item, greater than 0.
    regularization : float
        λ, greater than 0.

    Returns
    -------
    ndarray of shape (factors,), float32
        x; zeros if nothing is liked.

    References
    ----------
    Hu, Koren, Volinsky (ICDM 2008), eq. 4.
    """
    liked = item_factors[item_indices].astype(np.float64)  # (n_liked, factors)
    c = np.asarray(confidence, dtype=np.float64)
    normal = gramian + (liked.T * (c - 1.0)) @ liked  # YᵀCY = YᵀY + Yᵀ(C−I)Y
    normal[np.diag_indices_from(normal)] += regularization
    return np.linalg.solve(normal, liked.T @ c).astype(np.float32)


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


def _import_implicit(config: AlsConfig) -> Callable[[], Any]:
    """Load implicit for the device and return what makes its model; alpha is in the matrix, so it is 1 there."""
    options: dict[str, Any] = {
        "factors": config.factors,
        "regularization": config.regularization,
        "alpha": 1.0,
        "iterations": config.iterations,
        "random_state": int(config.random_state),  # a RandomState object breaks implicit's seeding
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


def _per_iteration(on_iteration: Callable[[], object] | None) -> Callable[[int, float, float | None], None]:
    def callback(_iteration: int, _seconds: float, _loss: float | None) -> None:
        if on_iteration is not None:
            on_iteration()

    return callback


def _to_array(factors: Any) -> NDArray[np.float32]:
    array = factors.to_numpy() if hasattr(factors, "to_numpy") else factors
    return np.ascontiguousarray(array, dtype=np.float32)


PRESETS: dict[str, AlsConfig] = {
    "default": AlsConfig(),
    # The point that published notebooks report on this split.
    "reference": AlsConfig(factors=64, regularization=0.02, alpha=21.0, iterations=20),
}
