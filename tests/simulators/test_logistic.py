"""The logistic baseline against scikit-learn's, on the design written out."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hawker.shop.context import ContextBuilder
from hawker.simulators.logistic import Logistic
from hawker.simulators.rows import encode_log


def test_weights_are_those_of_scikit_learn(journeys):
    impressions, items, _ = journeys
    builder = ContextBuilder.fit(impressions, items)
    rows = encode_log(impressions, builder, None, torch.device("cpu")).rows
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(len(items), 4)).astype(np.float32)
    centre, spread = builder.shopper.centre, builder.shopper.spread
    width = len(centre) + 4 + len(items) + 3 + 2
    fitted = Logistic(centre, spread, vectors, 3, np.zeros(width)).fit(rows)
    item, position, page = rows.item.numpy(), rows.position.numpy(), rows.page.numpy()
    blocks = ((rows.shopper.numpy() - centre) / spread)[page], vectors[item], np.eye(len(items))[item]
    design = np.hstack([*blocks, np.eye(3)[position], rows.affinity.numpy()[:, None]])
    theirs = LogisticRegression(C=1.0, max_iter=2000, tol=1e-8).fit(design, rows.clicked.numpy())
    assert fitted.predict(rows) == pytest.approx(theirs.predict_proba(design)[:, 1], abs=1e-3)
    assert fitted.weights[:-1] == pytest.approx(theirs.coef_[0], abs=5e-3)
