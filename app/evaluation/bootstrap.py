"""How sure a mean over users is: bootstrap intervals, of means and of differences between models.

The intervals say how a figure would vary over other users of the same kind, with the same fitted models. They do not
say how it would vary over training seeds: that is what ``benchmarks/seeds.py`` is for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

N_RESAMPLES = 1_000
MAX_GROUPS = 5_000
LEVEL = (2.5, 97.5)  # percentiles
_DRAWS_AT_ONCE = 1 << 20
_ROUNDING = 1e-12  # means of equal values differ by this little

DEFINITION = (
    f"95 % percentile bootstrap over target users ({N_RESAMPLES:,} resamples), the same resamples for all models, so "
    f"that differences are paired; more than {MAX_GROUPS:,} users are resampled in that many random groups; none where "
    "all resamples agree or too few users are left; conditional on the fitted models, that is on the training seed"
)


def resampled_means(
    values: NDArray[np.float64], random_state: int, n_resamples: int = N_RESAMPLES
) -> NDArray[np.float64]:
    """Return the column means of resampled users.

    More than ``MAX_GROUPS`` users are first put into that many groups at random, and groups are resampled, which leaves
    the distribution of a mean as it is and bounds the work.

    Parameters
    ----------
    values : ndarray of shape (n_users, n_columns), float64
        One row a user; NaN where a measure is undefined for the user.

    Returns
    -------
    ndarray of shape (n_resamples, n_columns), float64
        Row r holds the means over one resample, the same users for all columns. NaN where a resample has no user for
        whom the measure is defined.

    References
    ----------
    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 13 and 16.
    """
    rng = np.random.default_rng(random_state)
    is_defined = ~np.isnan(values)
    totals = np.concatenate([np.where(is_defined, values, 0.0), is_defined], axis=1)
    if len(totals) > MAX_GROUPS:
        starts = np.linspace(0, len(totals), MAX_GROUPS, endpoint=False).astype(np.int64)
        totals = np.add.reduceat(totals[rng.permutation(len(totals))], starts)
    n_groups = len(totals)
    sums = np.empty((n_resamples, totals.shape[1]))
    with threadpool_limits(1, "blas"):  # the last bits of a product depend on the number of threads
        for resamples in np.array_split(np.arange(n_resamples), n_resamples * n_groups // _DRAWS_AT_ONCE + 1):
            drawn = rng.integers(n_groups, size=(len(resamples), n_groups))
            drawn += np.arange(len(resamples))[:, None] * n_groups
            counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            sums[resamples] = counts.astype(np.float64) @ totals
    n_columns = values.shape[1]
    n_defined = sums[:, n_columns:]
    means = np.full(n_defined.shape, np.nan)
    np.divide(sums[:, :n_columns], n_defined, out=means, where=n_defined > 0)
    return means


def interval(resampled: NDArray[np.float64]) -> list[float] | None:
    """Return the 95 % percentile interval of resampled values of shape (n_resamples,).

    None where it would only pretend to be sure: where more than one resample in twenty has no user for whom the measure
    is defined, and where all resamples agree, as those of users without a single hit do.
    """
    is_defined = ~np.isnan(resampled)
    if is_defined.mean() < 0.95 or np.ptp(resampled[is_defined]) < _ROUNDING:
        return None
    low, high = np.percentile(resampled[is_defined], LEVEL)
    return [float(low), float(high)]
