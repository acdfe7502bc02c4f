"""The second stage: put the candidates in the order of how likely each is the next movie that the user likes.

``features ─▶ Ranker ─▶ recommender, second_stage``. Gradient-boosted trees from LightGBM, which is imported when a
ranker is made and not before: a service without one does not load it. What is learned from, and how, is decided by
``app.second_stage``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from app.candidates import Context, propose
from app.errors import ArtifactError
from app.features import FEATURES, compute, require_same_features
from app.trees import check_trees

if TYPE_CHECKING:
    import lightgbm


@dataclass(frozen=True)
class RankerConfig:
    """Hyper-parameters of the second stage; the names are LightGBM's.

    ``n_stages`` is how many earlier positives of each user are learned from, the latest first.
    """

    # Chosen on validation: ml-latest-small, three earlier positives of each user (`benchmarks/ranker.py`).
    n_stages: int = 6
    num_iterations: int = 200
    learning_rate: float = 0.06
    num_leaves: int = 10
    min_data_in_leaf: int = 50
    feature_fraction: float = 0.3
    lambda_l2: float = 10.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> RankerConfig:
        """Build a configuration from what a version states; what it does not state is as it is today."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def parameters(self, random_state: int, num_threads: int) -> dict[str, Any]:
        """Return what LightGBM is given; the result depends on no number of threads."""
        chosen = {name: value for name, value in asdict(self).items() if name not in ("n_stages", "num_iterations")}
        fixed = {"objective": "binary", "deterministic": True, "force_row_wise": True, "verbosity": -1}
        return {**chosen, **fixed, "seed": random_state % 2**31, "num_threads": num_threads}


class Ranker:
    """Trained trees: the score of a candidate is the log-odds that it is what the user likes next.

    Parameters
    ----------
    text : str
        LightGBM's text model.

    Raises
    ------
    ArtifactError
        If LightGBM is not installed, cannot read the text, or the text is of other features than this release computes.
    """

    def __init__(self, text: str) -> None:
        try:
            import lightgbm

            self._booster: lightgbm.Booster = lightgbm.Booster(model_str=text)
        except Exception as error:  # a missing package or system library, or whatever the parser raises
            raise ArtifactError(
                f"the ranker cannot be loaded ({type(error).__name__}: {error}); expected LightGBM and a text model of "
                "its. Install the requirements (pip install -r requirements.txt), or train again: python train_als.py"
            ) from error
        require_same_features(self._booster.feature_name())
        self.text = text

    def score(self, matrix: NDArray[np.float32], num_threads: int = 1) -> NDArray[np.float32]:
        """Score candidates.

        Parameters
        ----------
        matrix : ndarray of shape (n, n_features), float32
            From ``features.compute``.
        num_threads : int
            One by default: other requests want the other cores. 0 for all.

        Returns
        -------
        ndarray of shape (n,), float32
        """
        scores = self._booster.predict(matrix, raw_score=True, num_threads=num_threads)
        return np.asarray(scores, dtype=np.float32)

    def rank(self, context: Context, num_threads: int = 1) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the candidates of a request, best first, and their scores; equal scores by item index.

        Nothing is ranked for a history without positives.
        """
        items = propose(context) if len(context.liked) else np.empty(0, dtype=np.int64)
        if len(items) == 0:
            return items, np.empty(0, dtype=np.float32)
        scores = self.score(compute(context, items), num_threads)
        order = np.argsort(-scores, kind="stable")
        return items[order], scores[order]

    def contributions(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Divide scores among the features (TreeSHAP), (n, n_features); a score is the row's sum and a constant.

        References
        ----------
        Lundberg, Erion, Lee, "Consistent Individualized Feature Attribution for Tree Ensembles" (2018).
        """
        divided = self._booster.predict(matrix, pred_contrib=True, num_threads=1)
        return np.asarray(divided, dtype=np.float64)[:, : len(FEATURES)]

    def gain(self) -> dict[str, float]:
        """Return each feature's share of the loss that all splits took away."""
        gains = self._booster.feature_importance("gain")
        return dict(zip(FEATURES, (gains / max(gains.sum(), 1e-12)).tolist(), strict=True))


def read_ranker(text: str) -> Ranker:
    """Make a ranker of a text that somebody else wrote, which is tried in a process of its own first.

    Raises
    ------
    ArtifactError
        As for ``Ranker``, or if the text brings LightGBM down.
    """
    check_trees(text, len(FEATURES))
    return Ranker(text)


def fit_ranker(
    matrix: NDArray[np.float32], labels: NDArray[np.int8], config: RankerConfig, random_state: int, num_threads: int
) -> Ranker:
    """Fit trees to candidates of which one of each request, or none, was what the user liked next.

    Minimises the binary log-loss Σ −log σ(±f(x)) with L2-regularised leaves.

    Parameters
    ----------
    matrix : ndarray of shape (n_rows, n_features), float32
    labels : ndarray of shape (n_rows,), int8
        1 where the candidate was it.

    References
    ----------
    Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree" (NeurIPS 2017).
    """
    import lightgbm

    rows = lightgbm.Dataset(matrix, labels, feature_name=list(FEATURES), params={"verbosity": -1})
    booster = lightgbm.train(config.parameters(random_state, num_threads), rows, config.num_iterations)
    # Which threads trained it is no property of the model: equal data give equal text.
    return Ranker(re.sub(r"\[num_threads: \d+\]", "[num_threads: 0]", booster.model_to_string()))
