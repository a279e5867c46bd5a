"""How far learned shoppers can be believed: their predictions on rows that no model has seen, against baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score

from hawker.shop.figures import Figure, figure
from hawker.simulators.likelihood import predict_rows
from hawker.simulators.logistic import Logistic
from hawker.simulators.rows import EncodedLog, Rows
from hawker.simulators.shopper import Ensemble, calibrated
from hawker.simulators.store import FittedShoppers
from hawker.simulators.stored import some_units
from hawker.simulators.taste_rows import believing

FloatArray = npt.NDArray[np.float64]
JUDGED = 2_000_000
"""Rows that a fidelity report, and its baseline, are made of at most, about."""

LEAST = 1e-6
"""Probabilities are kept this far from 0 and 1 before a logarithm is taken."""


def measure_fidelity(shoppers: FittedShoppers, logs: Mapping[str, EncodedLog], split: dict[str, Any]) -> dict[str, Any]:
    """Return the fidelity report of freshly fitted shoppers.

    Every prediction is judged on the part of the log kept for estimates. The baselines learn from the same rows as the
    ensemble that strategies train against: the constant is their click rate, the logistic regression (L2, C = 1) sees
    shopper features, item, item features, position and affinity, without interactions. Of parts of more than
    ``JUDGED`` rows whole shoppers are drawn at random.

    Args:
        shoppers: The fitted shoppers.
        logs: The parts of the log, by name.
        split: What the report says of how it was split.
    """
    device = shoppers.arrivals["train"].shopper.device
    whole, seed = logs["train"].rows, shoppers.config.seed
    train, held_out = some_units(logs["train"], JUDGED, seed), some_units(logs["estimate"], JUDGED, seed)
    rows, cluster = held_out.rows.to(device), held_out.owners()
    clicked = rows.clicked.cpu().numpy().astype(np.float64)
    rate = (float(whole.clicked.sum()) + 0.5) / (len(whole) + 1.0)
    predictions = {
        "constant": np.full(len(rows), rate),
        "logistic": logistic_baseline(train.rows, rows, shoppers),
        "train": predict(shoppers.ensembles["train"], rows),
        "judge": predict(shoppers.ensembles["judge"], rows),
    }
    losses = {name: _log_losses(p, clicked) for name, p in predictions.items()}
    figures: dict[str, Figure] = {}
    for name, loss in losses.items():
        figures[f"log_loss.{name}"] = mean_figure(loss, cluster, "nats")
    for name in ("train", "judge"):
        for baseline in ("constant", "logistic"):
            difference = losses[name] - losses[baseline]
            figures[f"log_loss.{name}_minus_{baseline}"] = mean_figure(difference, cluster, "nats")
    for name in ("logistic", "train", "judge"):
        figures[f"auc.{name}"] = auc_figure(predictions[name], clicked)
    for name in ("constant", "logistic", "train", "judge"):
        figures[f"calibration.{name}"] = calibration_figure(predictions[name], clicked)
    return {"figures": figures, "split": split, "heads": heads(shoppers)}


def heads(shoppers: FittedShoppers) -> dict[str, str]:
    """Say which heads these shoppers have and why others are absent."""
    recorded = shoppers.ensembles["train"].models[0].recorded
    known = {
        "conversion": (recorded.conversions, "the log records no conversions"),
        "revenue": (recorded.revenue, "the log records no revenue"),
        "leave": (recorded.timeline, "the log shows nobody on more than one page"),
        "return": (recorded.returns, "the log does not know its shoppers or none came back, so no return can be seen"),
    }
    told = {name: "learned" if there else f"absent: {why}" for name, (there, why) in known.items()}
    return {"click": "learned", "examination": "learned", **told}


def batches(rows: Rows, size: int = 1 << 14) -> Iterator[Rows]:
    """Yield a log in order, about ``size`` rows at a time, shoppers whole."""
    device = rows.item.device
    units = torch.arange(len(rows.shopper) if rows.time is None else len(rows.time), device=device)
    for some in units.split(max(1, len(units) * size // max(len(rows), 1))):
        if rows.time is None:
            yield rows.take(some)
        else:
            yield rows.take(rows.time.pages(some), rows.time.take(some))


@torch.no_grad()
def predict(ensemble: Ensemble, rows: Rows) -> FloatArray:
    """Return the ensemble's mean calibrated P(click) of each row, shape (n,)."""
    found, rows = [], believing(ensemble.tastes, rows)
    for batch in batches(rows):
        raw = torch.stack([predict_rows(model, batch).click.exp() for model in ensemble.models])
        found.append(calibrated(raw, ensemble.calibration[0]).mean(0).double().cpu().numpy())
    return np.concatenate(found)


def logistic_baseline(train: Rows, rows: Rows, shoppers: FittedShoppers) -> FloatArray:
    """Return what a logistic regression on ``train`` expects of ``rows``: P(click), shape (n,)."""
    clicked = train.clicked.cpu().numpy()
    if clicked.min() == clicked.max():
        return np.full(len(rows), (clicked.sum() + 0.5) / (len(clicked) + 1.0))
    features, catalog = shoppers.builder.shopper, shoppers.builder.catalog
    vectors = (catalog.vectors - catalog.centre) / catalog.spread
    parts = len(features.centre) + vectors.shape[1] + len(catalog) + shoppers.size + 2
    unfitted = Logistic(features.centre, features.spread, vectors, shoppers.size, np.zeros(parts))
    return unfitted.fit(train).predict(rows)


def _log_losses(probability: FloatArray, clicked: FloatArray) -> FloatArray:
    p = probability.clip(LEAST, 1 - LEAST)
    return np.asarray(-(clicked * np.log(p) + (1 - clicked) * np.log1p(-p)))


def mean_figure(values: FloatArray, cluster: npt.NDArray[Any] | None, unit: str) -> Figure:
    """Return a mean with its 95% interval, normal with a variance by cluster where rows share a shopper.

    Without variation, as where nobody clicked or all rows are one shopper's, there is no interval.
    """
    group = np.arange(len(values)) if cluster is None else pd.factorize(cluster)[0]
    mean = float(values.mean())
    deviation = np.bincount(group, values - mean)
    n_groups = len(deviation)
    error = np.sqrt((deviation**2).sum() * n_groups / max(n_groups - 1, 1)) / len(values)
    half = float(scipy.stats.norm.ppf(0.975) * error)
    if half <= 1e-12 * abs(mean):
        return figure(mean, None, None, len(values), unit)
    return figure(mean, mean - half, mean + half, len(values), unit)


def auc_figure(score: FloatArray, clicked: FloatArray) -> Figure:
    """Return the area under the ROC curve with the interval of Hanley and McNeil (1982); null with one class only.

    Their variance is 0 where the classes are told apart without a fault: then there is no interval.
    """
    positive = int(clicked.sum())
    negative = len(clicked) - positive
    if not positive or not negative:
        return figure(None, None, None, len(clicked), "probability")
    auc = float(roc_auc_score(clicked, score))
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positive - 1) * (q1 - auc**2) + (negative - 1) * (q2 - auc**2)
    half = float(scipy.stats.norm.ppf(0.975) * np.sqrt(variance / (positive * negative)))
    if not half:
        return figure(auc, None, None, len(clicked), "probability")
    return figure(auc, max(0.0, auc - half), min(1.0, auc + half), len(clicked), "probability")


def calibration_figure(probability: FloatArray, clicked: FloatArray) -> Figure:
    """Return expected over observed clicks with the exact Poisson interval of the count; null without a click."""
    expected, observed = float(probability.sum()), float(clicked.sum())
    if not observed:
        return figure(None, None, None, len(clicked), "ratio")
    low = scipy.stats.chi2.ppf(0.025, 2 * observed) / 2
    high = scipy.stats.chi2.ppf(0.975, 2 * observed + 2) / 2
    return figure(expected / observed, expected / float(high), expected / float(low), len(clicked), "ratio")
