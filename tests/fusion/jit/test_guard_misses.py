"""Each guard that does not hold is named in the report: what it checks, where, what was wanted and what was got."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from islands import Memory, Remember
from pair import Block, Norm, rand
from tiny import line_of, no_grad, scopes

import fusion
from fusion.patterns.errors import StructureMismatch
from fusion.patterns.guards import KINDS, GuardMiss, shorten
from fusion.reporting.model import FusionReport
from fusion.reporting.rows import GuardReport, ScopeReport, Totals


def misses(model: Any) -> dict[str, GuardReport]:
    """The report's guards that did not hold by where they are, the same through JSON."""
    report = fusion.report(model)
    assert FusionReport.from_json(report.to_json()) == report
    rows = [row for scope in report.scopes for row in scope.guards]
    assert {row.guard for row in rows} <= KINDS.keys()
    return {row.where: row for row in rows}


@dataclasses.dataclass
class Options:
    scale: float = 2.0
    name: str = "a"


class Layer(torch.nn.Module):
    """Takes one argument of each kind that guards are on."""

    def forward(
        self,
        x: torch.Tensor,
        other: torch.Tensor,
        parts: list[torch.Tensor],
        options: Options,
        flag: bool | None = True,
        count: int = 3,
        mode: str = "plain",
    ) -> torch.Tensor:
        y = torch.tanh(x) * 2 + other + parts[0]
        y = y * options.scale if options.name == "a" and mode == "plain" else y - 1
        return y * count if flag else y


def inputs() -> dict[str, Any]:
    return {"x": rand(4, 8), "other": rand(4, 8, seed=1), "parts": [rand(4, 8, seed=2)], "options": Options()}


def recorded(quick: fusion.FusionConfig) -> Any:
    model = fusion.enable(Layer().eval(), quick)
    for _ in range(3):
        no_grad(model, **inputs())
    assert not misses(model)
    return model


def doubled(given: dict[str, Any]) -> None:
    for name in ("x", "other"):
        given[name] = given[name].double()
    given["parts"] = [given["parts"][0].double()]


ARGUMENTS: list[tuple[str, Callable[[dict[str, Any]], Any], tuple[str, str, str, str]]] = [
    ("dtype", doubled, ("dtype", "x.dtype", "float32", "float64")),
    ("rank", lambda g: g.update(x=rand(2, 4, 8)), ("rank", "x.ndim", "2", "3")),
    ("relation", lambda g: g.update(other=rand(1, 8)), ("size", "other.shape[0]", "4 (x.shape[0])", "1")),
    ("size of 1", lambda g: g.update(x=rand(1, 8)), ("size", "x.shape[0]", "a whole number of at least 2", "1")),
    ("stride", lambda g: g.update(x=rand(8, 4).t()), ("stride", "x.stride(0)", "8 (x.shape[1])", "1")),
    ("wrapped", lambda g: g.update(x=torch._neg_view(rand(4, 8))), ("tensor", "x", "a plain tensor", "float32[4, 8]")),
    ("bool", lambda g: g.update(flag=False), ("value", "flag", "True", "False")),
    ("None", lambda g: g.update(flag=None), ("value", "flag", "True", "None")),
    ("number", lambda g: g.update(count=4), ("value", "count", "3", "4")),
    ("float for an int", lambda g: g.update(count=3.0), ("value", "count", "3", "3.0")),
    ("str", lambda g: g.update(mode="odd"), ("value", "mode", "'plain'", "'odd'")),
    ("length", lambda g: g["parts"].append(rand(4, 8)), ("length", "len(parts)", "1", "2")),
    ("container", lambda g: g.update(parts=tuple(g["parts"])), ("class", "type(parts)", "list", "tuple")),
    ("attribute", lambda g: setattr(g["options"], "scale", 0.5), ("value", "options.scale", "2.0", "0.5")),
]


@pytest.mark.parametrize(("change", "wanted"), [row[1:] for row in ARGUMENTS], ids=[row[0] for row in ARGUMENTS])
def test_an_argument_that_does_not_fit_is_named(
    change: Callable[[dict[str, Any]], Any], wanted: tuple[str, ...], quick: fusion.FusionConfig
) -> None:
    model, given = recorded(quick), inputs()
    change(given)
    found, expected = no_grad(model, **given), no_grad(Layer().eval(), **given)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    row = misses(model)[wanted[1]]
    assert (row.guard, row.where, row.wanted, row.got, row.times) == (*wanted, 1)
    assert row.origin.startswith("jit/test_guard_misses.py:")
    text = str(fusion.report(model))
    assert "Guards that did not hold:" in text and wanted[1] in text and "1 guard miss" in text


def test_a_tensors_guard_names_the_line_that_reads_it(quick: fusion.FusionConfig) -> None:
    model = recorded(quick)
    no_grad(model, **{**inputs(), "other": rand(1, 8)})
    assert line_of(misses(model)["other.shape[0]"].origin).startswith("y = torch.tanh(x)")


class Splits(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x) * 2
        if x.shape[0] > 3:  # here
            y = y + 1
        return y * 3


def test_a_condition_on_sizes_names_the_line_that_asks(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(Splits().eval(), quick)
    for rows in (5, 6, 5, 2):
        no_grad(model, rand(rows, 8))
    row = misses(model)["x.shape[0] > 3"]
    assert (row.guard, row.wanted, row.got, row.times) == ("relation", "true", "x.shape[0] is 2", 1)
    assert line_of(row.origin).endswith("# here")


class Chooses(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x) - 1
        if mask.all():  # here
            return y * 2
        return y.where(mask, x)


def test_data_that_leads_elsewhere_is_named(quick: fusion.FusionConfig) -> None:
    model, mask = fusion.enable(Chooses().eval(), quick), torch.ones(4, 8).bool()
    for _ in range(3):
        no_grad(model, rand(4, 8), mask)
    assert not misses(model)
    no_grad(model, rand(4, 8), ~mask)
    row = misses(model)["all(...).__bool__()"]
    assert (row.guard, row.wanted, row.got, row.times) == ("data", "True", "False", 1)
    assert line_of(row.origin).endswith("# here")


def test_a_read_of_an_object_that_answers_otherwise_is_named(quick: fusion.FusionConfig) -> None:
    model, memory = fusion.enable(Remember().eval(), quick), Memory()
    memory.held.append(rand(2, 8))
    for rows in (3, 4, 5):
        no_grad(model, rand(rows, 8), memory)
    no_grad(model, rand(3, 8), Memory())
    row = misses(model)["memory.length()"]
    assert (row.guard, row.wanted, row.got, row.times) == ("read", "a whole number of at least 2", "0", 1)
    assert line_of(row.origin).startswith("y = torch.exp(x)")


def test_a_guard_in_the_midst_of_a_plan_is_named(quick: fusion.FusionConfig) -> None:
    model, memory = fusion.enable(Remember().eval(), quick), Memory()
    memory.held.append(rand(2, 8))
    for rows in (3, 4, 5):
        no_grad(model, rand(rows, 8), memory)
    eager, twin = Remember().eval(), copy.deepcopy(memory)
    for held in (memory, twin):
        held.held[0] = held.held[0].double()  # so that the call's result is of doubles
    x = rand(3, 8)
    torch.testing.assert_close(no_grad(model, x, memory), no_grad(eager, x, twin), rtol=1e-5, atol=1e-5)
    (scope,) = fusion.report(model).scopes
    row = misses(model)["memory.add(...)[0].dtype"]
    assert (scope.fallbacks, row.guard, row.wanted, row.got) == (1, "dtype", "float32", "float64")
    assert line_of(row.origin).startswith("everything, double")
    assert "Deoptimized: memory.add(...)[0].dtype is float64; the plan is for float32" in scope.reason


def test_a_kernel_that_does_not_fit_is_named(quick: fusion.FusionConfig) -> None:
    model = recorded(quick)
    (scope,) = scopes(model).values()
    (known,) = scope.known
    ((_, plan),) = known.plans.values()

    def unfit(*_: Any) -> Any:
        raise StructureMismatch("kernel: the dtype of a0 is float64, expected float32.")

    plan.run.__globals__["kernel0"] = unfit
    no_grad(model, **inputs())
    row = misses(model)["a kernel's arguments"]
    assert (row.guard, row.got) == ("kernel", "kernel: the dtype of a0 is float64, expected float32.")
    assert line_of(row.origin).startswith("y = ")


# ---- state


class Other(Norm):
    pass


def norm_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x * 2


def swapped_code() -> Iterator[None]:
    before = Norm.forward
    Norm.forward = norm_forward  # type: ignore[method-assign]
    yield
    Norm.forward = before  # type: ignore[method-assign]


STATE: list[tuple[str, Callable[[Any], Any], tuple[str, str, str, str]]] = [
    ("attribute", lambda m: setattr(m, "scale", 0.25), ("state", "self.scale", "1.5", "0.25")),
    ("inner attribute", lambda m: setattr(m.norm, "eps", 0.5), ("state", "self.norm.eps", "1e-06", "0.5")),
    ("new attribute", lambda m: setattr(m.norm, "more", 7), ("state", "self.norm.more", "not there", "7")),
    ("gone", lambda m: delattr(m.norm, "kept"), ("state", "self.norm.kept", "[1, 2]", "not there")),
    ("item", lambda m: m.norm.kept.append(3), ("length", "len(self.norm.kept)", "2", "3")),
    ("entry", lambda m: m.table.update(b=2), ("state", "self.table['b']", "not there", "2")),
    ("class", lambda m: setattr(m.norm, "__class__", Other), ("class", "type(self.norm)", "Norm", "Other")),
    (
        "parameter",
        lambda m: setattr(m.gate, "weight", torch.nn.Parameter(rand(16, 16))),
        ("state", "self.gate.weight", "float32[16, 16]", "another float32[16, 16]"),
    ),
    ("module", lambda m: setattr(m, "norm", Norm().eval()), ("state", "self.norm", "a Norm", "another Norm")),
]


@pytest.mark.parametrize(("change", "wanted"), [row[1:] for row in STATE], ids=[row[0] for row in STATE])
def test_state_that_changed_is_named(
    change: Callable[[Any], Any], wanted: tuple[str, ...], quick: fusion.FusionConfig
) -> None:
    block = Block()
    block.norm.kept, block.table = [1, 2], {"a": 1}  # type: ignore[assignment]
    model = fusion.enable(block.eval(), quick)
    for _ in range(3):
        no_grad(model, rand(3, 16))
    assert not misses(model)
    change(model)
    no_grad(model, rand(3, 16))
    row = misses(model)[wanted[1]]
    assert (row.guard, row.where, row.wanted, row.got, row.times) == (*wanted, 1)
    assert row.origin.startswith("support/pair.py:")


FACTOR = 2.0


@pytest.mark.usefixtures("without_gradients")
def test_a_global_and_a_closure_that_changed_are_named(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = 1.0

    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * FACTOR + shift

    fused = fusion.fuse(call, quick)
    for _ in range(3):
        fused(rand(3, 8))
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    fused(rand(3, 8))
    shift = 4.0
    torch.testing.assert_close(fused(rand(3, 8)), call(rand(3, 8)))
    found = {where.rpartition(".")[2]: (row.wanted, row.got) for where, row in misses(fused).items()}
    assert found == {"FACTOR": ("2.0", "3.0"), "shift": ("1.0", "4.0")}


# ---- what is shown


class Raises:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Long(int):
    def __repr__(self) -> str:
        return "9" * 10_000_000


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no")


class Nameless(metaclass=Meta):
    pass


HOSTILE = [
    Raises(), Long(3), "x" * 10_000_000, b"y" * 10_000_000, "\x1b[2J\x00\n\u202e\ud800", [Raises()] * 1000, 10**5000,
    {"k" * 1_000_000: Raises()}, Nameless(), type("a\x1b[2J", (), {}), float("nan"), {1, 2}, torch.float16, Norm(),
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_values_are_shown_short_and_printable(value: Any) -> None:
    start = time.process_time()
    text = shorten(value)
    assert time.process_time() - start < 1 and 0 < len(text) <= 80 and text.isprintable()
    assert json.loads(json.dumps(text)) == text and text.encode()


@pytest.mark.parametrize("value", [Long(4), "x" * 10_000_000, "\x1b[2J\x00\ud800", Raises(), 10**5000], ids=range(5))
def test_a_hostile_argument_does_no_harm_to_the_report(value: Any, quick: fusion.FusionConfig) -> None:
    model = recorded(quick)
    no_grad(model, **inputs(), mode=value)
    row = misses(model)["mode"]
    assert row.wanted == "'plain'" and len(row.got) <= 80 and row.got.isprintable()
    text = str(fusion.report(model))
    assert "\x1b" not in text and "Guards that did not hold:" in text and len(text) < 10_000


@pytest.mark.usefixtures("without_gradients")
def test_hostile_keys_do_no_harm_to_the_report(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
        return torch.tanh(x) * 2 + len(options)

    fused = fusion.fuse(call, quick)
    for keys in (("a",), ("a",), ("\x1b[2J" * 100_000,)):
        fused(rand(3, 8), dict.fromkeys(keys, 1))
    row = misses(fused)["list(options)"]
    assert row.wanted == "('a',)" and row.got.startswith("not 'a', also '\\x1b[2J") and len(row.got) <= 80


def test_nothing_of_a_call_is_kept(quick: fusion.FusionConfig) -> None:
    model = recorded(quick)
    no_grad(model, **{**inputs(), "x": rand(4, 8).double()})
    (scope,) = scopes(model).values()
    for row in scope.statistics.guards.rows:
        assert type(row.last) is GuardMiss
        assert all(type(getattr(row.last, f.name)) is str for f in dataclasses.fields(row.last))


@pytest.mark.slow
def test_a_scope_keeps_few_guards_and_counts_the_rest(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(Layer().eval(), quick.model_copy(update={"max_plans": 40}))
    for count in range(1, 41):
        no_grad(model, **inputs(), count=count)
    (scope,) = fusion.report(model).scopes
    assert len(scope.guards) == 32 and scope.other_guards > 0
    assert sum(row.times for row in scope.guards) + scope.other_guards == sum(range(1, 40))
    assert "Others:" in str(fusion.report(model))


# ---- the report's values


def test_reports_from_before_guards_were_told_are_read() -> None:
    report = FusionReport((ScopeReport("f", "fused", "", 1, 1, 0, 1, 0, 0, ()),), Totals())
    old = json.loads(report.to_json())
    for scope in old["scopes"]:
        del scope["guards"], scope["other_guards"]
    assert FusionReport.from_json(json.dumps(old)) == report


def test_equal_scopes_count_their_guards_together() -> None:
    def scope(number: int) -> ScopeReport:
        row = GuardReport("dtype", "x.dtype", "float32", "float64", number + 1, "model.py:3")
        return ScopeReport(f"layers.{number}", "fused", "", 1, 1, 0, 1, 1, 0, (), guards=(row,), other_guards=1)

    (merged,) = FusionReport(tuple(map(scope, range(3))), Totals()).grouped().scopes
    assert [(row.where, row.times) for row in merged.guards] == [("x.dtype", 6)] and merged.other_guards == 3
