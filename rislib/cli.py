"""The command line: `python -m rislib --help`. Thin: it opens things, calls one function, writes a record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rislib.course.cli import course_app

app = typer.Typer(
    help="Referring image segmentation from the papers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Draw RefMini; get and check RefCOCO.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(course_app, name="course")

Data = Annotated[str, typer.Option(help="refmini, refmini+, refminig, or a folder in RefCOCO's layout.")]


@data_app.command("check")
def data_check(
    folder: Path,
    subset: Annotated[
        bool, typer.Option("--subset", help="A part on purpose: do not ask for the published counts.")
    ] = False,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Seconds, not minutes: no pictures, no masks.")
    ] = False,
) -> None:
    """Read everything in FOLDER; print counts per split, a line per fault; exit status 1 if there are any.

    refcoco, refcoco+ and refcocog must have the published counts of references, sentences and images.
    """
    from rislib.data.check import check_folder

    report = check_folder(folder, pixels=not index_only, published=not subset, progress=True)
    for line in report.lines():
        typer.echo(line)
    if report.differences:
        typer.echo("Is this a part of the dataset on purpose? Then say --subset.", err=True)
    raise typer.Exit(0 if report.ok else 1)


@data_app.command("get")
def data_get(
    names: Annotated[list[str], typer.Argument(help="refcoco, refcoco+, refcocog; train2014: the pictures.")],
    out: Annotated[Path, typer.Option(help="The data folder.")],
) -> None:
    """Download NAMES, going on where an earlier try broke off, check and unpack them."""
    from rislib.data.download import get

    for name in names:
        typer.echo(get(name, out, progress=True))


@data_app.command("convert")
def data_convert(
    dataset: Annotated[str, typer.Argument(help="refcoco, refcoco+ or refcocog")],
    files: Annotated[list[Path], typer.Argument(help="Tables of the Hugging Face hub's jxu124/refcoco.")],
    out: Annotated[Path, typer.Option(help="The data folder.")],
) -> None:
    """Bring the hub's tables (.parquet, .json, .jsonl) into RefCOCO's layout."""
    from rislib.data.hub import convert_hub

    typer.echo(f"{out / dataset}/refs({convert_hub(files, out, dataset)}).json")


@data_app.command("build")
def data_build(
    name: Annotated[str, typer.Argument(help="The only world that can be drawn: refmini.")],
    out: Annotated[Path, typer.Option(help="A new folder.")],
    flavour: Annotated[str, typer.Option(help="refmini, refmini+ or refminig.")] = "refmini",
    seed: Annotated[int, typer.Option(help="Worlds of different seeds share no scene.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the pictures, pixels.")] = 128,
    train: Annotated[int, typer.Option(help="References to train on.")] = 24_000,
    val: Annotated[int, typer.Option(help="References in each of val, testA, testB.")] = 1_200,
) -> None:
    """Draw a world and write it in RefCOCO's layout."""
    from rislib.data import build_refmini

    if name != "refmini":
        raise typer.BadParameter(f"only refmini can be drawn, not {name!r}")
    typer.echo(build_refmini(out, flavour, seed=seed, size=size, train=train, val=val))


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="cris, lavt, magnet or cm_masksd")],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    data: Data = "refmini",
    preset: Annotated[str, typer.Option(help="The network's size.")] = "mini",
    minutes: Annotated[float | None, typer.Option(help="Train by the clock.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Train on so many samples; exactly reproducible.")
    ] = None,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run was interrupted.")] = False,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="No pretrained encoders.")] = False,
    blind: Annotated[bool, typer.Option("--blind", help="Every expression becomes the same word.")] = False,
    without: Annotated[str, typer.Option(help="Parts to leave out, as mask_grounding,cam,cal.")] = "",
    add: Annotated[str, typer.Option("--with", help="Parts to add, as mask_grounding.")] = "",
) -> None:
    """Train METHOD and keep the run in OUT."""
    if (minutes is None) == (samples is None):
        raise typer.BadParameter("say how long: either --minutes or --samples")
    from rislib.methods import part_options
    from rislib.runs import read_log, train_run
    from rislib.viz import learning_curve

    train_run(
        method,
        out=out,
        data=data,
        preset=preset,
        options=part_options(method, add=_names(add), without=_names(without)),
        minutes=minutes,
        samples=samples,
        seed=seed,
        resume=resume,
        from_scratch=from_scratch,
        blind=blind,
    )
    learning_curve(read_log(out)).savefig(out / "learning_curve.png")


@app.command()
def evaluate(
    run: Path,
    data: Data = "refmini",
    split: str = "val",
    protocol: Annotated[str, typer.Option(help="cris_2022 or lavt_2022.")] = "cris_2022",
    shuffle_text: Annotated[
        bool, typer.Option("--shuffle-text", help="Give each picture the expressions of another.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, too.")] = None,
) -> None:
    """Measure a run and print a table. A run trained blind is measured blind."""
    from rislib.runs import evaluate_run

    report = evaluate_run(run, data=data, split=split, protocol=protocol, shuffle_text=shuffle_text)
    typer.echo(f"\n{data} {split}{', expressions shuffled' if shuffle_text else ''}\n{report.table()}\n")
    if json_file is not None:
        asked = {"run": run.name, "data": data, "split": split, "shuffle_text": shuffle_text}
        _write_json(json_file, {**report.to_json(), **asked})


@app.command()
def segment(
    image: Path,
    expression: str,
    run: Annotated[Path, typer.Option(help="A trained run.")],
    out: Annotated[Path, typer.Option(help="The picture with its mask, PNG.")],
) -> None:
    """Find what EXPRESSION refers to in IMAGE."""
    from PIL import Image

    from rislib.predict import Predictor
    from rislib.viz import overlay

    picture = Image.open(image).convert("RGB")
    predictor = Predictor.from_run(run)
    predictor.set_image(picture)
    found = predictor.segment(expression)
    overlay(picture, found.mask, scale=max(1, 512 // max(picture.size))).save(out)
    typer.echo(f"{out}: {found.mask.sum():,} of {found.mask.size:,} pixels, box {found.box}")


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="clip-rn, clip-vit, swin or bert")],
    minutes: float = 22,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("data/weights"),
    start: Annotated[Path | None, typer.Option(help="Go on from these weights.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="clip-vit: see what these weights see.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="clip-vit: needs a C++ compiler.")] = False,
    resume: Annotated[bool, typer.Option("--resume")] = False,
) -> None:
    """Pretrain the mini encoder NAME. The shipped ones came in stages: see the JSON beside their weights."""
    from rislib.pretraining import BUILDERS
    from rislib.pretraining import pretrain as run

    if name not in BUILDERS:
        raise typer.BadParameter(f"no encoder {name!r}; there are {', '.join(BUILDERS)}")
    measured = run(
        name,
        minutes=minutes,
        seed=seed,
        out=out,
        start=start,
        teacher=teacher,
        compile=compile,
        resume=resume,
    )
    typer.echo(f"{out / name}.safetensors: {json.dumps(measured)}")


@app.command()
def bench(
    method: Annotated[
        str, typer.Option(help="cris_r50, cris_r101, lavt, magnet, cm_masksd_b16, or cris_mini and so on.")
    ],
    without: Annotated[str, typer.Option(help="Parts to leave out, with commas: lmvsd,vmlsd.")] = "",
    mode: Annotated[str, typer.Option(help="forward or train.")] = "forward",
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    compile: Annotated[bool, typer.Option("--compile", help="With torch.compile.")] = False,
    channels_last: Annotated[bool, typer.Option(help="Pictures and kernels in that memory format.")] = True,
    steps: Annotated[int, typer.Option(help="How many are timed.")] = 10,
    threads: Annotated[int | None, typer.Option(help="Of the CPU.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, too.")] = None,
) -> None:
    """Time a method on this machine: images per second, memory, share of what it could be, by module."""
    import torch

    from rislib.benchmark import benchmark

    if threads is not None:
        torch.set_num_threads(threads)
    measured = benchmark(
        method,
        without=_names(without),
        mode=mode,
        batch=batch,
        precision=precision,
        compile=compile,
        channels_last=channels_last,
        steps=steps,
    )
    typer.echo(measured.table())
    if json_file is not None:
        _write_json(json_file, measured.to_json())


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="Time for training.")] = 5,
    out: Annotated[Path, typer.Option(help="Where everything goes.")] = Path("demo"),
) -> None:
    """Draw RefMini, train CRIS on it, measure it, and show what it sees."""
    from rislib.demo import run_demo

    run_demo(out, minutes=minutes)


def _names(text: str) -> list[str]:
    """ "a,b" -> ["a", "b"]"""
    return [name.strip() for name in text.split(",") if name.strip()]


def _write_json(path: Path, numbers: dict[str, Any]) -> None:
    """Numbers, and what they come from."""
    from rislib.training import provenance

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**numbers, **provenance()}, indent=1) + "\n")


def main() -> None:
    """Errors that a user can mend are one line, not a traceback."""
    from rislib.data import DataError

    try:
        app()
    except (DataError, OSError, ValueError, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
