"""What the numbers say, in sentences. Plain text: the page escapes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastae.console import duration
from fastae.losses import LOSSES
from fastae.report.adam import NEAR, EpsReach
from fastae.report.compare import Mixture, Standing, in_order
from fastae.report.figures import name_of
from fastae.report.gallery import Gallery
from fastae.report.gather import Run
from fastae.report.hours import ARTICLE, ARTICLE_HOURS, Hours

THE_SAME, ABOUT_THE_SAME = 0.02, 0.10
"""Best to worst, relative to the mean: up to which the losses are called the same, or about the same."""

LIKELY = 0.05
"""Seeds alone bring about a difference this large less often than this: then it is called the losses'."""

LONG_ENOUGH = 0.5
"""Of the article's iterations, below which what is found is called a beginning."""

FEW_POINTS = 60
"""Logged points below which smoothing by 0.95 averages over most of a curve, and lags behind it."""

BLANK = "\u00a0"
"""One that no line is broken at."""

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

COUNTS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Answer:
    """headline: one sentence. paragraphs: what it rests on."""

    headline: str
    paragraphs: tuple[str, ...]


def answer(mixture: Mixture, found: Standing | None, gallery: Gallery | None) -> Answer:
    """Whether the losses differ, by how much, which is best; honest about what cannot be told."""
    if found is None or not found.at:
        return Answer(
            "Nothing can be said of the losses yet.",
            ("No two evaluations of the same kind are there to compare: the runs have only begun.",),
        )
    if len(found.errors) < 2:
        loss = found.best
        return Answer(
            "One loss alone: nothing to compare it with.",
            (
                f"At iteration {found.at:,} the held-out squared error × 10⁷ of {name_of(loss)} is "
                f"{found.errors[loss]:,.0f}{_from_start(found)}.",
            ),
        )
    paragraphs = [_difference(found), *_elements(found), _seeds(found, mixture), *_short(found)]
    if gallery is not None:
        paragraphs += _images(gallery)
    return Answer(_headline(found), tuple(paragraphs))


def _headline(found: Standing) -> str:
    early = found.at < LONG_ENOUGH * ARTICLE.iterations
    when = f"After {found.at:,} iterations" if early else ""
    losses = f"{'all ' if len(found.errors) == len(LOSSES) else 'the '}{COUNTS[len(found.errors)]} losses"
    if found.range < THE_SAME:
        what = f"{losses} come out the same, within {percent(found.range)}"
    elif found.range < ABOUT_THE_SAME:
        what = f"{losses} come out about the same, within {percent(found.range)}"
    else:
        what = (
            f"the losses differ: {name_of(found.worst)} ends {percent(found.range)} "
            f"of the mean error above {name_of(found.best)}"
        )
    if found.seeds is not None and found.range < ABOUT_THE_SAME and found.seeds.chance < LIKELY:
        what = f"{what}: small, but more than seeds bring about"
    sentence = f"{when}, {what}" if when else what
    return sentence[0].upper() + sentence[1:] + "."


def _difference(found: Standing) -> str:
    best, worst = found.errors[found.best], found.errors[found.worst]
    return (
        f"At iteration {found.at:,} the held-out squared error × 10⁷ is lowest for {name_of(found.best)}, "
        f"{best:,.0f}, and highest for {name_of(found.worst)}, {worst:,.0f}: {percent(found.range)} of the "
        f"mean lie between them{_gain(found)}."
    )


def _gain(found: Standing) -> str:
    gained = found.start - found.mean
    if not (math.isfinite(gained) and gained > 0):
        return ""
    between = found.errors[found.worst] - found.errors[found.best]
    return (
        f", where training has brought every loss down from {found.start:,.0f}. The losses' differences are "
        f"{percent(between / gained)} of what they all gained"
    )


def _from_start(found: Standing) -> str:
    return f", from {found.start:,.0f} at the start" if math.isfinite(found.start) else ""


def _elements(found: Standing) -> list[str]:
    """Of squared error against cross entropy, and of the reductions of each."""
    sentences = []
    bce, mse = found.of_element("bce"), found.of_element("mse")
    if not found.mean:
        return []
    if bce and mse:
        one, other = sum(bce) / len(bce), sum(mse) / len(mse)
        lower, higher = ("mse", "bce") if other < one else ("bce", "mse")
        sentences.append(
            f"Between the two elements, {lower} ends {percent(abs(one - other) / max(one, other))} below "
            f"{higher} in the mean."
        )
    spreads = {
        element: (max(each) - min(each)) / (sum(each) / len(each) or 1)
        for element, each in (("bce", bce), ("mse", mse))
        if len(each) > 1
    }
    if spreads:
        parts = " and ".join(f"{percent(spread)} for {element}" for element, spread in spreads.items())
        sentences.append(f"Among the reductions of one element the largest difference is {parts}.")
    return [" ".join(sentences)] if sentences else []


def _seeds(found: Standing, mixture: Mixture) -> str:
    if found.seeds is None:
        used = {run.config.seed for run in mixture.compared}
        same = "with the same seed" if len(used) == 1 else "each with its own seed"
        return (
            f"Every loss was run once, {same}, so nothing here tells how much of these differences other "
            "seeds would change: repeated runs (fastae sweep --repeats) would."
        )
    seeds = found.seeds
    several = [
        name_of(loss)
        for loss in in_order(run.loss for run in mixture.compared)
        if len({run.config.seed for run in mixture.compared if run.loss == loss}) > 1
    ]
    sentence = (
        f"Runs of one loss that differ by their seed alone ({', '.join(several)}) spread with a standard "
        f"deviation of {seeds.deviation:,.0f}, {percent(seeds.deviation / (found.mean or 1))} of the mean. "
    )
    of_it = f"the largest difference between two losses is {seeds.difference:,.0f}"
    chance = f"chance alone would show one as large in {chances(seeds.chance)} of such sweeps (Tukey's test)"
    if seeds.chance < LIKELY:
        return f"{sentence}Against that, {of_it}; {chance}: it is the losses', not the seeds'."
    weak = " With so few repeats only a large one could be told from it." if seeds.freedom < 6 else ""
    return f"{sentence}Beside that, {of_it}; {chance}: it does not exceed what seeds bring about.{weak}"


def _short(found: Standing) -> list[str]:
    share = found.at / ARTICLE.iterations
    if share >= LONG_ENOUGH:
        return []
    return [
        f"This is {percent(share)} of the article's {ARTICLE.iterations:,} iterations: it shows how the "
        "losses begin, not how they end."
    ]


def _images(gallery: Gallery) -> list[str]:
    if not math.isfinite(gallery.correlation):
        return []
    return [
        f"The ranks of the {gallery.count} held-out images by error correlate with {gallery.correlation:.2f} "
        f"between two losses, in the mean, and of the {gallery.hard} worst images of a loss "
        f"{percent(gallery.shared)} are among the {gallery.hard} worst of every loss: " + _in_all(gallery)
    ]


def _in_all(gallery: Gallery) -> str:
    if gallery.shared >= 0.5:
        return "some images fail in all of them."
    return (
        "some images fail in all of them, but not most." if gallery.shared else "none fails in all of them."
    )


def reason(reach: Sequence[EpsReach]) -> list[str]:
    """Why the reductions cannot differ much, and how much eps lets them."""
    told = [
        "The three reductions of an element have the same gradient up to a constant factor k: 1 for the mean "
        "over the minibatch, H·W·C for sample, N·H·W·C for pixel, since TensorFlow differentiates a tensor "
        "as the sum of its elements. Adam moves a weight by lr·m/(√v + eps), and both m and √v grow with k: "
        "it divides the factor out again. All that is left of it is eps. Adam on k·g with eps is Adam on g "
        "with eps/k, so the three are one optimiser with three values of eps."
    ]
    minibatch = [each for each in reach if each.k == 1]
    if minibatch:
        near = " and ".join(f"{tiny(each.near)} for {name_of(each.loss)}" for each in minibatch)
        ratio = min(each.median / each.eps for each in minibatch)
        told.append(
            "How far that lets them differ stands in the checkpoints. Only where √v is not far above eps "
            "does eps shorten a step, and the minibatch losses have the largest, 10⁻⁸. The share of weights "
            f"whose √v is below {NEAR} eps, so that their steps are more than {percent(1 / (1 + NEAR))} "
            f"shorter than without it, is {near}; the median √v is {ratio:,.0f} times eps or more. "
            + _verdict(minibatch)
        )
    return told


def _verdict(minibatch: Sequence[EpsReach]) -> str:
    most = max(each.near for each in minibatch)
    if most < 0.01:
        return "So eps hardly touches these runs: the reductions are the same experiment."
    if most < 0.2:
        return "So eps touches a small part of the weights: the reductions are nearly the same experiment."
    return "So eps holds back a good part of the weights, and the reductions may come to differ by it."


def time_told(hours: Hours, runs: Sequence[Run]) -> list[str]:
    """The article's hours against these runs'."""
    devices = in_words(dict.fromkeys(run.told("device") or "an unknown device" for run in runs))
    iterations = sum(run.iteration for run in runs)
    told = [
        f"The article's six runs of {ARTICLE.iterations:,} iterations took {ARTICLE_HOURS:.0f} hours of its "
        f"GPU. The {plural(len(runs), 'run')} of this report took {time(3600 * hours.wall)} for "
        f"{iterations:,} iterations together, on {devices}."
    ]
    if hours.projected is None or hours.total is None or hours.factor is None:
        return [*told, "Nothing was logged of their speed, so there is nothing to project from."]
    looks = (
        f" and {time(3600 * hours.evaluating)} for their evaluations and checkpoints"
        if hours.evaluating
        else ", evaluations not counted"
    )
    told.append(
        "At the measured images/s the article's six runs, 600,000 iterations of 64 images, would take "
        f"{time(3600 * hours.projected)}{looks}: {times(hours.factor)} than its {ARTICLE_HOURS:.0f} hours."
    )
    if hours.unlike:
        told.append(
            f"But the speed was measured on other work than the article's: {hours.unlike}. The projection "
            "says nothing of its time."
        )
    return told


def smoothing_told(runs: Sequence[Run]) -> str:
    """A caution where the curves are too short for the article's smoothing; else empty."""
    points = max((len(run.train) for run in runs), default=0)
    if not points or points >= FEW_POINTS:
        return ""
    return (
        f"With {points} logged points that smoothing averages over nearly the whole run and lags behind it: "
        "the held-out curves say more."
    )


def percent(share: float) -> str:
    """0.0123 -> "1.2 %"; three digits at most, and never a rounded 0 for what is not 0."""
    value = 100 * share
    if not value:
        return f"0{BLANK}%"
    if abs(value) < 0.01:
        return f"less than 0.01{BLANK}%"
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 10 else 0
    return f"{value:.{digits}f}{BLANK}%"


def tiny(share: float) -> str:
    """As percent, to one digit where it is small: 2e-5 -> "0.002 %"; 0 is "none"."""
    if not share:
        return "none"
    if share < 1e-5:
        return f"under 0.001{BLANK}%"
    return f"{100 * share:.1g}{BLANK}%" if share < 1e-3 else percent(share)


def power(value: float) -> str:
    """1.8e-05 -> "1.8 × 10⁻⁵"."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits} × 10{str(int(exponent)).translate(SUPERSCRIPT)}".replace(" ", BLANK)


def time(seconds: float) -> str:
    """As everywhere, in one piece."""
    return duration(seconds).replace(" ", BLANK)


def chances(probability: float) -> str:
    return f"less than 0.1{BLANK}%" if probability < 0.001 else percent(probability)


def times(factor: float) -> str:
    """10 -> "10 times less", 0.25 -> "4.0 times more"."""
    how, value = ("less", factor) if factor >= 1 else ("more", 1 / factor)
    return f"{value:,.0f} times {how}" if value >= 10 else f"{value:.1f} times {how}"


def plural(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def in_words(things: Mapping[str, object] | Sequence[str]) -> str:
    """a, b and c."""
    *most, last = things
    return f"{', '.join(most)} and {last}" if most else last
