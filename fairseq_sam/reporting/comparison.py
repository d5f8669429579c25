"""Methods against another one, paired over seeds: differences, intervals, p-values, effect sizes.

Student's t throughout: scores of a run are means over thousands of examples, so that their
differences over seeds are near to normal; with a handful of seeds there is nothing better.
"""

from __future__ import annotations

import math
import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from fairseq_sam.reporting.numbers import mean_of, sample_deviation
from fairseq_sam.reporting.runs import Run, group_runs

LEVEL = 0.05
_ROUNDING = 1e-9
_SHORT = 10  # seconds
VALID_LOSS = "lowest valid loss (bits)"
"""Stands for a metric: every log has it."""


class Difference(NamedTuple):
    """How a method differs from another one in a metric.

    Attributes:
        pairs: how many pairs of runs there are.
        mean: the method's score minus the other's.
        low: lower end of the 95 % interval of the mean; as the rest None for a single pair.
        high: its upper end.
        p_value: of the two-sided paired t-test.
        corrected: the same, corrected for the number of methods (Holm 1979).
        effect: mean by standard deviation of the differences, None where they are all the same.

    Where all differences are the same, but for rounding, and not 0, only their mean is known.
    """

    pairs: int
    mean: float
    low: Optional[float] = None
    high: Optional[float] = None
    p_value: Optional[float] = None
    corrected: Optional[float] = None
    effect: Optional[float] = None


def paired_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Returns the difference of paired values.

    >>> found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])  # differences 1, 2, 3
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), round(found.p_value, 4)
    (2.0, -0.484, 4.484, 0.0742)
    >>> found.effect
    2.0
    >>> paired_difference([24.3, 24.1], [24.0, 23.8]).p_value is None
    True
    """
    from scipy.stats import t

    differences = [value - other for value, other in zip(values, others)]
    count, mean = len(differences), mean_of(differences)
    deviation = sample_deviation(differences)
    if count < 2 or not math.isfinite(deviation):
        return Difference(count, mean)
    error = deviation / math.sqrt(count)
    largest = max(map(abs, [*values, *others]))
    if deviation <= _ROUNDING * largest:  # equal differences, which a t-test knows nothing about
        same = abs(mean) <= _ROUNDING * largest
        return Difference(count, 0.0, 0.0, 0.0, 1.0) if same else Difference(count, mean)
    reach = float(t.ppf(1 - LEVEL / 2, count - 1)) * error
    p_value = float(2 * t.sf(abs(mean) / error, count - 1))
    return Difference(count, mean, mean - reach, mean + reach, p_value, None, mean / deviation)


def holm(p_values: Sequence[float]) -> List[float]:
    """Returns p-values corrected for their number, so that any error has the level's probability.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, least = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = least
    return corrected


def differences(
    runs: Sequence[Run], group_by: str, against: str, metric: str
) -> Dict[str, Difference]:
    """Returns how each group of runs differs from another one in a metric.

    Args:
        runs: some may lack the metric.
        group_by: as for :func:`~fairseq_sam.reporting.runs.group_runs`; runs for which it matches
            the same, such as a seed, are a pair.
        against: the other group's name.
        metric: the score's name, or :data:`VALID_LOSS`.
    """
    groups: Dict[str, Dict[Tuple[str, ...], float]] = {}
    for name, members in group_runs(runs, group_by).items():
        for run in members:
            value = _value(run, metric)
            if value is not None:
                groups.setdefault(name, {})[_matched(group_by, run.name)] = value
    others = groups.pop(against, {})
    found = {}
    for name, values in groups.items():
        common = [key for key in values if key in others]
        if common:
            pairs = [values[key] for key in common], [others[key] for key in common]
            found[name] = paired_difference(*pairs)
    tested = [name for name in found if found[name].p_value is not None]
    for name, p in zip(tested, holm([found[name].p_value or 0.0 for name in tested])):
        found[name] = found[name]._replace(corrected=p)
    return found


def _value(run: Run, metric: str) -> Optional[float]:
    if metric == VALID_LOSS:
        return run.best_valid_loss()
    return run.scores[metric].value if metric in run.scores else None


def _matched(group_by: str, name: str) -> Tuple[str, ...]:
    """Returns all that a regular expression matches in a name: a fold and a seed, say."""
    return tuple(match.group() for match in re.finditer(group_by, name))


def relative_times(runs: Sequence[Run], group_by: Optional[str], against: str) -> Dict[str, float]:
    """Returns the training time of each group of runs, with another group's as 1.

    Of each epoch the fastest of a group's runs counts, for whatever else a machine does only adds.
    Whole seconds are too rough where epochs are short: then another clock counts, for all of them.
    """
    exact = [run.epoch_seconds() for run in runs]
    is_short = any(time < _SHORT for times in exact for time in times.values())
    clock = Run.rough_epoch_seconds if is_short else Run.epoch_seconds
    seconds: Dict[str, float] = {}
    for name, members in group_runs(runs, group_by).items():
        least: Dict[int, float] = {}
        for epoch, time in (pair for run in members for pair in clock(run).items()):
            least[epoch] = min(time, least.get(epoch, time))
        if least:
            seconds[name] = sum(least.values())
    base = seconds.get(against)
    return {name: time / base for name, time in seconds.items()} if base else {}


def comparison_table(
    runs: Sequence[Run], group_by: str, against: str, metrics: Sequence[str]
) -> str:
    """Returns the differences as a Markdown table, with the validation loss; "" without any."""
    found = [*metrics, VALID_LOSS]
    columns = {metric: differences(runs, group_by, against, metric) for metric in found}
    columns = {metric: column for metric, column in columns.items() if column}
    times = relative_times(runs, group_by, against)
    names = [n for n in group_runs(runs, group_by) if any(n in c for c in columns.values())]
    if not names:
        return ""
    header = [f"minus {against}", "pairs", f"time ({against} = 1)", *columns]
    lines = [f"| {' | '.join(header)} |", f"| --- |{' ---: |' * (len(header) - 1)}"]
    for name in names:
        row = [column.get(name) for column in columns.values()]
        counts = {each.pairs for each in row if each is not None}
        pairs = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
        time = f"{times[name]:.2f}" if name in times else "–"
        cells = [_cell(each) if each is not None else "–" for each in row]
        lines.append(f"| {' | '.join([name, pairs, time, *cells])} |")
    return "\n".join([*lines, "", *_NOTES]) + "\n"


_NOTES = (
    "- mean difference [95 % interval]; p: paired t-test, corrected for the number of rows (Holm),"
    " * below 0.05; d: mean by standard deviation of the differences",
    "- time: of the training, of each epoch the fastest of a row's runs; where one is shorter than"
    " 10 s, with validation",
)


def _cell(found: Difference) -> str:
    """Returns a difference in words.

    >>> _cell(Difference(5, 0.5, 0.1, 0.9, 0.01, 0.03, 1.5))
    '+0.50 [+0.10, +0.90] p 0.030* d +1.5'
    >>> _cell(Difference(1, -0.004))
    '−0.0040'
    """
    if found.low is None or found.high is None:
        return _signed(found.mean, found.mean)
    size = max(abs(found.low), abs(found.high))
    mean, low, high = (_signed(number, size) for number in (found.mean, found.low, found.high))
    p = found.p_value if found.corrected is None else found.corrected
    star = "*" if p is not None and p < LEVEL else ""
    effect = "" if found.effect is None else f" d {_signed(found.effect, 10)}"
    return f"{mean} [{low}, {high}] p {p:.3f}{star}{effect}"


def _signed(number: float, size: float) -> str:
    """Writes a number so that one of this size has two digits."""
    size = abs(size)
    digits = 1 if size >= 10 else 2 if size >= 0.1 or size == 0 else 4
    return f"{number:+.{digits}f}".replace("-", "−")
