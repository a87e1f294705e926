"""`python -m rislib course`: build, check and run the lessons."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

course_app = typer.Typer(help="Build, check and run the lessons.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Option("--folder", help="Where the notebooks are; their masters are in its src.")
]
Lessons = Annotated[
    list[str] | None, typer.Argument(metavar="[LESSON]...", help="Such as 03_fusion; or all.")
]


@course_app.command()
def build(
    lessons: Lessons = None,
    execute: Annotated[bool, typer.Option(help="Also execute the solutions of changed lessons.")] = True,
    again: Annotated[bool, typer.Option("--again", help="Execute those of unchanged lessons, too.")] = False,
    folder: Folder = Path("notebooks"),
) -> None:
    """Make the notebooks from their masters."""
    from rislib.course.build import build

    for path in build(folder, lessons or (), execute=execute, again=again):
        typer.echo(path)


@course_app.command()
def check(folder: Folder = Path("notebooks")) -> None:
    """Hold every notebook against its master; a line per fault, exit status 1 if there are any."""
    from rislib.course.build import problems

    found = problems(folder)
    for line in found:
        typer.echo(line)
    if found:
        typer.echo("Notebooks are not edited but built: `python -m rislib course build`.", err=True)
        raise typer.Exit(1)


@course_app.command()
def run(
    lessons: Lessons = None,
    profile: Annotated[str, typer.Option(help="ci, cpu or gpu.")] = "ci",
    patience: Annotated[float, typer.Option(help="Multiplies all budgets: for a slow machine.")] = 1.0,
    processes: Annotated[int, typer.Option(min=1, help="So many run side by side.")] = 1,
    folder: Folder = Path("notebooks"),
    json_file: Annotated[Path, typer.Option("--json", help="The table, to be read by programs.")] = Path(
        "runs/course.json"
    ),
) -> None:
    """Run student and solution notebooks; exit status 1 if one fails or takes too long."""
    from rislib.course.runner import BUDGETS, notebooks
    from rislib.course.runner import run as run_all
    from rislib.training import provenance

    if profile not in BUDGETS:
        raise typer.BadParameter(f"no profile {profile!r}; there are {', '.join(BUDGETS)}")
    paths = notebooks(folder, lessons or ())
    width = max((len(str(path)) for path in paths), default=0)
    typer.echo(f"{'notebook':{width}}  seconds  slowest cell  peak memory")
    outcomes = []
    for outcome in run_all(paths, profile, patience, processes):
        numbers = (
            f"{outcome.seconds:7.1f}  {outcome.slowest_cell_seconds:12.1f}  {outcome.peak_megabytes:8.0f} MB"
        )
        typer.echo(f"{outcome.notebook:{width}}  {numbers}")
        for failure in outcome.failures:
            typer.echo(f"    FAILED: {failure}")
        outcomes.append(outcome)
    record = {"profile": profile, "patience": patience, "processes": processes}
    record["notebooks"] = [asdict(outcome) for outcome in outcomes]
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps({**record, **provenance()}, indent=1) + "\n")
    if not outcomes or any(outcome.failures for outcome in outcomes):
        raise typer.Exit(1)


@course_app.command()
def messages(lesson: str, folder: Folder = Path("notebooks")) -> None:
    """Print all that a student can hear in the exercises of LESSON: how would it sound to you?"""
    from rislib.course.answers import messages
    from rislib.course.master import read_lesson

    typer.echo(messages(read_lesson(folder / "src" / f"{lesson}.py")), nl=False)
