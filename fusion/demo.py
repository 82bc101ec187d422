"""`fusion demo`: one model, eager and fused side by side, tokens and logits compared, nothing downloaded."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .demo_model import build_model
from .reporting.model import FusionReport

PREFILL_ROUNDS = 5
PREFILL_SECONDS = 10.0  # after which no further round of prefills begins
EAGER_SECONDS = 7.0  # what an eager prefill takes at most, where no length is asked for: half precision may be slow
MOST_TOKENS, LEAST_TOKENS = 256, 32  # of a prefill where no length is asked for
WARM_UP_STEPS = 3
FUSED_WARM_UPS = 2  # after the first calls: with a cache, the third prefill still checks its plans beside eager
WARM_UP_TOKENS = 16  # of the eager side, which has nothing to compile
REFERENCE_BYTES = 6 * 2**30  # a reference run whose weights need more than this is left out, and said so


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run.

    Attributes:
        model: "qwen3" or "llama", where `config` is None.
        config: a transformers config.json, or a folder that holds one (and weights, which are then used).
        dtype: "bfloat16", "float16" or "float32".
        layers: decoder layers, or None for the model's own number.
        prompt_len: tokens of the prefill, or None for as many as this machine runs eagerly in a few seconds.
        new_tokens: tokens of the greedy decode.
        seed: of the random weights and prompt.
        json_path: where the report goes.
    """

    model: str = "qwen3"
    config: Path | None = None
    dtype: str = "bfloat16"
    layers: int | None = None
    prompt_len: int | None = None
    new_tokens: int = 32
    seed: int = 0
    json_path: Path = Path("demo-report.json")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of interleaved runs of one side: the median and the 20th and 80th percentile."""

    p20: float
    p50: float
    p80: float
    runs: int

    @staticmethod
    def of(seconds: list[float]) -> Timing:
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return Timing(ordered[round(0.2 * last)], statistics.median(ordered), ordered[round(0.8 * last)], len(ordered))


@dataclass(frozen=True, slots=True)
class Difference:
    """A step at which the two sides' greedy tokens differ.

    Attributes:
        step: 0 is the token after the prompt.
        eager, fused: the tokens.
        gap: the reference's logit of eager's token minus that of fused's, or None without a reference.
    """

    step: int
    eager: int
    fused: int
    gap: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near the two sides are, every step fed eager's token.

    Attributes:
        steps: tokens compared; differences: those that differ.
        bit_equal: all logits are the same bits.
        reference: precision of the run both are held against ("float32", "float64"), or why there is none.
        eager_error, fused_error: largest distance of a logit to the reference, or None without one.
    """

    steps: int
    differences: tuple[Difference, ...]
    bit_equal: bool
    reference: str
    eager_error: float | None
    fused_error: float | None


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Everything the demo found; `to_json` is what it writes."""

    options: DemoOptions
    device: str
    parameters: int
    warm_up_seconds: float
    timings: dict[str, dict[str, Timing]]
    agreement: Agreement
    report: FusionReport

    def to_json(self) -> str:
        """The result as JSON text, the report under "report" as `FusionReport.from_json` reads it."""
        values = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("report", "timings")
        }
        for name, value in values.items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                values[name] = dataclasses.asdict(value)
        timings: dict[str, Any] = {}
        for phase, sides in self.timings.items():
            timings[phase] = {side: dataclasses.asdict(timing) for side, timing in sides.items()}
            timings[phase]["speedup"] = sides["eager"].p50 / sides["fused"].p50
        document = {"command": " ".join(["fusion", *sys.argv[1:]]), **values, "seconds": timings}
        return json.dumps({**document, "report": json.loads(self.report.to_json())}, indent=2, default=str) + "\n"


def run(options: DemoOptions, console: Console) -> DemoResult:
    """Builds the model, runs both sides and compares them; prints progress only.

    Raises:
        ConfigError: a configuration that cannot be read or is not a causal language model.
        FusionError: transformers is missing, or the pass was asked for something this machine cannot do.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stages = 2 + 2 + 2 * PREFILL_ROUNDS + 2 * options.new_tokens + 1
    with torch.inference_mode(), _progress(console, stages) as step:
        step(f"building {options.config or options.model}", 0)
        model = build_model(options.model, options.config, options.dtype, options.layers, options.seed).to(device)
        step("eager warm-up")
        sides = _Sides(model, options, device)
        seconds = sides.warm_up("eager", WARM_UP_TOKENS)
        if options.prompt_len is None:
            options = dataclasses.replace(options, prompt_len=tokens_within(EAGER_SECONDS, seconds / WARM_UP_TOKENS))
            sides.prompt = sides.prompt[:, : options.prompt_len]
        step("recording, compiling, proving")
        warm_up_seconds = sides.enable()
        step("fused warm-up")
        for _ in range(FUSED_WARM_UPS):
            sides.warm_up("fused")
        step("prefill")
        prefill = sides.prefill(lambda: step("prefill"))
        step("decode", 2 * (PREFILL_ROUNDS - prefill["eager"].runs))
        decode, tokens, logits = sides.decode(lambda: step("decode"))
        step("comparing")
        report = sides.report()
        sides.disable()
        agreement = compare(model, options, sides.prompt, tokens, logits)
        step("done", 0)
    parameters = sum(p.numel() for p in model.parameters())
    timings = {"prefill": prefill, "decode": decode}
    return DemoResult(options, _device_name(device), parameters, warm_up_seconds, timings, agreement, report)


def tokens_within(seconds: float, per_token: float) -> int:
    """Tokens of a prefill that takes at most so long: a multiple of 32 between LEAST_TOKENS and MOST_TOKENS."""
    return max(LEAST_TOKENS, min(MOST_TOKENS, int(seconds / per_token) // 32 * 32))


class _Sides:
    """One model that runs eagerly or fused, by its config's switch, each side with a cache of its own."""

    def __init__(self, model: Any, options: DemoOptions, device: str) -> None:
        generator = torch.Generator().manual_seed(options.seed)
        shape = (1, options.prompt_len or MOST_TOKENS)
        self.model, self.options, self.device = model, options, device
        self.prompt = torch.randint(model.config.vocab_size, shape, generator=generator).to(device)
        self.caches: dict[str, Any] = {}

    def enable(self) -> float:
        """Turns the pass on and makes its first calls. Returns their seconds."""
        import fusion

        start = time.perf_counter()
        fusion.enable(self.model)
        self.warm_up("fused")
        return time.perf_counter() - start

    def disable(self) -> None:
        import fusion

        self.model.config.enable_fusion = True
        fusion.disable(self.model)

    def report(self) -> FusionReport:
        import fusion

        report: FusionReport = fusion.report(self.model)
        return report

    def warm_up(self, side: str, most: int | None = None) -> float:
        """A prefill, of `most` tokens at most, and a few decode steps. Returns the prefill's seconds."""
        logits, seconds = self._prefill(side, most)
        for _ in range(min(WARM_UP_STEPS, self.options.new_tokens)):
            logits, _ = self._call(side, logits.argmax(-1)[:, None])
        return seconds

    def prefill(self, tick: Callable[[], None]) -> dict[str, Timing]:
        """Interleaved prefills, at least one of each side; leaves caches filled and the last logits in `self.last`."""
        seconds: dict[str, list[float]] = {"eager": [], "fused": []}
        self.last: dict[str, torch.Tensor] = {}
        for turn in range(PREFILL_ROUNDS):
            if sum(map(sum, seconds.values())) > PREFILL_SECONDS:
                break
            for side in _order(turn):
                self.last[side], taken = self._prefill(side)
                seconds[side].append(taken)
                tick()
        return {side: Timing.of(times) for side, times in seconds.items()}

    def decode(self, tick: Callable[[], None]) -> tuple[dict[str, Timing], torch.Tensor, dict[str, torch.Tensor]]:
        """Interleaved greedy steps, both sides fed eager's token.

        Returns:
            times; the tokens fed, int64 [new_tokens]; each side's logits on the CPU, [new_tokens, vocabulary].
        """
        seconds: dict[str, list[float]] = {"eager": [], "fused": []}
        kept: dict[str, list[torch.Tensor]] = {side: [logits.cpu()] for side, logits in self.last.items()}
        fed = [self.last["eager"].argmax(-1)]
        for turn in range(self.options.new_tokens):
            following: dict[str, torch.Tensor] = {}
            for side in _order(turn):
                following[side], taken = self._call(side, fed[-1][:, None])
                seconds[side].append(taken)
                tick()
            if turn + 1 < self.options.new_tokens:
                fed.append(following["eager"].argmax(-1))
                for side, logits in following.items():
                    kept[side].append(logits.cpu())
        times = {side: Timing.of(values) for side, values in seconds.items()}
        return times, torch.cat(fed), {side: torch.cat(logits) for side, logits in kept.items()}

    def _prefill(self, side: str, most: int | None = None) -> tuple[torch.Tensor, float]:
        from transformers import DynamicCache

        self.caches[side] = DynamicCache(config=self.model.config)
        return self._call(side, self.prompt[:, :most])

    def _call(self, side: str, tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Logits after the last token, [1, vocabulary], and the seconds of the call."""
        self.model.config.enable_fusion = side == "fused"
        _synchronize(self.device)
        start = time.perf_counter()
        result = self.model(input_ids=tokens, past_key_values=self.caches[side], use_cache=True)
        _synchronize(self.device)
        return result.logits[:, -1], time.perf_counter() - start


def compare(
    model: Any, options: DemoOptions, prompt: torch.Tensor, tokens: torch.Tensor, logits: dict[str, torch.Tensor]
) -> Agreement:
    """Holds both sides' logits against one run of the same tokens in a higher precision. Casts `model` for good.

    Args:
        prompt: [1, prompt_len]; tokens: [new_tokens], eager's; logits: per side [new_tokens, vocabulary].
    """
    chosen = {side: values.argmax(-1).tolist() for side, values in logits.items()}
    equal = torch.equal(logits["eager"], logits["fused"])
    differing = [i for i, (a, b) in enumerate(zip(chosen["eager"], chosen["fused"], strict=True)) if a != b]
    wide = torch.float64 if options.dtype == "float32" else torch.float32
    needed = sum(p.numel() for p in model.parameters()) * wide.itemsize
    name = str(wide).removeprefix("torch.")
    if needed > REFERENCE_BYTES:
        why = f"none: its {name} weights need {needed / 2**30:.1f} GiB; fewer --layers make room"
        unknown = tuple(Difference(i, chosen["eager"][i], chosen["fused"][i], None) for i in differing)
        return Agreement(options.new_tokens, unknown, equal, why, None, None)
    sequence = torch.cat([prompt, tokens[None, :-1]], dim=1)
    model.to(wide)
    reference = model(input_ids=sequence, use_cache=False, logits_to_keep=options.new_tokens).logits[0].cpu()
    errors = {side: (values.to(wide) - reference).abs().max().item() for side, values in logits.items()}
    differences = tuple(
        Difference(i, a, b, (reference[i, a] - reference[i, b]).item())
        for i in differing
        for a, b in [(chosen["eager"][i], chosen["fused"][i])]
    )
    return Agreement(options.new_tokens, differences, equal, name, errors["eager"], errors["fused"])


def show(result: DemoResult, console: Console) -> None:
    """Prints times, agreement and the report."""
    from fusion.reporting.text import renderable

    console.print(renderable(result.report, console.width))
    console.print()
    options = result.options
    layers = "" if options.layers is None else f", {options.layers} layers"
    title = f"{options.config or options.model}, {result.parameters / 1e6:.0f}M parameters{layers}, {options.dtype}"
    console.print(f"{title}, on {result.device}", style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("median (p20 .. p80)", "eager", "fused", "speedup"):
        table.add_column(name, justify="left" if name.startswith("median") else "right")
    for phase, sides in result.timings.items():
        tokens = f"prefill, {options.prompt_len} tokens" if phase == "prefill" else "decode, one token"
        speedup = f"{sides['eager'].p50 / sides['fused'].p50:.2f}x"
        table.add_row(tokens, _milliseconds(sides["eager"]), _milliseconds(sides["fused"]), speedup)
    console.print(table)
    for line in _sentences(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _sentences(result: DemoResult) -> Iterator[str]:
    agreement = result.agreement
    same = agreement.steps - len(agreement.differences)
    yield f"First fused calls, recording and compiling included: {result.warm_up_seconds:.1f} s."
    yield f"Tokens: {same} of {agreement.steps} the same{', logits bit-equal' if agreement.bit_equal else ''}."
    for difference in agreement.differences:
        gap = (
            ""
            if difference.gap is None
            else f"; the {agreement.reference} run puts them {abs(difference.gap):.3g} apart"
        )
        yield f"  step {difference.step}: eager {difference.eager}, fused {difference.fused}{gap}"
    if agreement.eager_error is None or agreement.fused_error is None:
        yield f"Reference: {agreement.reference}."
    else:
        errors = f"eager {agreement.eager_error:.3g}, fused {agreement.fused_error:.3g}"
        yield f"Largest distance of a logit to a {agreement.reference} run of the same tokens: {errors}."
    if not any(scope.fused_calls for scope in result.report.scopes):
        yield "No call ran fused; the report above says why, `fusion doctor` what to do about it."


def _milliseconds(timing: Timing) -> str:
    if timing.runs == 1:
        return f"{timing.p50 * 1e3:.1f} ms (once)"
    return f"{timing.p50 * 1e3:.1f} ms ({timing.p20 * 1e3:.1f} .. {timing.p80 * 1e3:.1f})"


def _order(turn: int) -> tuple[str, str]:
    """Who goes first alternates, so that neither side always meets the warmer cache."""
    return ("eager", "fused") if turn % 2 == 0 else ("fused", "eager")


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[..., None]]:
    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)

        def step(description: str, advance: int = 1) -> None:
            progress.update(task, description=description, advance=advance)

        yield step
