"""The report: its tables are what the records say, and what is committed is what the records say now."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from rislib.evaluation import ERRORS, Difference, Scores
from rislib.study import STUDIES, draw_report, table, write_report
from rislib.study.claims import CLAIMS, PUBLISHED, differences, verdict
from rislib.study.report import NAMES, TABLES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "results/REPORT.md", ROOT / "results/README.md", ROOT / "README.md"]


def test_committed_tables_are_those_of_the_records(tmp_path: Path):
    for page in PAGES:
        copy = tmp_path / page.name
        copy.write_text(page.read_text())
        assert write_report(copy, results=ROOT / "results") == [], (
            f"{page}: run `python -m rislib study report`"
        )
    assert "<!-- table: five_minutes -->" in PAGES[0].read_text()


def fake_run(method: str, seed: int, skill: float, data: str = "refmini") -> dict:
    """A run's record as `rislib.study.run` makes it, of a method that finds a `skill`-th of each thing."""
    rng = np.random.default_rng(seed)
    scores = Scores()
    for picture in range(40):
        target = np.zeros((20, 20), bool)
        target.flat[: rng.integers(8, 60)] = True
        found = target & (rng.random((20, 20)) < skill)
        scores.add(found, target, image_id=picture, kind=("colour", "location")[picture % 2])
    parts = ("by_kind", "by_size")
    return {
        **{"variant": method, "method": method, "data": data, "seed": seed, "samples_seen": 24},
        **scores.summary(),
        "n": len(scores),
        **{p: {k: {**s.summary(), "n": len(s)} for k, s in getattr(scores, p)().items()} for p in parts},
        "by_picture": scores.by_picture(),
        "curve": {"samples": [12, 24], "loss": [1.0, 0.5]},
        "shuffled": {"oIoU": 7.0, "mIoU": 8.0},
        "anatomy": {
            "errors": {"all": {**dict.fromkeys(ERRORS, 0), "right": 30, "wrong object": 10}},
            "reactions": {
                "left_right": {"same_answer": 25.0, "right_before": 80.0, "right_after": 60.0},
                "shuffled": {"same_answer": 50.0},
            },
            "thresholds": {
                p: {str(t): {"oIoU": 50 - abs(t - 0.4), "mIoU": 40.0} for t in (0.1, 0.35, 0.5, 0.65, 0.9)}
                for p in ("cris_2022", "lavt_2022")
            },
        },
    }


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Two seeds of two methods after five minutes, and the counts of parameters."""
    runs = [fake_run("cris", seed, 0.8) for seed in (1, 0)] + [fake_run("lavt", seed, 0.6) for seed in (0, 1)]
    del runs[0]["anatomy"], runs[3]["anatomy"]  # one seed of each has one
    (tmp_path / "five_minutes.json").write_text(json.dumps({"runs": runs}))
    (tmp_path / "parameters.json").write_text((ROOT / "results/parameters.json").read_text())
    return tmp_path


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_the_main_table(records: Path):
    _, rule, first, second = cells(table("five_minutes", records))
    assert set(rule) == {"---"}
    runs = [fake_run("cris", seed, 0.8) for seed in (0, 1)]
    assert first[:3] == ["CRIS", "24", f"**{np.mean([r['oIoU'] for r in runs]):.1f}**"]
    assert first[4] == ", ".join(f"{r['oIoU']:.1f}" for r in runs)  # in the order of the seeds
    assert first[-1] == "7.0"
    assert second[0] == "LAVT"
    low, high = map(float, first[3].split(" to "))
    assert low < float(first[2].strip("*")) < high


def test_each_pair_is_compared_once_each_way(records: Path):
    head, _, cris, lavt = cells(table("against_each_other", records))
    assert head[1:] == ["CRIS", "LAVT"]
    assert cris[1] == lavt[2] == "–"
    there, back = float(cris[2].split()[0]), float(lavt[1].split()[0])
    assert there == -back > 0


def test_worlds_are_not_mixed(tmp_path: Path):
    skills = {"refmini": {"cris": 0.8, "lavt": 0.6}, "refmini+": {"cris": 0.5, "lavt": 0.7}}
    runs = [
        fake_run(method, seed, skill, data)
        for data, methods in skills.items()
        for method, skill in methods.items()
        for seed in (0, 1)
    ]
    (tmp_path / "equal_samples.json").write_text(json.dumps({"runs": runs}))
    head, _, cris, *_ = cells(table("equal_samples", tmp_path))
    for data, cell in zip(head[1:], cris[1:], strict=True):
        seeds = [run["oIoU"] for run in runs if (run["variant"], run["data"]) == ("cris", data)]
        assert cell.endswith(f"[{', '.join(f'{oiou:.1f}' for oiou in seeds)}]") if seeds else cell == "–"
    for data, leader in (("refmini", "CRIS"), ("refmini+", "LAVT")):
        assert cells(table(f"by_kind_{data}", tmp_path))[2][0] == leader
        head, _, first, _ = cells(table(f"against_each_other_{data}", tmp_path))
        assert head[1] == first[0] == leader and first[2].startswith("+")


def test_errors_edits_and_protocols(records: Path):
    head, _, cris, _ = cells(table("errors", records))
    assert dict(zip(head[1:], cris[1:], strict=True))["wrong object"] == "25"
    rows = {row[0]: row[1:] for row in cells(table("edits", records))}
    assert rows["left right"] == ["25; 80 → 60"] * 2
    assert rows["shuffled"] == ["50"] * 2
    best = [row for row in cells(table("protocols", records)) if row[2] == "the best of 19"]
    assert all("at 0.35" in row[3] for row in best if row[1] == "oIoU")


@pytest.mark.parametrize("name", [*TABLES, *STUDIES])
def test_every_table_can_be_made_before_anything_was_measured(name: str, tmp_path: Path):
    (tmp_path / "parameters.json").write_text((ROOT / "results/parameters.json").read_text())
    assert table(name, tmp_path).startswith("| ")


def test_only_what_stands_between_the_marks_changes(records: Path):
    page = records / "page.md"
    page.write_text("before\n<!-- table: five_minutes -->\nold\n<!-- /table -->\nafter\n")
    assert write_report(page, results=records) == ["page.md: five_minutes"]
    text = page.read_text()
    assert text.startswith("before\n<!-- table: five_minutes -->\n| ") and text.endswith(
        "<!-- /table -->\nafter\n"
    )
    assert "old" not in text
    assert write_report(page, results=records) == []
    assert page.read_text() == text


def test_a_table_that_there_is_not(records: Path):
    (records / "page.md").write_text("<!-- table: six_minutes -->\n<!-- /table -->\n")
    with pytest.raises(ValueError, match="no table 'six_minutes'; there are five_minutes"):
        write_report(records / "page.md", results=records)


def test_figures_are_drawn_from_records(records: Path):
    drawn = {file.stem for file in draw_report(records)}
    assert drawn == {"differences", "five_minutes", "curves", "errors"}


def test_what_more_samples_buy_comes_from_all_studies(records: Path):
    few, many = fake_run("cris", 0, 0.5), fake_run("cris", 0, 0.9)
    same = {"options": {}, "instances": "none", "share": 1.0}
    other = {**few, **same, "options": {"decoder_layers": 0}, "variant": "no_decoder", "samples": 6000}
    ablation = [{**few, **same, "variant": "full", "samples": 6000}, other]
    (records / "cris_ablation.json").write_text(json.dumps({"runs": ablation}))
    assert len(cells(table("budgets", records))) == 2  # one budget is no comparison
    (records / "plateau.json").write_text(json.dumps({"runs": [{**many, **same, "samples": 96000}]}))
    _, _, row = cells(table("budgets", records))
    assert row[:2] == ["CRIS", f"6,000: {few['oIoU']:.1f}, 96,000: {many['oIoU']:.1f}"]
    assert row[3] == f"{many['mIoU']:.1f}"
    assert "budgets" in {file.stem for file in draw_report(records)}


def test_every_claim_names_variants_that_exist():
    for claim in CLAIMS:
        study = STUDIES[claim.study]
        assert {claim.first, claim.second} <= study.variants.keys() and claim.data in study.data
        assert claim.paper in NAMES.values()


def test_a_claim_is_tested_on_seeds_that_both_have():
    claim = next(claim for claim in CLAIMS if claim.study == "equal_samples")
    runs = [fake_run(claim.first, seed, 0.7) for seed in (0, 1, 2)]
    runs += [fake_run(claim.second, seed, 0.6) for seed in (1, 2, 3)]
    runs += [fake_run(claim.second, 0, 0.0, data="refmini+")]
    by_seeds, by_pictures, seeds = differences(claim, runs)
    assert seeds == 2 and by_seeds.points > 5
    assert by_pictures.points == pytest.approx(by_seeds.points) and by_pictures.decided


@pytest.mark.parametrize(
    ("difference", "seeds", "says"),
    [
        (None, 0, "not tested yet"),
        (Difference(9.0, -math.inf, math.inf), 1, "one seed decides nothing"),
        (Difference(2.0, -0.1, 4.1), 3, "not shown here"),
        (Difference(2.0, 0.1, 3.9), 3, "**holds here**"),
        (Difference(-2.0, -3.9, -0.1), 3, "**contradicted here**"),
    ],
)
def test_verdicts(difference: Difference | None, seeds: int, says: str):
    assert verdict(difference, seeds) == says


def test_published_numbers_are_percentages_of_eight_splits():
    for metrics in PUBLISHED.values():
        for numbers in metrics.values():
            values = [float(number.rstrip("*")) for number in numbers.split()]
            assert len(values) == 8 and all(45 < value < 85 for value in values)
