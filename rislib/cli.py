"""The command line: `python -m rislib --help`. Thin: it opens things, calls one function, writes a record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rislib.course.cli import course_app

if TYPE_CHECKING:
    from rislib.encoders.segmenter import Segmenter

app = typer.Typer(
    help="Referring image segmentation from the papers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Draw RefMini; get and check RefCOCO; your own pictures.", no_args_is_help=True)
app.add_typer(data_app, name="data")
study_app = typer.Typer(help="The trainings behind the tables, and the tables.", no_args_is_help=True)
app.add_typer(study_app, name="study")
app.add_typer(course_app, name="course")

MASKS = "Masks for methods that read them: none, proposals, oracle (the truth), or COCO results JSON."
Data = Annotated[str, typer.Option(help="refmini, refcoco, ..., or a folder in RefCOCO's layout.")]


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

    FOLDER has RefCOCO's layout, or your own pictures and their expressions.csv (see `data import`).

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


@data_app.command("stream")
def data_stream(
    name: Annotated[str, typer.Argument(help="jxu124/refcoco-benchmark, or a table of its form.")],
    split: Annotated[list[str], typer.Option(help="refcoco_unc_val, ...; may be repeated.")],
    out: Annotated[Path, typer.Option(help="A new folder, for --data.")],
) -> None:
    """Bring splits of the hub's table NAME, with their pictures and no others, into RefCOCO's layout."""
    from rislib.data.hub import import_stream

    typer.echo(import_stream(name, split, out, progress=True))


@data_app.command("import")
def data_import(
    folder: Annotated[Path, typer.Argument(help="Pictures, and expressions.csv or expressions.json.")],
    out: Annotated[Path, typer.Option(help="A new folder, for --data.")],
    size: Annotated[
        int, typer.Option(help="Longest side of a picture, pixels; 0 leaves them as they are.")
    ] = 640,
) -> None:
    """Bring a folder of your own pictures into RefCOCO's layout, if nothing is wrong with it."""
    from rislib.data import check_folder, import_own

    report = check_folder(folder, progress=True)
    for line in report.lines():
        typer.echo(line)
    if not report.ok:
        raise typer.Exit(1)
    typer.echo(import_own(folder, out, size=size or None, progress=True))


@data_app.command("cache")
def data_cache(
    data: Annotated[str, typer.Argument(help="refmini, refcoco, ..., or a folder in RefCOCO's layout.")],
    method: Annotated[str, typer.Option(help="cris, lavt, ...: the network that the pictures are for.")],
    out: Annotated[Path, typer.Option(help="The folder, for --cache.")],
    preset: Annotated[str, typer.Option(help="The network's size: mini; r50, base, b16, ...")] = "mini",
    split: str = "train",
    check: Annotated[bool, typer.Option("--check", help="Then read it all, and compare checksums.")] = False,
) -> None:
    """Resize the pictures of DATA once, as METHOD wants them; goes on where an earlier try was stopped.

    `train --cache` does so by itself, while every device of a launch waits.
    """
    import torch

    from rislib.data import cached, open_split
    from rislib.methods import build

    with torch.device("meta"):  # without weights: all that is asked is what it wants
        preprocessing = build(method, preset, pretrained=False).preprocessing
    cache = cached(open_split(data, split), preprocessing, out, progress=True).cache
    typer.echo(f"{out}: {len(cache.entries):,} pictures of {preprocessing.size} px, {preprocessing.resize}")
    broken = cache.broken(progress=True) if check else []
    for name in broken:
        typer.echo(f"{name}: its pixels in {out} are damaged: delete that folder, and it is made anew")
    raise typer.Exit(1 if broken else 0)


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
    method: Annotated[str, typer.Argument(help="cris, lavt, magnet, cm_masksd or mail")],
    out: Annotated[Path | None, typer.Option(help="The run's folder.")] = None,
    data: Data = "refmini",
    preset: Annotated[str, typer.Option(help="The network's size: mini; r50, base, b16, ...")] = "mini",
    recipe: Annotated[
        str | None, typer.Option(help="cris_2022, lavt_2022, ...; mini's own unless given.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Train by the clock.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Train on so many samples; exactly reproducible.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="The recipe's unless given.")] = None,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run was interrupted.")] = False,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="No pretrained encoders.")] = False,
    start: Annotated[Path | None, typer.Option(help="Go on from this finished run's weights.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Every expression becomes the same word.")] = False,
    without: Annotated[str, typer.Option(help="Parts to leave out, as mask_grounding,cam,cal.")] = "",
    add: Annotated[str, typer.Option("--with", help="Parts to add, as mask_grounding.")] = "",
    instances: Annotated[str, typer.Option(help=MASKS)] = "none",
    precision: Annotated[str | None, typer.Option(help="fp32, bf16, fp16; else the recipe's.")] = None,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="At most so many samples at a time on each device.")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory: compute activations twice.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="With torch.compile.")] = False,
    workers: Annotated[int, typer.Option(help="Processes that prepare samples.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="A folder for resized pictures: made once, read ever after.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only measure what it would cost; writes nothing but --cache.")
    ] = False,
) -> None:
    """Train METHOD and keep the run in OUT. On several devices: accelerate launch -m rislib train ..."""
    budgets = sum(amount is not None for amount in (minutes, samples, epochs))
    if budgets > 1 or (budgets == 0 and recipe is None):
        raise typer.BadParameter("say how long: either --minutes or --samples or --epochs, or --recipe")
    if out is None and not dry_run:
        raise typer.BadParameter("say where: --out")
    from rislib.methods import part_options
    from rislib.processes import processes
    from rislib.runs import choose_recipe, read_log, rehearse_run, train_run
    from rislib.viz import learning_curve

    settings = {
        "data": data,
        "preset": preset,
        "options": part_options(method, add=_names(add), without=_names(without)),
        "recipe": choose_recipe(method, preset, recipe, precision=precision),
        "minutes": minutes,
        "samples": samples,
        "epochs": epochs,
        "seed": seed,
        "from_scratch": from_scratch,
        "blind": blind,
        "instances": instances,
        "cache": cache,
        "workers": workers,
        "micro_batch": micro_batch,
        "checkpointing": checkpointing,
        "compile": compile,
    }
    if dry_run:
        measured = rehearse_run(method, **settings)
    else:
        train_run(method, out=out, resume=resume, start=start, **settings)
    if not processes().is_main_process:
        return
    if dry_run:
        typer.echo(f"{method} {preset} on {data}\n{measured.table()}")
    else:
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
    instances: Annotated[str | None, typer.Option(help=f"{MASKS} As in training unless given.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, too.")] = None,
) -> None:
    """Measure a run and print a table. A run trained blind is measured blind."""
    from rislib.processes import processes
    from rislib.runs import evaluate_run, read_record

    record = read_record(run)
    trained_with = record["instances"]
    instances = instances or trained_with
    report = evaluate_run(
        run, data=data, split=split, protocol=protocol, shuffle_text=shuffle_text, instances=instances
    )
    if not processes().is_main_process:
        return
    title = f"{data} {split}"
    if shuffle_text:
        title += ", expressions shuffled"
    if (instances, trained_with) != ("none", "none"):
        title += f", instance masks: {instances} (in training: {trained_with})"
    typer.echo(f"\n{title}\n{report.table()}\n")
    if json_file is not None:
        asked = {"run": run.name, "data": data, "split": split, "shuffle_text": shuffle_text}
        asked |= {"instances": instances, "instances_in_training": trained_with}
        asked["training"] = {key: record.get(key) for key in ("command", "commit", "seed", "samples_seen")}
        _write_json(json_file, {**report.to_json(), **asked})


@app.command()
def anatomy(
    run: Path,
    data: Data = "refmini",
    split: str = "val",
    protocol: Annotated[str, typer.Option(help="cris_2022 or lavt_2022.")] = "cris_2022",
    instances: Annotated[str | None, typer.Option(help=f"{MASKS} As in training unless given.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, too.")] = None,
) -> None:
    """What goes wrong in a run's answers, how they react to small edits, and what the threshold does.

    On another split than val, also what it buys to pick the threshold there and not on val.
    """
    from rislib.evaluation.anatomy import table
    from rislib.runs import dissect_run, read_record

    instances = instances or read_record(run)["instances"]
    numbers = dissect_run(run, data=data, split=split, protocol=protocol, instances=instances)
    typer.echo(f"\n{data} {split}\n{table(numbers)}\n")
    if json_file is not None:
        asked = {"run": run.name, "data": data, "split": split, "instances": instances}
        _write_json(json_file, {**numbers, **asked})


@app.command()
def segment(
    image: Path,
    expression: str,
    run: Annotated[Path, typer.Option(help="A trained run.")],
    out: Annotated[Path, typer.Option(help="The picture with its mask, PNG.")],
    segmenter: Annotated[
        str | None, typer.Option(help="mini or coco: finds the masks that MaIL reads beside the picture.")
    ] = None,
) -> None:
    """Find what EXPRESSION refers to in IMAGE."""
    from rislib.data import open_picture
    from rislib.predict import Predictor
    from rislib.runs import read_record
    from rislib.viz import overlay

    if segmenter is None and read_record(run)["instances"] != "none":
        raise typer.BadParameter(f"{run} reads masks beside the picture: say --segmenter mini, or coco")
    picture = open_picture(image)
    predictor = Predictor.from_run(run)
    predictor.set_image(picture, None if segmenter is None else _segmenter(segmenter).segment(picture)[0])
    found = predictor.segment(expression)
    overlay(picture, found.mask, scale=max(1, 512 // max(picture.size))).save(out)
    typer.echo(f"{out}: {found.mask.sum():,} of {found.mask.size:,} pixels, box {found.box}")


@app.command()
def propose(
    data: Annotated[
        str, typer.Argument(help="refmini, refmini+, refminig, or a folder in RefCOCO's layout.")
    ],
    segmenter: Annotated[str, typer.Option(help="mini, or coco: torchvision's, for photographs.")] = "mini",
) -> None:
    """Look for things in every picture of DATA, keep their masks beside it, and count the true ones on val.

    They are what `--instances proposals` reads.
    """
    from rislib.data import open_split, recall, with_instances
    from rislib.data import propose as run

    file = run(open_split(data, None), _segmenter(segmenter))
    measured = recall(with_instances(open_split(data, "val"), "proposals"))
    typer.echo(f"{file}: on val {json.dumps(measured)}")


@app.command()
def pretrain(
    name: Annotated[str, typer.Argument(help="clip-rn, clip-vit, swin, bert, vilt or segmenter")],
    minutes: float = 22,
    seed: int = 0,
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("data/weights"),
    start: Annotated[Path | None, typer.Option(help="Go on from these weights.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="clip-vit, vilt: learn what these weights of a CLIP know.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="clip-vit: needs a C++ compiler.")] = False,
    resume: Annotated[bool, typer.Option("--resume")] = False,
    scenes: Annotated[int, typer.Option(help="How many are drawn; 32,000 of 128 px take 3 GB.")] = 32_000,
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
        scenes=scenes,
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
        str, typer.Option(help="cris_r50, cris_r101, lavt, magnet, cm_masksd_b16, mail_b32; cris_mini, ...")
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


@study_app.command("run")
def study_run(
    name: Annotated[str, typer.Argument(help="five_minutes, equal_samples, cris_ablation, ...")],
    data: Annotated[list[str] | None, typer.Option(help="Only this data; may be repeated.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="Only this variant; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only this seed; may be repeated.")] = None,
    processes: Annotated[int, typer.Option(help="Trainings side by side.")] = 1,
    out: Annotated[Path, typer.Option(help="The folder of the records.")] = Path("results"),
) -> None:
    """Do the runs of a study that its record lacks. It may be stopped, and goes on where it was."""
    from rislib.study import run_study

    typer.echo(run_study(name, out, data=data, variants=variant, seeds=seed, processes=processes))


@study_app.command("report")
def study_report(
    files: Annotated[list[Path] | None, typer.Argument(help="Markdown files with places for tables.")] = None,
    results: Annotated[Path, typer.Option(help="The folder of the records.")] = Path("results"),
) -> None:
    """Make every table in FILES anew, and the report's figures: from the records alone."""
    from rislib.study import draw_report, write_report

    files = files or [results / "REPORT.md", results / "README.md", Path("README.md")]
    for changed in write_report(*files, results=results):
        typer.echo(changed)
    for figure in draw_report(results):
        typer.echo(figure)


def _names(text: str) -> list[str]:
    """ "a,b" -> ["a", "b"]"""
    return [name.strip() for name in text.split(",") if name.strip()]


def _segmenter(name: str) -> Segmenter:
    from rislib.encoders.segmenter import SEGMENTERS

    if name not in SEGMENTERS:
        raise typer.BadParameter(f"no segmenter {name!r}; there are {', '.join(SEGMENTERS)}")
    return SEGMENTERS[name](pretrained=True)


def _write_json(path: Path, numbers: dict[str, Any]) -> None:
    """Numbers, and what they come from."""
    from rislib.training import provenance, write_record

    write_record(path, {**numbers, **provenance()})


def main() -> None:
    """Errors that a user can mend are one line, not a traceback."""
    from rislib.data import DataError
    from rislib.processes import lost_another

    try:
        app()
    except (DataError, OSError, ValueError, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except RuntimeError as error:
        if not lost_another(error):
            raise
        advice = "it, or the launcher, says why. Launch all of them again with --resume"
        typer.echo(f"error: another process of this launch is gone: {advice} ({error})", err=True)
        sys.exit(1)
