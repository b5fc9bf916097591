"""The list of commands. Nothing heavy is imported here, so that ``labkit --help`` answers at once."""

from __future__ import annotations

from typing import Annotated

import typer

from labkit.cli import (
    accuracy,
    analyse_net,
    bench,
    card,
    check,
    course,
    demo,
    embed,
    export,
    fine_tune,
    grade,
    gradescope,
    lab,
    quantize,
    redteam,
    run,
    study,
    train,
    verify,
)

__all__ = ["app"]

app = typer.Typer(
    help="Learn neural-network quantization on a real integer engine, checked bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from labkit import __version__

        typer.echo(f"labkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Learn neural-network quantization on a real integer engine, checked bit for bit."""


app.command("demo")(demo.demo)
app.command("quantize")(quantize.quantize)
app.command("run")(run.run)
app.command("verify")(verify.verify)
app.command("embed")(embed.embed)
app.command("accuracy")(accuracy.accuracy)
app.command("analyse")(analyse_net.analyse)
app.command("bench")(bench.bench)
app.command("export")(export.export)
app.command("card")(card.card)
app.command("train")(train.train)
app.command("fine-tune")(fine_tune.fine_tune)
app.command("study")(study.study)
app.command("init")(lab.init)
app.command("lab")(lab.lab)
app.command("check")(check.check)
app.command("grade")(grade.grade)
app.command("replay")(grade.replay)
app.command("gradescope")(gradescope.gradescope)
app.command("redteam")(redteam.redteam)
app.add_typer(course.app, name="course")
