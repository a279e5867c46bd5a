"""Logistic regression on logged rows without ever writing down its design: what repeats is computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

from hawker.simulators.rows import Rows

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Logistic:
    """log-odds = base + shopper features + item features + own effects of item and position + affinity.

    The weights maximise the likelihood less half their squares, the base aside: scikit-learn's ``LogisticRegression``
    with its L2 penalty, C = 1.

    Attributes:
        centre: What to subtract from shopper features, shape (D,).
        spread: What to divide them by, shape (D,).
        vectors: Scaled features of every item, shape (n_items, W).
        size: Positions of a page, K.
        weights: Of features of shoppers (D) and items (W), items (n_items), positions (K), affinity, base.
    """

    centre: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]
    size: int
    weights: FloatArray

    @property
    def _parts(self) -> npt.NDArray[np.int64]:
        return np.cumsum([len(self.centre), self.vectors.shape[1], len(self.vectors), self.size, 1])

    def predict(self, rows: Rows) -> FloatArray:
        """Return P(click) of rows, shape (n,)."""
        return np.asarray(expit(self._odds(rows, self._scaled(rows), self.weights)))

    def fit(self, rows: Rows) -> Logistic:
        """Return the regression with weights learned from rows."""
        clicked, scaled, n = rows.clicked.cpu().numpy().astype(np.float64), self._scaled(rows), len(rows)

        def loss(weights: FloatArray) -> tuple[float, FloatArray]:
            odds, penalised = self._odds(rows, scaled, weights), np.append(weights[:-1], 0.0)
            value = np.logaddexp(0.0, odds).sum() - clicked @ odds + penalised @ penalised / 2
            return float(value / n), (self._gradient(rows, scaled, expit(odds) - clicked) + penalised) / n

        found = minimize(loss, self.weights, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-6})
        return Logistic(self.centre, self.spread, self.vectors, self.size, np.asarray(found.x))

    def _scaled(self, rows: Rows) -> FloatArray:
        return np.asarray((rows.shopper.cpu().numpy() - self.centre) / self.spread, np.float64)

    def _odds(self, rows: Rows, scaled: FloatArray, weights: FloatArray) -> FloatArray:
        shopper, vector, item, position, affinity, base = np.split(weights, self._parts)
        page, shown, place = (array.cpu().numpy() for array in (rows.page, rows.item, rows.position))
        by_item = self.vectors @ vector + item
        near = affinity[0] * rows.affinity.cpu().numpy()
        return np.asarray((scaled @ shopper)[page] + by_item[shown] + position[place] + near + base[0], np.float64)

    def _gradient(self, rows: Rows, scaled: FloatArray, error: FloatArray) -> FloatArray:
        """Return the sum over rows of their errors (n,) times what stands before each weight."""
        page, shown, place = (array.cpu().numpy() for array in (rows.page, rows.item, rows.position))
        by_page = np.bincount(page, error, len(scaled))
        by_item = np.bincount(shown, error, len(self.vectors))
        by_place = np.bincount(place, error, self.size)
        near = rows.affinity.cpu().numpy() @ error
        return np.concatenate([by_page @ scaled, by_item @ self.vectors, by_item, by_place, [near, error.sum()]])
