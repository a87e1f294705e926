"""Every table, made of `results/` alone: the same records give the same tables, byte for byte.

Tables stand in Markdown files between two comments, `<!-- table: NAME -->` and `<!-- /table -->`.
`write_report` makes each anew and leaves all other text as it is; so prose and numbers live side by side, and
only prose is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rislib.evaluation import ERRORS, PROTOCOLS, compare_pictures, compare_seeds, mean_interval
from rislib.study.claims import CLAIMS, PUBLISHED, differences, verdict
from rislib.study.plan import FIVE, STUDIES

NAMES = {"cris": "CRIS", "lavt": "LAVT", "magnet": "MagNet", "cm_masksd": "CM-MaskSD", "mail": "MaIL"}
ALSO = {"cm_masksd plain": "CM-MaskSD, main branch alone", "mail per mask": "MaIL, a token per mask"}
LABELS = NAMES | ALSO
EQUAL = STUDIES["equal_samples"]
NONE = "–"

Run = Mapping[str, Any]
_TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def write_report(*files: Path | str, results: Path | str = "results") -> list[str]:
    """Make the tables in `files` anew; returns the names of those that changed.

    Raises:
        ValueError: a file asks for a table that there is not.
    """
    changed = []
    for file in map(Path, files):
        before = file.read_text()

        def fill(found: re.Match[str]) -> str:
            start, name, end = found.groups()
            return f"{start}{table(name, results)}\n{end}"

        after = _TABLE.sub(fill, before)
        if after != before:
            file.write_text(after)
            changed += [f"{file.name}: {name}" for name in _changed(before, after)]
    return changed


def table(name: str, results: Path | str = "results") -> str:
    """One table in Markdown, by its name: one of `TABLES`, or of `STUDIES`."""
    if name in TABLES:
        return TABLES[name](Path(results))
    if name in STUDIES:
        return ablation(name, Path(results))
    raise ValueError(f"no table {name!r}; there are {', '.join([*TABLES, *STUDIES])}")


def five_minutes(results: Path) -> str:
    """All of that study, the best first: means over seeds, intervals over pictures."""
    rows = []
    for method, runs in by_method(results, LABELS).items():
        low, high = mean_interval([run["by_picture"] for run in runs])
        rows.append(
            [
                LABELS[method],
                f"{runs[0]['samples_seen']:,}",
                f"**{_mean(runs, 'oIoU'):.1f}**",
                f"{low:.1f} to {high:.1f}",
                _each(runs),
                *(f"{_mean(runs, metric):.1f}" for metric in ("mIoU", "P@0.5", "P@0.9")),
                f"{np.mean([run['shuffled']['oIoU'] for run in runs]):.1f}",
            ]
        )
    head = "|samples|oIoU|95 %, pictures|seeds|mIoU|P@0.5|P@0.9|another picture's words"
    return _markdown(head.split("|"), rows)


def by_part(results: Path, part: str, study: str = "five_minutes", data: str = "refmini") -> str:
    """The five methods by kind of expression, or by size of the target: oIoU, means over seeds."""
    methods = by_method(results, FIVE, study, data)
    counts = {name: one["n"] for runs in methods.values() for name, one in runs[0][part].items()}
    rows = [
        [NAMES[method], *(f"{np.mean([run[part][name]['oIoU'] for run in runs]):.1f}" for name in counts)]
        for method, runs in methods.items()
    ]
    return _markdown(["", *(f"{name} ({n:,})" for name, n in counts.items())], rows)


def against_each_other(results: Path, study: str = "five_minutes", data: str = "refmini") -> str:
    """Row minus column, oIoU: the interval over pictures, and in brackets that over seeds."""
    methods = by_method(results, FIVE, study, data)
    rows = []
    for first in methods:
        row = [NAMES[first]]
        for second in methods:
            one, other = _paired(methods[first], methods[second])
            if first == second or not one:
                row.append(NONE)
                continue
            pictures = compare_pictures([r["by_picture"] for r in one], [r["by_picture"] for r in other])
            seeds = compare_seeds([r["oIoU"] for r in one], [r["oIoU"] for r in other])
            row.append(f"{pictures} [{_bounds(seeds)}]")
        rows.append(row)
    return _markdown(["", *(NAMES[method] for method in methods)], rows)


def errors(results: Path) -> str:
    """What the answers of each method are, in percent of all."""
    rows = []
    for method, runs in dissected(results).items():
        rows.append([NAMES[method], *(f"{share:.0f}" for share in error_shares(runs).values())])
    return _markdown(["", *ERRORS], rows)


def edits(results: Path) -> str:
    """After an edit: how often the answer stayed, in percent, and how often it was right before and after."""
    methods = dissected(results)
    found = (edit for runs in methods.values() for edit in runs[0]["anatomy"]["reactions"])
    names = [edit for edit in dict.fromkeys(found) if edit != "unedited"]
    rows = []
    for edit in names:
        row = [edit.replace("_", " ")]
        for runs in methods.values():
            found = [run["anatomy"]["reactions"].get(edit, {}) for run in runs]
            same, before, after = (
                np.mean([one[key] for one in found]) if all(key in one for one in found) else None
                for key in ("same_answer", "right_before", "right_after")
            )
            stayed = NONE if same is None else f"{same:.0f}"
            row.append(stayed if before is None else f"{stayed}; {before:.0f} → {after:.0f}")
        rows.append(row)
    return _markdown(["", *(NAMES[method] for method in methods)], rows)


def protocols(results: Path) -> str:
    """The same answers under both protocols and five thresholds: mIoU, oIoU; the best of 19 thresholds."""
    rows = []
    for protocol in PROTOCOLS:
        for metric in ("oIoU", "mIoU"):
            found = {
                method: {
                    t: np.mean([run["anatomy"]["thresholds"][protocol][t][metric] for run in runs])
                    for t in runs[0]["anatomy"]["thresholds"][protocol]
                }
                for method, runs in dissected(results).items()
            }
            for threshold in ("0.1", "0.35", "0.5", "0.65", "0.9"):
                ranked = sorted(found, key=lambda method: -found[method][threshold])
                order = ", ".join(f"{NAMES[method]} {found[method][threshold]:.1f}" for method in ranked)
                rows.append([protocol, metric, threshold, order])
            ranked = sorted(found, key=lambda method: -max(found[method].values()))
            best = {method: max(by_threshold, key=by_threshold.get) for method, by_threshold in found.items()}
            order = ", ".join(f"{NAMES[m]} {found[m][best[m]]:.1f} at {best[m]}" for m in ranked)
            rows.append([protocol, metric, "the best of 19", order])
    return _markdown(["protocol", "metric", "threshold", "ranking"], rows)


def equal_samples(results: Path) -> str:
    """The five methods after equally many samples, on each world: oIoU, its interval over pictures, seeds."""
    worlds = {data: by_method(results, FIVE, "equal_samples", data) for data in EQUAL.data}
    rows = []
    for method in FIVE:
        row = [NAMES[method]]
        for methods in worlds.values():
            if method not in methods:
                row.append(NONE)
                continue
            runs = methods[method]
            low, high = mean_interval([run["by_picture"] for run in runs])
            row.append(f"**{_mean(runs, 'oIoU'):.1f}** ({low:.1f} to {high:.1f}) [{_each(runs)}]")
        rows.append(row)
    return _markdown(["", *worlds], rows)


def budgets(results: Path) -> str:
    """What more samples buy, by method: samples and oIoU, means over seeds; the rest of the longest."""
    rows = []
    for variant, found in by_budget(results).items():
        *_, longest = found.values()
        low, high = mean_interval([run["by_picture"] for run in longest])
        steps = ", ".join(f"{samples:,}: {_mean(runs, 'oIoU'):.1f}" for samples, runs in found.items())
        metrics = (f"{_mean(longest, metric):.1f}" for metric in ("mIoU", "P@0.5", "P@0.9"))
        rows.append([LABELS[variant], steps, f"{low:.1f} to {high:.1f}", *metrics])
    head = "|samples: oIoU|95 % of the last, pictures|mIoU|P@0.5|P@0.9"
    return _markdown(head.split("|"), rows)


def ablation(name: str, results: Path) -> str:
    """Every variant of a study, and how far it is ahead of the one that it is compared with."""
    runs, study = read_runs(results, name), STUDIES[name]
    rows = []
    for variant, one in study.variants.items():
        ours = [run for run in runs if run["variant"] == variant]
        if not ours:
            rows.append([variant, NONE, NONE, NONE, NONE])
            continue
        first, second = _paired(ours, [run for run in runs if run["variant"] == one.against])
        change = NONE
        if first:
            seeds = compare_seeds([r["oIoU"] for r in first], [r["oIoU"] for r in second])
            change = f"{seeds.points:+.1f} to {one.against}"
            change += f" [{_bounds(seeds)}]" if len(first) > 1 else ""
        rows.append(
            [variant, _each(ours), f"{_mean(ours, 'oIoU'):.1f}", f"{_mean(ours, 'mIoU'):.1f}", change]
        )
    return _markdown(["", "oIoU, seeds", "mean", "mIoU", "difference [95 %, seeds]"], rows)


def grid(results: Path) -> str:
    """K, the share of patches that may be hidden, against alpha, the share of those that are: oIoU."""
    found = {run["variant"]: run["oIoU"] for run in read_runs(results, "masksd_grid")}
    shares = [re.findall(r"\d+", variant) for variant in STUDIES["masksd_grid"].variants]
    alphas = list(dict.fromkeys(alpha for _, alpha in shares))
    rows = []
    for k in dict.fromkeys(k for k, _ in shares):
        cells = (found.get(f"K {k} % alpha {alpha} %") for alpha in alphas)
        rows.append([f"K {k} %", *(NONE if cell is None else f"{cell:.1f}" for cell in cells)])
    return _markdown(["", *(f"alpha {alpha} %" for alpha in alphas)], rows)


def claims(results: Path) -> str:
    """Claim, test, result, verdict."""
    rows = []
    for claim in CLAIMS:
        runs = read_runs(results, claim.study)
        by_seeds, by_pictures, seeds = differences(claim, runs)
        result = NONE
        if by_seeds is not None:
            result = f"{by_seeds.points:+.1f} {claim.metric}; seeds ({seeds}) [{_bounds(by_seeds)}]"
            result += "" if by_pictures is None else f"; pictures [{_bounds(by_pictures)}]"
        test = f"{claim.first} against {claim.second} ({claim.study})"
        rows.append([claim.paper, claim.says, test, result, verdict(by_seeds, seeds), claim.differs])
    rows.append(_extra_parameters(results))
    return _markdown(["paper", "claim", "test", "result", "verdict", "what differs"], rows)


def published(results: Path) -> str:
    """What the papers printed, each number in its own metric."""
    sets = [f"{name} {split}" for name in ("RefCOCO", "RefCOCO+") for split in ("val", "testA", "testB")]
    sets += ["G-Ref val", "G-Ref test"]
    rows = [
        [paper, metric, *numbers.replace("*", "\\*").split()]
        for metric in ("oIoU", "mIoU")
        for paper, metrics in PUBLISHED.items()
        if (numbers := metrics.get(metric))
    ]
    return _markdown(["", "metric", *sets], rows)


TABLES: dict[str, Callable[[Path], str]] = {
    "five_minutes": five_minutes,
    "by_kind": partial(by_part, part="by_kind"),
    "by_size": partial(by_part, part="by_size"),
    "against_each_other": against_each_other,
    "errors": errors,
    "edits": edits,
    "protocols": protocols,
    "budgets": budgets,
    "equal_samples": equal_samples,
    **{
        f"by_kind_{data}": partial(by_part, part="by_kind", study="equal_samples", data=data)
        for data in EQUAL.data
    },
    **{
        f"against_each_other_{data}": partial(against_each_other, study="equal_samples", data=data)
        for data in EQUAL.data
    },
    "masksd_grid": grid,
    "claims": claims,
    "published": published,
}


def _extra_parameters(results: Path) -> list[str]:
    """The one claim that needs no training."""
    counts = json.loads((results / "parameters.json").read_text())
    with_branches, without = counts["cm_masksd_b16"], counts["cm_masksd_b16 without distillation"]
    extra = 100 * (with_branches - without) / without
    return [
        "CM-MaskSD",
        "Distillation takes nearly no parameters.",
        "full size, with and without the branches (parameters)",
        f"{with_branches - without:,} of {with_branches:,}: {extra:.2f} %",
        "**holds here**" if extra < 0.5 else "**contradicted here**",
        "Ours by the paper's figure; none of them is there at inference.",
    ]


def read_runs(results: Path, study: str) -> list[dict[str, Any]]:
    """The records of a study's runs; none if there is no file yet."""
    file = results / f"{study}.json"
    return json.loads(file.read_text())["runs"] if file.exists() else []


def by_method(
    results: Path, variants: Iterable[str] = FIVE, study: str = "five_minutes", data: str = "refmini"
) -> dict[str, list[dict[str, Any]]]:
    """The runs of a study on one world, by method or other variant, the best first."""
    runs = [run for run in read_runs(results, study) if run["data"] == data]
    found = {method: _sorted([run for run in runs if run["variant"] == method]) for method in variants}
    found = {method: some for method, some in found.items() if some}
    return dict(sorted(found.items(), key=lambda item: -_mean(item[1], "oIoU")))


def by_budget(results: Path) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Runs of the networks of "plateau", whatever study they come from, by the samples that they saw.

    The fewest first; only networks that were trained with two budgets or more.
    """
    runs = [run for study in STUDIES for run in read_runs(results, study) if run["data"] == "refmini"]
    whole = [run for run in runs if "taken_from" not in run and run.get("share") == 1]
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for variant, one in STUDIES["plateau"].variants.items():
        same = {"method": one.method, "options": dict(one.options), "instances": one.instances}
        ours = [run for run in whole if same.items() <= run.items()]
        counts = sorted({run["samples"] for run in ours})
        if len(counts) > 1:
            found[variant] = {n: [run for run in ours if run["samples"] == n] for n in counts}
    return found


def dissected(results: Path) -> dict[str, list[dict[str, Any]]]:
    """As `by_method`, those runs that have an anatomy."""
    found = {m: [run for run in runs if "anatomy" in run] for m, runs in by_method(results).items()}
    return {method: runs for method, runs in found.items() if runs}


def error_shares(runs: Sequence[Run]) -> dict[str, float]:
    """How many of the answers, in percent, each of `ERRORS` names: means over runs that have an anatomy."""
    counts = [run["anatomy"]["errors"]["all"] for run in runs]
    return {e: float(np.mean([100 * c[e] / sum(c[e] for e in ERRORS) for c in counts])) for e in ERRORS}


def _paired(first: Sequence[Run], second: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs of both whose seeds both have."""
    shared = {run["seed"] for run in first} & {run["seed"] for run in second}
    return tuple(_sorted([run for run in runs if run["seed"] in shared]) for runs in (first, second))


def _sorted(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run["seed"])


def _mean(runs: Sequence[Run], metric: str) -> float:
    return float(np.mean([run[metric] for run in runs]))


def _each(runs: Sequence[Run]) -> str:
    """The oIoU of each seed."""
    return ", ".join(f"{run['oIoU']:.1f}" for run in _sorted(runs))


def _bounds(difference: Any) -> str:
    if np.isinf(difference.high):
        return "one seed"
    return f"{difference.low:+.1f} to {difference.high:+.1f}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _changed(before: str, after: str) -> list[str]:
    old = [found[0] for found in _TABLE.finditer(before)]
    return [found[2] for found, was in zip(_TABLE.finditer(after), old, strict=True) if found[0] != was]
