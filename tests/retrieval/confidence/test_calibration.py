from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from retrieval.confidence.calibration import (
    PENALTY,
    LogisticModel,
    cross_validate,
    fit_logistic,
)
from retrieval.confidence.reliability import measure_reliability

NAMES = ("a", "b", "c")
TRUE_WEIGHTS = np.array([1.5, -0.7, 0.0])


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features of different scales, outcomes, and their true probabilities."""
    standard = rng.standard_normal((n, 3))
    true = 1 / (1 + np.exp(-(standard @ TRUE_WEIGHTS + 0.4)))
    return standard * [0.01, 5, 1] + [0.3, -2, 7], rng.random(n) < true, true


def brute_force(features: np.ndarray, is_right: np.ndarray, penalty: float) -> np.ndarray:
    """Return probabilities by a general minimizer of the same objective, term by term."""
    columns = (features - features.mean(axis=0)) / features.std(axis=0)
    n_right, n_wrong = is_right.sum(), (~is_right).sum()
    targets = np.where(is_right, (n_right + 1) / (n_right + 2), 1 / (n_wrong + 2))

    def objective(weights: np.ndarray) -> float:
        odds = columns @ weights[:-1] + weights[-1]
        entropy = targets * np.log1p(np.exp(-odds)) + (1 - targets) * np.log1p(np.exp(odds))
        return float(entropy.sum() + penalty / 2 * (weights[:-1] ** 2).sum())

    found = minimize(objective, np.zeros(features.shape[1] + 1), tol=1e-12).x
    odds: np.ndarray = columns @ found[:-1] + found[-1]
    return 1 / (1 + np.exp(-odds))


@pytest.mark.parametrize("penalty", [0.01, PENALTY, 30.0])
def test_the_fit_is_the_minimum_of_its_objective(rng: np.random.Generator, penalty: float) -> None:
    features, is_right, _ = draw(rng, 300)
    model = fit_logistic(features, is_right, NAMES, penalty=penalty)
    np.testing.assert_allclose(
        model.probabilities(features),
        np.clip(brute_force(features, is_right, penalty), model.least, 1 - model.least),
        atol=2e-6,
    )


def test_separable_data_stay_finite_and_within_what_their_number_supports() -> None:
    features = np.concatenate([np.linspace(-3, -1, 40), np.linspace(1, 3, 60)])[:, None]
    is_right = features[:, 0] > 0
    model = fit_logistic(features, is_right, ("a",))
    np.testing.assert_allclose(
        model.probabilities(features),
        np.clip(brute_force(features, is_right, PENALTY), 1 / 102, 101 / 102),
        atol=2e-6,
    )
    far = model.probabilities(np.array([[-1e6], [1e6]]))
    np.testing.assert_allclose(far, [1 / 102, 101 / 102], rtol=1e-12)


@pytest.mark.parametrize("outcome", [True, False])
def test_one_outcome_alone_gives_the_rule_of_succession(
    rng: np.random.Generator, outcome: bool
) -> None:
    features = rng.standard_normal((50, 3))
    model = fit_logistic(features, np.full(50, outcome), NAMES)
    expected = 51 / 52 if outcome else 1 / 52
    np.testing.assert_allclose(model.probabilities(features), expected, rtol=1e-6)
    np.testing.assert_allclose(model.coefficients, 0, atol=1e-6)


def test_right_and_wrong_are_treated_alike(rng: np.random.Generator) -> None:
    features, is_right, _ = draw(rng, 150)
    there = fit_logistic(features, is_right, NAMES).probabilities(features)
    back = fit_logistic(-features, ~is_right, NAMES).probabilities(-features)
    np.testing.assert_allclose(there, 1 - back, atol=1e-9)


def test_units_of_a_feature_do_not_matter(rng: np.random.Generator) -> None:
    features, is_right, _ = draw(rng, 150)
    scaled = features * [7, -0.01, 300] + [1, 2, 3]
    np.testing.assert_allclose(
        fit_logistic(features, is_right, NAMES).probabilities(features),
        fit_logistic(scaled, is_right, NAMES).probabilities(scaled),
        atol=1e-9,
    )


def test_a_feature_that_never_varies_has_no_say(rng: np.random.Generator) -> None:
    features, is_right, _ = draw(rng, 150)
    features[:, 1] = np.log(3)  # whose mean over 150 is another number
    model = fit_logistic(features, is_right, NAMES)
    assert model.coefficients[1] == 0 and " b" not in str(model)
    elsewhere = features + np.array([0, 40.0, 0])
    np.testing.assert_array_equal(model.probabilities(elsewhere), model.probabilities(features))


def test_known_probabilities_are_recovered_and_borne_out(rng: np.random.Generator) -> None:
    features, is_right, _ = draw(rng, 4000)
    model = fit_logistic(features, is_right, NAMES)
    fresh, happened, true = draw(rng, 4000)
    probabilities = model.probabilities(fresh)
    # Four weights of 4,000 outcomes: a standard error of some .01 in probability.
    assert np.abs(probabilities - true).mean() < 0.02
    found = measure_reliability(probabilities, happened, np.arange(4000), seed=0, n_resamples=400)
    assert found.calibration_error < found.calibration_error_if_true.high
    entropy = -(true * np.log(true) + (1 - true) * np.log(1 - true)).mean()
    assert found.log_loss.low < entropy < found.log_loss.high
    wrong = measure_reliability(
        probabilities**0.5, happened, np.arange(4000), seed=0, n_resamples=400
    )
    assert wrong.calibration_error > wrong.calibration_error_if_true.high


def test_held_out_probabilities_never_saw_their_image(rng: np.random.Generator) -> None:
    features, is_right, _ = draw(rng, 120)
    images = np.repeat(np.arange(40), 3)
    held_out = cross_validate(features, is_right, images, NAMES, seed=4, n_folds=5)
    folds = np.random.default_rng(4).permutation(40) % 5
    for fold in range(5):
        is_out = np.isin(images, np.flatnonzero(folds == fold))
        model = fit_logistic(features[~is_out], is_right[~is_out], NAMES)
        np.testing.assert_array_equal(held_out[is_out], model.probabilities(features[is_out]))
    altered = is_right.copy()
    altered[images == 17] ^= True
    again = cross_validate(features, altered, images, NAMES, seed=4, n_folds=5)
    np.testing.assert_array_equal(again[images == 17], held_out[images == 17])
    assert (again != held_out).any()


def test_a_model_survives_its_description(rng: np.random.Generator) -> None:
    features, is_right, _ = draw(rng, 60)
    model = fit_logistic(features, is_right, NAMES)
    assert LogisticModel.from_dict(model.to_dict()) == model
    assert str(model).startswith(f"log odds {model.intercept:+.2f} {model.coefficients[0]:+.2f} a")
    assert np.isnan(model.probabilities(np.array([[np.nan, 0, 0]]))).all()


def test_impossible_settings_are_refused(rng: np.random.Generator) -> None:
    features, is_right, _ = draw(rng, 30)
    with pytest.raises(ValueError, match="penalty is 0"):
        fit_logistic(features, is_right, NAMES, penalty=0)
    with pytest.raises(ValueError, match="n_folds is 40, expected 2 to 30"):
        cross_validate(features, is_right, np.arange(30), NAMES, seed=0, n_folds=40)
