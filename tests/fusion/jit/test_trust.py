"""At which sizes a recording's plans are trusted, and how failures are counted."""

from __future__ import annotations

from dataclasses import replace

from good_recording import GOOD

from fusion.jit.trust import _FORGIVEN_AFTER, CheckedSizes, FailureCount

RECORDED = {"s0": 3, "s1": 5}  # of which an opaque call tells s1


def test_nothing_is_trusted_before_it_was_checked() -> None:
    sizes = CheckedSizes(GOOD, RECORDED)
    assert not sizes.any and not sizes.generalized and sizes.symbols == ["s0"]
    sizes.prove(RECORDED)
    assert sizes.any and sizes.proved == {(3,)} and not sizes.generalized


def test_agreement_at_the_recorded_sizes_says_nothing_of_others() -> None:
    sizes = CheckedSizes(GOOD, RECORDED)
    sizes.compare(RECORDED)
    sizes.compare({"s0": 3})
    assert not sizes.generalized
    sizes.compare({"s0": 3, "s1": 6})
    assert sizes.generalized and sizes.any


def test_a_recording_without_sizes_holds_for_all() -> None:
    assert CheckedSizes(replace(GOOD, symbols=()), {}).generalized


def test_sizes_that_only_an_opaque_call_tells_are_unbacked_until_a_guard_gives_them() -> None:
    assert CheckedSizes(GOOD, RECORDED).unbacked == {"s1"}
    assert CheckedSizes(replace(GOOD, guards=("s1 == s0 + 2",)), RECORDED).unbacked == set()


def test_failures_add_up_and_are_forgiven_after_many_planned_calls() -> None:
    failures = FailureCount()
    for planned in (10, 20, 20 + _FORGIVEN_AFTER):
        failures.add(planned)
    assert failures.count == 3
    failures.add(20 + 2 * _FORGIVEN_AFTER + 1)
    assert failures.count == 1
