"""The axes of the subspace are principal directions: those of the exact decomposition and of the former formula."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from moe_watch.detect.ood import subspace

Rows = NDArray[np.float32]


def former(rows: Rows, most: int) -> Rows:
    """Return the axes as they were found by hand before scikit-learn found them."""
    q = min(most, len(rows) - 1)
    width = min(q + 16, *rows.shape)
    guess = np.random.default_rng(0).standard_normal((rows.shape[1], width), np.float32)
    for _ in range(3):
        guess = np.linalg.qr(rows.T @ (rows @ guess))[0]
    return np.asarray(np.linalg.svd(rows @ guess, full_matrices=False)[2][:q] @ guess.T, np.float32)


def exact(rows: Rows, most: int) -> Rows:
    return np.asarray(PCA(most, svd_solver="full").fit(rows.astype(np.float64)).components_, np.float32)


def centred(directions: int, noise: float, requests: int = 400, features: int = 600) -> Rows:
    """Return rows that vary along some directions, each less than the one before, and a little along all."""
    rng = np.random.default_rng(5)
    along = np.linalg.qr(rng.normal(size=(features, directions)))[0].T
    rows = rng.normal(size=(requests, directions)) * 0.9 ** np.arange(directions) @ along
    rows += noise * rng.normal(size=rows.shape)
    return np.asarray(rows - rows.mean(0), np.float32)


def variance(rows: Rows, axes: Rows) -> float:
    return float(np.square(rows @ axes.T).sum())


@pytest.mark.parametrize("directions", [1, 8, 32])
def test_the_axes_of_rows_that_vary_along_few_directions_are_exact(directions: int) -> None:
    """As far as single precision goes they are the former ones, and the exact ones, up to their sign."""
    rows = centred(directions, noise=0)
    found = subspace._principal(rows, directions)
    for other in (former(rows, directions), exact(rows, directions)):
        assert np.abs(np.sum(found * other, 1)) == pytest.approx(np.ones(directions), abs=1e-5)


def test_the_axes_of_noisy_rows_hold_as_much_of_their_variance_as_the_former_ones() -> None:
    """Where noise has no axes of its own, no two approximations agree on them: none is worse."""
    rows = centred(12, noise=0.05)
    found, most = subspace._principal(rows, 32), variance(rows, exact(rows, 32))
    lost, lost_before = (most - variance(rows, axes) for axes in (found, former(rows, 32)))
    assert 0 <= lost <= 1.05 * lost_before <= 0.01 * most
    leading = np.linalg.svd(found[:12] @ exact(rows, 12).T, compute_uv=False)
    assert leading.min() > 1 - 1e-4


@pytest.mark.parametrize(("requests", "features", "most"), [(400, 600, 32), (6, 600, 32), (400, 12, 8)])
def test_the_axes_are_orthonormal_the_same_each_time_and_no_more_than_the_rows_allow(
    requests: int, features: int, most: int
) -> None:
    """Also where all rows are alike."""
    for rows in (centred(4, 0.05, requests, features), np.zeros((requests, features), np.float32)):
        found = subspace._principal(rows, most)
        assert found.shape == (min(most, requests - 1), features)
        assert found.dtype == np.float32
        assert found @ found.T == pytest.approx(np.eye(len(found)), abs=1e-4)
        assert (found == subspace._principal(rows, most)).all()
