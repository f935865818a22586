"""The linear probe of frozen features, by scikit-learn.

n training images, m test images, D features, C classes.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from ehm.errors import BackendError
from ehm.installation import build_install_command

__all__ = ["PENALTIES", "Features", "check_scikit_learn", "probe_linearly"]

Features = NDArray[np.float32]
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Values of scikit-learn's C, the inverse of the penalty, that the linear probe chooses from."""
_INNER_FOLDS = 3
"""Folds of the training images in the cross-validation that chooses the penalty."""
_MOST_ITERATIONS = 300
"""Steps of L-BFGS; a probe that has not converged by then changes in the third digit of its accuracy at most."""


def check_scikit_learn() -> None:
    """Raise BackendError, which names the extra to install, if scikit-learn is missing."""
    if find_spec("sklearn") is None:
        raise BackendError(f"compare: scikit-learn is not installed; {build_install_command('tasks')} installs it")


def probe_linearly(
    features: Features, labels: NDArray[np.int64], queries: Features, classes: int
) -> NDArray[np.float64]:
    """Return the probabilities (m, C) that logistic regression on standardised ``features`` (n, D) gives ``queries``.

    Cross-validation inside the training images chooses the penalty of :data:`PENALTIES` with the lowest log-loss. If a
    class has only one image, which cannot be divided into folds, the strongest penalty is taken. A class without
    training images has probability 0.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    present, counts = np.unique(labels, return_counts=True)
    probabilities = np.zeros((len(queries), classes))
    if len(present) == 1:  # nothing to tell apart
        probabilities[:, present] = 1
        return probabilities
    model = make_pipeline(StandardScaler(), LogisticRegression(C=PENALTIES[0], max_iter=_MOST_ITERATIONS))
    folds = min(_INNER_FOLDS, int(counts.min()))
    if folds > 1:
        model = GridSearchCV(
            model,
            {"logisticregression__C": PENALTIES},
            scoring="neg_log_loss",
            cv=StratifiedKFold(folds, shuffle=True, random_state=0),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    probabilities[:, model.classes_] = model.predict_proba(queries)
    return probabilities
