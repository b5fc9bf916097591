"""Chen et al. 2021, supplement, section 3: which of three matrices the Hessian is near to, and where the proof goes wrong."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from labkit.data import load as load_data
from labkit.data.dataset import normalise
from labkit.studies.mpqco.identities import Sides, empirical_fisher, fisher_identity, five, norm, sides
from labkit.studies.mpqco.scores import power
from labkit.studies.mpqco.small_net import LOSSES, SmallNet, fitted, small_images
from labkit.studies.study import Figure, Finding, Series, Settings, StudyResult, Table, Tell

__all__ = ["run"]

_FITTED = 40  # images that are fitted
_ITERATIONS = {"cross-entropy": (0, 2, 4, 8, 12, 16, 20, 24), "squared-error": (0, 2, 4, 6, 8, 9, 10, 11)}
_COUNTS = (40, 100, 300, 1000, 3000)  # images of proposition 1
_DRAWS = 4
_WORDS = {"cross-entropy": "softmax", "squared-error": "least squares"}

_OWN, _DRAWN = "the images' own", "drawn from the model"

_Fits = dict[tuple[str, int], list[Tensor]]


def run(settings: Settings, tell: Tell) -> StudyResult:
    """Form every matrix of a small network, for softmax and for least squares, while its training images are fitted.

    ``settings`` say how much of it; ``tell`` is called with (what, done, all).
    """
    data = load_data(settings.data, data_dir=settings.data_dir)
    counts = (20, 40) if settings.smoke else _COUNTS
    take = min(len(data.train_images), 12 * counts[-1])
    x, classes = small_images(normalise(data.train_images[:take]), data.train_labels[:take], counts[-1])
    one_hot = torch.nn.functional.one_hot(classes).double()
    labels = {"cross-entropy": classes, "squared-error": one_hot}
    few = 12 if settings.smoke else _FITTED
    fits: _Fits = {}
    found: dict[tuple[str, int], list[Sides]] = {}
    total = len(LOSSES) * settings.seeds
    for loss in LOSSES:
        net = SmallNet(loss)
        iterations = _ITERATIONS[loss][:: 4 if settings.smoke else 1]
        for seed in range(settings.seeds):
            fits[loss, seed] = fitted(net, x[:few], labels[loss][:few], seed, iterations)
            found[loss, seed] = [sides(net, theta, x[:few], labels[loss][:few]) for theta in fits[loss, seed]]
            tell("fits and both sides of the bound", len(found), total)
    straight = {
        loss: sides(
            net := SmallNet(loss, hidden=0),
            fitted(net, x[:few], labels[loss][:few], 0, (2,))[0],
            x[:few],
            labels[loss][:few],
        )
        for loss in LOSSES
    }
    identities = _identities(fits, x[:few], {loss: some[:few] for loss, some in labels.items()})
    distances = {
        loss: _distances(
            SmallNet(loss), fits[loss, 0][1], x, labels[loss], counts, 2 if settings.smoke else _DRAWS, tell
        )
        for loss in LOSSES
    }
    size = SmallNet(LOSSES[0]).size
    tables = (
        _identity_table(identities),
        *(_bounds(loss, found[loss, 0]) for loss in LOSSES),
        _distance_table(counts, distances),
    )
    findings = (
        *_equations(identities),
        _first(counts, distances),
        *_second(found),
        _linear(straight),
        *_what_holds(found),
    )
    return StudyResult(
        tables, findings, (_gaps(found), _both(found), _law(counts, distances)), _notes(size, few, settings)
    )


def _identities(fits: _Fits, x: Tensor, labels: dict[str, Tensor]) -> dict[str, tuple[float, float, float]]:
    """The largest of: differences between the lines of (5), of the sides of (6), and of (8) from 0, by loss."""
    found = {}
    for loss in LOSSES:
        net, values = SmallNet(loss), []
        for theta in [fits[loss, 0][0], fits[loss, 0][1], fits[loss, 0][len(fits[loss, 0]) // 2]]:
            values.append((five(net, theta, x, labels[loss]), *fisher_identity(net, theta, x)))
        found[loss] = tuple(np.max(values, 0).tolist())
    return found


def _distances(
    net: SmallNet, theta: Tensor, x: Tensor, labels: Tensor, counts: tuple[int, ...], draws: int, tell: Tell
) -> dict[str, list[list[float]]]:
    """``|H~ - H| / |H|`` of the first N images by number, with labels drawn from the model, several times, and with their own."""
    found: dict[str, list[list[float]]] = {_DRAWN: [], _OWN: []}
    for at, count in enumerate(counts):
        part = x[:count]
        some = [net.drawn(theta, part, seed) for seed in range(draws)]
        found[_DRAWN].append([_distance(net, theta, part, one) for one in some])
        found[_OWN].append([_distance(net, theta, part, labels[:count])])
        tell(f"proposition 1, {_WORDS[net.loss]}", at + 1, len(counts))
    return found


def _distance(net: SmallNet, theta: Tensor, x: Tensor, labels: Tensor) -> float:
    whole = net.hessian(theta, x, labels)
    return norm(empirical_fisher(net, theta, x, labels) - whole) / norm(whole)


def _identity_table(found: dict[str, tuple[float, float, float]]) -> Table:
    rows = tuple((_WORDS[loss], *(f"{value:.1e}" for value in values)) for loss, values in found.items())
    columns = (
        "loss",
        "(5): lines differ by",
        "(6): E[-∇² log p] from E[∇ log p ∇ log pᵀ]",
        "(8): E[-∇²p / p] from 0",
    )
    return Table("Equations 5 to 8: largest relative difference", columns, rows)


def _bounds(loss: str, found: list[Sides]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for one in found:
        rows.append(
            (
                f"{one.loss:.1e}",
                f"{one.hessian:.1e}",
                f"{one.gaps['GGN'] / one.hessian:.3f}",
                f"{one.gaps['Fisher'] / one.hessian:.3f}",
                f"{one.gaps['GGN']:.1e} ≤ {one.bound:.1e}" if one.gaps["GGN"] <= one.bound else "fails",
                _sign(one.gaps["Fisher"], one.bound),
                _sign(one.gaps["Fisher"] ** 2, one.printed),
                _sign(one.gaps["GGN"], one.fifteen),
            )
        )
    columns = (
        "loss",
        "norm of H",
        "‖H - GGN‖ / ‖H‖",
        "‖H - H̃‖ / ‖H‖",
        "‖H - GGN‖ and rβ/N",
        "‖H - H̃‖ and rβ/N",
        "(13) as printed: ‖H - H̃‖² and rβ",
        "(15): ‖H - GGN‖ and abs(Σr)β/N",
    )
    return Table(
        f"Proposition 2 while {_WORDS[loss]} is fitted (H̃: empirical Fisher, equation 5; seed 0)", columns, tuple(rows)
    )


def _sign(left: float, right: float) -> str:
    return f"{left:.1e} {'≤' if left <= right else '**>**'} {right:.1e}"


def _distance_table(counts: tuple[int, ...], distances: dict[str, dict[str, list[list[float]]]]) -> Table:
    rows: list[tuple[str | int, ...]] = []
    for at, count in enumerate(counts):
        cells = []
        for found in distances.values():
            drawn = np.array(found[_DRAWN][at])
            cells += [f"{drawn.mean():.3f} ± {drawn.std(ddof=1):.3f}", f"{found[_OWN][at][0]:.3f}"]
        rows.append((count, *cells))
    columns = [f"{_WORDS[loss]}, labels {kind}" for loss in distances for kind in (_DRAWN, _OWN)]
    return Table("Proposition 1: ‖H̃ - H‖ / ‖H‖ by the number of images", ("images", *columns), tuple(rows))


def _equations(found: dict[str, tuple[float, float, float]]) -> list[Finding]:
    lines = {loss: values[0] for loss, values in found.items()}
    fisher = {loss: max(values[1:]) for loss, values in found.items()}
    return [
        Finding(
            "The lines of equation 5 are equal (to 1e-6)",
            ", ".join(f"{_WORDS[loss]} {value:.0e}" for loss, value in lines.items()),
            "yes" if max(lines.values()) < 1e-6 else "no",
        ),
        Finding(
            "Equations 6 to 8: the Fisher matrix is also the expected second derivative (to 1e-5)",
            ", ".join(f"{_WORDS[loss]} {value:.0e}" for loss, value in fisher.items()),
            "yes" if max(fisher.values()) < 1e-5 else "no",
        ),
    ]


def _first(counts: tuple[int, ...], distances: dict[str, dict[str, list[list[float]]]]) -> Finding:
    slopes, words, stays = [], [], []
    for loss, found in distances.items():
        drawn, own = _means(found)
        slopes.append(power(np.array(counts, float), np.array(drawn)))
        stays.append(own[-1] / drawn[-1])
        words.append(
            f"{_WORDS[loss]}: falls as N to the power {slopes[-1]:.2f} to {drawn[-1]:.3f}; with the images' own labels "
            f"{own[0]:.2f} to {own[-1]:.2f}"
        )
    return Finding(
        "Proposition 1: H̃ tends to H as N grows if labels are distributed as the model says",
        "; ".join(words),
        "yes" if all(-0.7 < s < -0.3 for s in slopes) and min(stays) > 2 else "partly" if max(slopes) < -0.2 else "no",
    )


def _means(found: dict[str, list[list[float]]]) -> tuple[list[float], list[float]]:
    return [float(np.mean(some)) for some in found[_DRAWN]], [some[0] for some in found[_OWN]]


def _all(found: dict[tuple[str, int], list[Sides]], loss: str) -> list[Sides]:
    return [one for (kind, _), some in found.items() if kind == loss for one in some]


def _second(found: dict[tuple[str, int], list[Sides]]) -> list[Finding]:
    points = [one for some in found.values() for one in some]
    rests = {name: max(one.rests[name] / one.hessian for one in points) for name in ("GGN", "Fisher")}
    unscaled = max(one.unscaled / one.hessian for one in points)
    held = {loss: [one.gaps["Fisher"] ** 2 <= one.printed for one in _all(found, loss)] for loss in LOSSES}
    right = {loss: [one.gaps["GGN"] <= one.fifteen for one in _all(found, loss)] for loss in LOSSES}
    ends = {key: some[-1] for key, some in found.items()}
    fisher = [one.gaps["Fisher"] / one.hessian for one in ends.values()]
    return [
        Finding(
            "Equation 14: H = H̃ + Σ r ∇²f",
            f"left over, as a share of ‖H‖ at most: {rests['Fisher']:.2g} with H̃ and 1/N, {unscaled:.2g} with the GGN and "
            f"without 1/N, {rests['GGN']:.0e} with the GGN and 1/N",
            "yes" if rests["Fisher"] < 1e-6 else "no",
        ),
        Finding(
            "Equation 13, proposition 2: ‖H - H̃‖² ≤ r β",
            "holds at " + " and ".join(f"{sum(h)} of {len(h)} points of {_WORDS[loss]}" for loss, h in held.items()),
            "yes" if all(all(h) for h in held.values()) else "partly" if any(all(h) for h in held.values()) else "no",
        ),
        Finding(
            "Equation 15: ‖H - GGN‖ ≤ |Σ r| β / N, the absolute value outside (even for the GGN)",
            "holds at " + " and ".join(f"{sum(h)} of {len(h)} points of {_WORDS[loss]}" for loss, h in right.items()),
            "yes" if all(all(h) for h in right.values()) else "partly" if any(any(h) for h in right.values()) else "no",
        ),
        Finding(
            "H̃ is exact if the data is perfectly fit",
            f"at the end of {len(ends)} fits (loss at most {max(one.loss for one in ends.values()):.0e}) ‖H - H̃‖ / ‖H‖ is "
            f"{min(fisher):.4f} to {max(fisher):.4f}: H̃ is gone and H is not",
            "yes" if max(fisher) < 0.1 else "partly" if min(fisher) < 0.5 else "no",
        ),
    ]


def _linear(found: dict[str, Sides]) -> Finding:
    """A model without second derivatives: the right side of (13) is 0."""
    off = {loss: one.gaps["Fisher"] / one.hessian for loss, one in found.items()}
    return Finding(
        "Equation 13 for a linear model, f = W x + b, for which β = 0: H̃ = H",
        "; ".join(
            f"{_WORDS[loss]}: ‖H - H̃‖ / ‖H‖ {off[loss]:.2f}, ‖H - GGN‖ / ‖H‖ {one.gaps['GGN'] / one.hessian:.0e} "
            f"(β {one.beta:.0e})"
            for loss, one in found.items()
        ),
        "yes" if max(off.values()) < 1e-6 else "no",
    )


def _what_holds(found: dict[tuple[str, int], list[Sides]]) -> list[Finding]:
    points = [one for some in found.values() for one in some]
    kept = [one.gaps["GGN"] <= one.bound for one in points]
    wider = [one.gaps["Fisher"] <= one.bound + one.mixed for one in points]
    simple = {loss: [one.gaps["Fisher"] <= one.bound for one in _all(found, loss)] for loss in LOSSES}
    ends = {loss: [some[-1] for (kind, _), some in found.items() if kind == loss] for loss in LOSSES}
    relative = {loss: [one.gaps["GGN"] / one.hessian for one in some] for loss, some in ends.items()}
    return [
        Finding(
            "What holds instead: ‖H - GGN‖ ≤ β/N Σ|r|, norm unsquared, mean over images",
            f"at {sum(kept)} of {len(kept)} points; the same for H̃ at "
            + " and ".join(f"{sum(h)} of {len(h)} of {_WORDS[loss]}" for loss, h in simple.items()),
            "yes" if all(kept) else "no",
        ),
        Finding(
            "For H̃ a second part is needed: ‖H - H̃‖ ≤ β/N Σ|r| + mean ‖A - r rᵀ‖ ‖J‖²",
            f"at {sum(wider)} of {len(wider)} points; the second part does not vanish with the residuals of least squares, where "
            "A is the unit matrix",
            "yes" if all(wider) else "no",
        ),
        Finding(
            "The GGN is exact if the data is perfectly fit",
            "; ".join(
                f"{_WORDS[loss]}: ‖H - GGN‖ / ‖H‖ {min(some):.1e} to {max(some):.1e} at a loss of at most "
                f"{max(one.loss for one in ends[loss]):.0e}"
                for loss, some in relative.items()
            ),
            "yes"
            if all(max(some) < 1e-3 for some in relative.values())
            else "partly"
            if any(max(some) < 1e-3 for some in relative.values())
            else "no",
        ),
    ]


def _gaps(found: dict[tuple[str, int], list[Sides]]) -> Figure:
    panels = []
    for loss in LOSSES:
        some = found[loss, 0]
        losses = tuple(one.loss for one in some)
        series = (
            Series("H̃, empirical Fisher", losses, tuple(one.gaps["Fisher"] / one.hessian for one in some)),
            Series("GGN", losses, tuple(one.gaps["GGN"] / one.hessian for one in some)),
        )
        panels.append(
            Figure("panel", _WORDS[loss], "line", "training loss", "‖H - X‖ / ‖H‖", series, log_x=True, log_y=True)
        )
    title = "As the data is fitted (to the left) the Hessian tends to the GGN and leaves the empirical Fisher matrix"
    return Figure("gaps", title, "line", "", "", (), panels=tuple(panels))


def _both(found: dict[tuple[str, int], list[Sides]]) -> Figure:
    panels = []
    for loss in LOSSES:
        some = found[loss, 0]
        losses = tuple(one.loss for one in some)
        series = (
            Series("‖H - H̃‖", losses, tuple(one.gaps["Fisher"] for one in some)),
            Series("‖H - GGN‖", losses, tuple(one.gaps["GGN"] for one in some)),
            Series("bound β/N Σ|r|", losses, tuple(one.bound for one in some)),
        )
        panels.append(
            Figure("panel", _WORDS[loss], "line", "training loss", "spectral norm", series, log_x=True, log_y=True)
        )
    title = "Proposition 2, both sides: what bounds ‖H - GGN‖ does not bound ‖H - H̃‖"
    return Figure("bound", title, "line", "", "", (), panels=tuple(panels))


def _law(counts: tuple[int, ...], distances: dict[str, dict[str, list[list[float]]]]) -> Figure:
    series = []
    for loss, found in distances.items():
        for kind, values in zip((_DRAWN, _OWN), _means(found), strict=True):
            series.append(Series(f"{_WORDS[loss]}, labels {kind}", tuple(map(float, counts)), tuple(values)))
    return Figure(
        "proposition-1",
        "Proposition 1: H̃ and H with drawn and with given labels",
        "line",
        "images",
        "‖H̃ - H‖ / ‖H‖",
        tuple(series),
        log_x=True,
        log_y=True,
    )


def _notes(size: int, few: int, settings: Settings) -> tuple[str, ...]:
    return (
        f"A network 16 - 8 tanh - 3 with {size} parameters on 4 x 4 grey pixels of three classes, in float64; all derivatives by "
        f"automatic differentiation, by all parameters at once. {few} images are fitted by damped Gauss-Newton steps from "
        f"{settings.seeds} seeds. Least squares: the targets are one-hot, the variance 1. Norms are spectral.",
        "**Where the derivation goes wrong.** The chain rule gives ∇²ℓ = Jᵀ A J + Σ_m r_m ∇²f_m for an image, J the derivatives "
        "of the outputs and A those of r. The mean of the first term is the generalised Gauss-Newton matrix (GGN), for softmax "
        "and least squares the true Fisher matrix F. The supplement's equation 14 puts H̃ in its place, the mean of Jᵀ r rᵀ J. "
        "But r rᵀ is A only on average over labels drawn from the model (proposition 1); with fitted labels r rᵀ vanishes as r², "
        "while A does not vanish (least squares) or vanishes as r (softmax).",
        "Three smaller slips: equation 14 drops the 1/N of equation 1, and so does r(θ); equation 13 squares the norm, which "
        "the proof does not; equation 15 has the absolute value outside the sum, which is 0 for softmax, whose residuals add up "
        "to 0, and would make H equal to the approximation always. Σ|r|, as in equation 16, is what the step needs. In equation "
        "8 a sign is lost, without harm.",
        "**What holds instead.** With the GGN for H̃: ‖H - GGN‖ ≤ β/N Σ|r|, and it is exact if the data is perfectly fit, "
        "relative to H too for least squares. For softmax A and r vanish together (both as 1 - p), so that the relative gap "
        "tends to something small that depends on the weights and not to 0. For H̃: H - H̃ = mean Jᵀ(A - r rᵀ)J + mean Σ r ∇²f.",
        "β here is the largest ‖∇²f_m‖ of the given images at the point itself. The β of a smooth function is at least that, so "
        "that an inequality that holds here holds, and one that fails with this β could be saved by a larger one only until "
        "the residuals have fallen further: ‖H‖ does not fall with them for least squares.",
        "That softmax keeps (13) here is no proof: as the data is fitted its left side falls as (1 - p)² and its right side as "
        "1 - p, and unsquared what is compared is ‖J‖² with β, which is large for this network and 0 for a linear one.",
        "Proposition 1 is tried at the parameters of seed 0 after two steps, which fit the images badly: the model's labels are "
        "then very unlike the images' own.",
    )
