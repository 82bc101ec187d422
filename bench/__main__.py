"""`python -m bench [NAME...]`: measures, prints a table, writes rows to bench/results/."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from .options import Options
from .rows import RESULTS, Row, show, write

NAMES = (
    "guards",
    "kernels",
    "products",
    "decode",
    "prefill",
    "accuracy",
    "cold",
    "sweep",
)  # without names: these, in this order
ALL = (*NAMES, "gpu", "triton_products")
_FILE_WIDTH = 170  # columns of the table where there is no terminal


app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Which of {', '.join(ALL)}; by default {len(NAMES)}.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write all rows here instead of bench/results/.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few rounds, fewer layers; not kept unless --json.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Add torch.compile to decode, prefill and kernels.")
    ] = False,
    skip_compile: Annotated[bool, typer.Option("--skip-compile", help="Leave torch.compile out of cold.")] = False,
    only: Annotated[
        Literal["equality", "fusion", "time"] | None, typer.Option("--only", help="Sweep: measure this alone.")
    ] = None,
    models: Annotated[
        str | None, typer.Option("--models", help="Sweep: a regular expression for model types' whole names.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Sweep: so many at a time; more than 1 spoils times.")] = 1,
) -> None:
    """Measures every number the project claims, side by side with eager. Exits with 1 if a row is invalid."""
    unknown = [name for name in names or () if name not in ALL]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(ALL)}.")
    os.environ["HF_HUB_OFFLINE"] = "1"
    options = Options(quick, compiled, skip_compile, only=only, models=models, jobs=jobs)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_FILE_WIDTH)
    rows: list[Row] = []
    for name in dict.fromkeys(names or NAMES):
        console.print(f"{name} ...", style="dim")
        made: list[Row] = importlib.import_module(f"bench.{name}").run(options)
        rows += made
        if made and json_path is None and not (quick or only or models):
            write(made, RESULTS / f"{name}.json")
    if rows:
        show(rows, console)
    if json_path is not None:
        write(rows, json_path)
    raise typer.Exit(1 if any(row.status == "invalid" for row in rows) else 0)


if __name__ == "__main__":
    app()
