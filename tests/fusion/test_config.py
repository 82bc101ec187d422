"""FusionConfig: where values come from, and what a mistake says."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from fusion.config import FusionConfig, variable
from fusion.patterns.errors import ConfigError, FusionError


def test_defaults() -> None:
    config = FusionConfig()
    assert config.enable_fusion and config.enable_cache and config.fallback_on_error and config.verify
    assert (config.backend, config.numerics, config.fusion_ratio, config.min_nodes) == ("auto", "eager", 0.8, 1)
    assert config.cache_dir is None and config.max_fusions is None and not config.debug_mode


def test_every_field_is_described() -> None:
    assert [name for name, info in FusionConfig.model_fields.items() if not info.description] == []


def test_immutable_hashable_and_copyable() -> None:
    config = FusionConfig(min_nodes=3)
    with pytest.raises(ConfigError, match=r"config\.replace\(min_nodes=4\)"):
        config.min_nodes = 4  # type: ignore[misc]
    assert config.min_nodes == 3
    assert hash(config) == hash(FusionConfig(min_nodes=3))
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    changed = config.replace(verify=False)
    assert (changed.min_nodes, changed.verify, config.verify) == (3, False, True)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"bakend": "cpp"}, ["bakend", "'cpp'", "Did you mean backend?"]),
        ({"backend": "tritn"}, ["backend", "'tritn'", "Nearest valid choice: 'triton'"]),
        ({"numerics": "fp16"}, ["numerics", "'fp16'", "Nearest valid choice: 'fp32'"]),
        ({"fusion_ratio": 1.5}, ["fusion_ratio=1.5", "at most 1", "Nearest valid choice: 1"]),
        ({"fusion_ratio": 0}, ["fusion_ratio=0", "above 0", "Nearest valid choice: 0.8"]),
        ({"fusion_ratio": float("nan")}, ["fusion_ratio=nan", "Nearest valid choice: 0.8"]),
        ({"min_nodes": 0}, ["min_nodes=0", "at least 1", "Nearest valid choice: 1"]),
        ({"min_nodes": "2"}, ["min_nodes='2'", "whole number", "Nearest valid choice: 2"]),
        ({"min_nodes": 2.5}, ["min_nodes=2.5", "whole number"]),
        ({"max_fusions": -1}, ["max_fusions=-1", "or None", "Nearest valid choice: 0"]),
        ({"verify": "nope"}, ["verify='nope'", "True or False", "Nearest valid choice: False"]),
        ({"cache_dir": 5}, ["cache_dir=5", "a path or None"]),
        ({"cache_dir": ""}, ["cache_dir=''", "a path or None"]),
        ({"cache_dir": "a\0b"}, ["cache_dir=", "a path or None"]),
        ({"cache_dir": "~nobody-has-this-name/c"}, ["cache_dir=", "a path or None"]),
    ],
)
def test_a_mistake_names_field_value_origin_and_nearest_choice(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        FusionConfig(**values)
    assert all(word in str(caught.value) for word in [*words, "keyword argument"]), str(caught.value)
    assert isinstance(caught.value, FusionError)
    with pytest.raises(ConfigError, match="dict"):
        FusionConfig.from_dict(values)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", json.dumps({"min_nodes": 5, "backend": "cpp", "cache_dir": "/c"})),
        ("c.toml", 'min_nodes = 5\nbackend = "cpp"\ncache_dir = "/c"\n'),
    ],
)
def test_from_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    expected = FusionConfig(min_nodes=5, backend="cpp", cache_dir=Path("/c"))
    assert FusionConfig.from_file(tmp_path / name) == expected
    assert FusionConfig.resolve(str(tmp_path / name), {}) == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "", [".json or a .toml"]),
        ("c.json", "{", ["malformed"]),
        ("c.toml", "= 3", ["malformed"]),
        ("c.json", "[1]", ["top level"]),
        ("c.json", '{"verfy": true}', ["verfy", "Did you mean verify?", "file"]),
        ("c.toml", "fusion_ratio = 2", ["fusion_ratio=2", "file"]),
        ("missing.json", None, ["cannot be read", "Check the path"]),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str | None, words: list[str]) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        FusionConfig.from_file(path)
    assert all(word in str(caught.value) for word in [*words, name]), str(caught.value)


@pytest.mark.parametrize(("word", "value"), [("1", True), ("YES", True), ("on", True), ("0", False), ("False", False)])
def test_booleans_of_the_environment(word: str, value: bool) -> None:
    assert FusionConfig.from_env({"FUSION_PROFILE": word}).profile is value


def test_environment_covers_every_type_and_ignores_others() -> None:
    environ = {
        "FUSION_MIN_NODES": " 3 ",
        "FUSION_FUSION_RATIO": ".5",
        "FUSION_CACHE_DIR": "~/c",
        "FUSION_MAX_FUSIONS": "0",
        "FUSION_NUMERICS": "fp32",
        "FUSION_BACKEND": "",
        "PATH": "/bin",
    }
    config = FusionConfig.from_env(environ, FusionConfig(min_nodes=9, verify=False))
    assert (config.min_nodes, config.fusion_ratio, config.max_fusions, config.numerics) == (3, 0.5, 0, "fp32")
    assert config.cache_dir == Path("~/c").expanduser()
    assert config.backend == "auto" and config.verify is False
    assert FusionConfig.from_env({"FUSION_MAX_FUSIONS": "none"}).max_fusions is None


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("FUSION_RATIO", "1", ["Did you mean FUSION_FUSION_RATIO?"]),
        ("FUSION_VERIFY", "ture", ["'ture'", "environment variable FUSION_VERIFY", "Nearest valid choice: True"]),
        ("FUSION_MIN_NODES", "two", ["'two'", "environment variable FUSION_MIN_NODES"]),
        ("FUSION_BACKEND", "cuda", ["'cuda'", "environment variable FUSION_BACKEND"]),
    ],
)
def test_a_bad_variable_is_named(key: str, text: str, words: list[str]) -> None:
    for read in (FusionConfig.from_env, lambda environ: FusionConfig.resolve(None, environ)):
        with pytest.raises(ConfigError) as caught:
            read({key: text})
        assert all(word in str(caught.value) for word in [key, *words]), str(caught.value)


def test_resolve_puts_the_environment_below_explicit_values() -> None:
    environ = {variable("min_nodes"): "3", variable("verify"): "0"}
    for explicit in (FusionConfig(min_nodes=2), {"min_nodes": 2}):
        config = FusionConfig.resolve(explicit, environ)
        assert (config.min_nodes, config.verify) == (2, False)
    assert FusionConfig.resolve(None, environ) == FusionConfig(min_nodes=3, verify=False)
    assert FusionConfig.resolve(None, {}) == FusionConfig()
    with pytest.raises(ConfigError, match=r"min_nodes=0 \(dict\)"):
        FusionConfig.resolve({"min_nodes": 0}, environ)
    with pytest.raises(ConfigError, match="of type int"):
        FusionConfig.resolve(5, {})  # type: ignore[arg-type]


def test_this_processes_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSION_MIN_NODES", "6")
    assert FusionConfig.from_env().min_nodes == FusionConfig.resolve().min_nodes == 6
    assert FusionConfig().min_nodes == 1
