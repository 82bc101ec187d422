"""The `fusion` command."""

from __future__ import annotations

import enum
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .patterns.errors import FusionError

app = typer.Typer(
    help="Automatic operator fusion for PyTorch inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Model(enum.StrEnum):
    """Shapes the demo knows by name."""

    qwen3 = "qwen3"
    llama = "llama"


class Dtype(enum.StrEnum):
    """Element types the demo runs in."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def main() -> None:
    """Entry point of the console script."""
    app()


def _show_version(value: bool) -> None:
    if value:
        from .doctor import version_of

        typer.echo(f"opfusion {version_of('opfusion')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    context.obj = debug


@contextmanager
def _one_line_errors(context: typer.Context) -> Iterator[None]:
    """Turns an error into one line on stderr and exit code 2; --debug adds the traceback."""
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        if context.obj:
            traceback.print_exc()
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, FusionError):
            text = f"{type(error).__name__}: {text} Run `fusion --debug {context.info_name}` for the traceback."
        print(f"fusion {context.info_name}: {text}", file=sys.stderr)
        raise typer.Exit(2) from error


@app.command()
def demo(
    context: typer.Context,
    model: Annotated[Model, typer.Option(help="Shape of the model, with random weights.")] = Model.qwen3,
    config: Annotated[
        Path | None, typer.Option(help="A transformers config.json or checkpoint folder, instead of --model.")
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="Element type.")] = Dtype.bfloat16,
    layers: Annotated[int | None, typer.Option(min=1, help="Decoder layers; default: the model's own.")] = None,
    prompt_len: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the prefill; as many as eager runs in 7 s, 256 at most, if unset."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Greedy decode steps.")] = 32,
    json_path: Annotated[Path, typer.Option("--json", help="Where the report is written.")] = Path("demo-report.json"),
    seed: Annotated[int, typer.Option(help="Of the random weights and prompt.")] = 0,
) -> None:
    """Run a model eagerly and fused, side by side. Downloads nothing."""
    with _one_line_errors(context):
        from . import demo as demonstration

        options = demonstration.DemoOptions(
            model.value, config, dtype.value, layers, prompt_len, new_tokens, seed, json_path
        )
        _check_writable(json_path)
        console = _console()
        result = demonstration.run(options, console)
        json_path.write_text(result.to_json(), encoding="utf-8")
        demonstration.show(result, console)
        console.print(f"Report written to {json_path}.", markup=False, highlight=False, soft_wrap=True)


@app.command()
def doctor(context: typer.Context) -> None:
    """Say what works on this machine, and what to do about what does not."""
    with _one_line_errors(context):
        from . import doctor as examination

        findings = examination.examine()
        examination.show(findings, _console())
        if not examination.main_job_works(findings):
            raise typer.Exit(1)


def _console() -> Console:
    """stdout; 100 columns where it is no terminal, so that logs and pipes show the same table."""
    return Console() if sys.stdout.isatty() else Console(width=100)


def _check_writable(path: Path) -> None:
    """Fails before the minutes of work, not after them."""
    if path.is_dir() or not path.parent.is_dir():
        raise FusionError(
            f"The report cannot be written to {path}.", remedy="Give --json a file in an existing folder."
        )
