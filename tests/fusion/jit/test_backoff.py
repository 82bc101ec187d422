"""Calls that no plan takes are looked at less and less."""

from fusion.jit.backoff import _LOOKS_UP, _RESTS_AFTER, Backoff


def test_calls_rest_only_after_some_that_no_plan_took() -> None:
    backoff = Backoff()
    assert not any(backoff.rests("a") for _ in range(100))
    backoff.begin("a")
    rests = [backoff.rests("a") for _ in range(4 * _LOOKS_UP)]
    assert not any(rests[:_RESTS_AFTER]) and all(rests[_RESTS_AFTER : _LOOKS_UP - 1])
    assert rests.count(False) == _RESTS_AFTER + 4


def test_beginning_again_does_not_start_over() -> None:
    backoff = Backoff()
    for _ in range(_RESTS_AFTER + 1):
        backoff.begin("a")
        backoff.rests("a")
    backoff.begin("a")
    assert backoff.rests("a")


def test_kinds_count_apart_and_end() -> None:
    backoff = Backoff()
    for kind in "ab":
        backoff.begin(kind)
        for _ in range(_RESTS_AFTER):
            backoff.rests(kind)
    backoff.end("a")
    assert not backoff.rests("a") and backoff.rests("b")
    backoff.forget()
    assert not backoff.rests("b")
