"""Every knob of the pass, in one frozen value."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .kernels.backend import backends
from .patterns.errors import ConfigError

ENVIRONMENT_PREFIX = "FUSION_"

TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off")

Source = Callable[[str], str]  # field name -> where its value came from, for messages


class FusionConfig(BaseModel):
    """How the pass records, decides and compiles. Immutable, hashable, comparable.

    A value comes from a keyword, a dict, a JSON or TOML file, or the environment: the field `cache_dir` is
    `FUSION_CACHE_DIR`, and so on for every field.

    Raises:
        ConfigError: an unknown field or a bad value, with its origin and the nearest valid choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=False)

    enable_fusion: bool = Field(True, description="False leaves every forward as it is.")
    backend: str = Field(
        "auto", description="Who compiles kernels. `auto` takes what the machine has; a name that cannot be met raises."
    )
    numerics: Literal["eager", "fp32"] = Field(
        "eager", description="`eager` rounds every intermediate where eager does; `fp32` keeps intermediates in fp32."
    )
    matrix_products: Literal["auto", "library"] = Field(
        "auto", description="`auto` lets kernels compete with torch's matrix products; `library` leaves those to torch."
    )
    product_seconds: float = Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="Estimated seconds that torch may spend in matrix products of equal layers that take under 0.2 ms "
        "a call, before their kernels are compiled, on the side; 0 compiles them at once.",
    )
    fusion_ratio: float = Field(
        0.8,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description=(
            "A kernel must take at most this share of eager's time; of a millisecond and more, half way from it to 1."
        ),
    )
    min_nodes: int = Field(1, ge=1, description="Operators a region must have to become a kernel.")
    max_graph_size: int = Field(
        4096, ge=1, description="Operators a recording may hold; above it the scope stays eager."
    )
    min_tensor_elements: int = Field(1, ge=0, description="Regions over fewer elements stay eager.")
    enable_cache: bool = Field(True, description="Keep kernels and decisions on disk between processes.")
    cache_dir: Path | None = Field(None, strict=False, description="Where; None is the platform's cache folder.")
    fallback_on_error: bool = Field(True, description="Run eagerly when a kernel fails; False raises instead.")
    verify: bool = Field(
        True,
        description="Try each CPU kernel once on made data, first in a process of its own; "
        "check each kernel against the fp64 rule before its first use.",
    )
    profile: bool = Field(
        True, description="Measure kernels and plans before deciding; False fuses every legal region."
    )
    max_fusions: int | None = Field(
        None, ge=0, description="At most this many kernels per scope, to bisect a wrong result; 0 is the unfused plan."
    )
    max_plans: int = Field(16, ge=1, description="Plans kept per scope; further structures run eagerly.")
    compile: Literal["blocking", "background"] = Field(
        "blocking",
        description="`blocking` lets a call wait for compilers; `background` runs calls eagerly while they work.",
    )
    debug_mode: bool = Field(False, description="Write every stage's value to the logger `fusion`.")

    if not TYPE_CHECKING:  # type checkers keep the typed keywords that pydantic declares

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _explain(error, lambda field: "keyword argument") from None

        def __setattr__(self, name: str, value: Any) -> None:
            raise ConfigError(
                f"{name}={value!r} was assigned to a FusionConfig, which is immutable.",
                remedy=f"Make another one: config.replace({name}={value!r}).",
            )

    @field_validator("backend")
    @classmethod
    def _registered(cls, value: str) -> str:
        if value not in _choices("backend"):
            raise ValueError("the name of a backend is expected")
        return value

    @field_validator("cache_dir", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("a path is expected, not an empty string")
        if not isinstance(value, (str, Path)):
            return value
        if "\0" in str(value):
            raise ValueError("a path is expected, and none has a NUL in it")
        try:
            return Path(value).expanduser()
        except RuntimeError as error:  # a user that is not known
            raise ValueError(f"a path is expected: {error}") from error

    def replace(self, **changes: Any) -> FusionConfig:
        """This config with some fields changed.

        Raises:
            ConfigError: an unknown field or a bad value.
        """
        return type(self)._build({**_explicit(self), **changes}, lambda field: "keyword argument")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FusionConfig:
        """A config from field values by name.

        Raises:
            ConfigError: an unknown field or a bad value.
        """
        return cls._build(values, lambda field: "dict")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> FusionConfig:
        """A config from a .json or .toml file whose top level holds fields.

        Raises:
            ConfigError: no such file, another suffix, malformed text, an unknown field or a bad value.
        """
        return cls._build(_read(Path(path)), lambda field: f"file {path}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, base: FusionConfig | None = None) -> FusionConfig:
        """A config from FUSION_* variables, on top of what `base` sets. An empty variable counts as not set.

        Args:
            environ: the variables; None is this process's environment.
            base: a config whose values hold where no variable is set.

        Raises:
            ConfigError: an unknown variable that starts with FUSION_, or a bad value.
        """
        values = _from_environment(os.environ if environ is None else environ)
        explicit = _explicit(base) if base is not None else {}
        return cls._build({**explicit, **values}, _environment_source(values, "base config"))

    @classmethod
    def resolve(
        cls,
        config: FusionConfig | Mapping[str, Any] | str | os.PathLike[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> FusionConfig:
        """The config to run with: explicit values of `config`, below them the environment, below that the defaults.

        Args:
            config: a config, field values by name, the path of a .json or .toml file, or None.
            environ: the variables; None is this process's environment.

        Raises:
            ConfigError: an unknown field, a bad value, or a `config` of another type.
        """
        below = _from_environment(os.environ if environ is None else environ)
        if config is None:
            explicit, origin = {}, ""
        elif isinstance(config, FusionConfig):
            explicit, origin = _explicit(config), "FusionConfig"
        elif isinstance(config, Mapping):
            explicit, origin = dict(config), "dict"
        elif isinstance(config, (str, os.PathLike)):
            explicit, origin = _read(Path(config)), f"file {config}"
        else:
            raise ConfigError(
                f"config is {config!r} of type {type(config).__name__}.",
                remedy="Pass a FusionConfig, a dict of its fields, the path of a .json or .toml file, or None.",
            )
        below = {name: value for name, value in below.items() if name not in explicit}
        return cls._build({**below, **explicit}, _environment_source(below, origin))

    @classmethod
    def _build(cls, values: Mapping[Any, Any], source: Source) -> FusionConfig:
        config = cls.__new__(cls)
        try:
            cls.__pydantic_validator__.validate_python(
                {str(name): value for name, value in values.items()}, self_instance=config
            )
        except ValidationError as error:
            raise _explain(error, source) from None
        return config


def _choices(field: str) -> list[str]:
    """The words that a field takes; none for a field that takes anything else."""
    if field == "backend":
        return ["auto", *(backend.name for backend in backends()), "eager"]
    kinds = get_args(FusionConfig.model_fields[field].annotation)
    return list(kinds) if all(isinstance(kind, str) for kind in kinds) else []


def variable(field: str) -> str:
    """The environment variable of a field: "cache_dir" -> "FUSION_CACHE_DIR"."""
    return ENVIRONMENT_PREFIX + field.upper()


def _explicit(config: FusionConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.model_fields_set}


def _environment_source(from_environment: Mapping[str, Any], otherwise: str) -> Source:
    return lambda field: f"environment variable {variable(field)}" if field in from_environment else otherwise


def _read(path: Path) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".toml"):
        raise ConfigError(
            f"The config file {path} ends in {suffix or 'nothing'!r}.", remedy="Use a .json or a .toml file."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"The config file {path} cannot be read: {reason}.", remedy="Check the path.") from error
    try:
        values = json.loads(text) if suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"The config file {path} is malformed: {error}.", remedy="Correct the file.") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"The config file {path} holds a {type(values).__name__}.", remedy="Its top level must hold fields by name."
        )
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key in sorted(environ):
        if not key.startswith(ENVIRONMENT_PREFIX) or not environ[key].strip():
            continue
        field = key.removeprefix(ENVIRONMENT_PREFIX).lower()
        if field not in FusionConfig.model_fields:
            raise _unknown(key, environ[key], "environment", [variable(name) for name in FusionConfig.model_fields])
        values[field] = _typed(field, environ[key].strip())
    return values


def _typed(field: str, text: str) -> Any:
    """A variable's text as the field's type; text that cannot be it is left for the model to refuse."""
    kinds = get_args(FusionConfig.model_fields[field].annotation) or (FusionConfig.model_fields[field].annotation,)
    if type(None) in kinds and text.lower() == "none":
        return None
    if bool in kinds:
        return True if text.lower() in TRUE_WORDS else False if text.lower() in FALSE_WORDS else text
    for kind in (int, float):
        if kind in kinds:
            try:
                return kind(text)
            except ValueError:
                return text
    return text


def _unknown(key: str, given: Any, source: str, choices: list[str]) -> ConfigError:
    near = _nearest(key, choices)
    hint = f"Did you mean {near}?" if near else "No name is close to it."
    return ConfigError(
        f"{key}={given!r} ({source}) is no setting of FusionConfig.", remedy=f"{hint} There are: {', '.join(choices)}."
    )


def _nearest(given: str, choices: list[str]) -> str | None:
    close = difflib.get_close_matches(given.lower(), [c.lower() for c in choices], n=1, cutoff=0.5)
    return next((c for c in choices if close and c.lower() == close[0]), None)


def _explain(error: ValidationError, source: Source) -> ConfigError:
    """The first of pydantic's complaints in this project's words."""
    complaint = error.errors(include_url=False)[0]
    field, given = str(complaint["loc"][0]), complaint["input"]
    if complaint["type"] == "extra_forbidden":
        return _unknown(field, given, source(field), list(FusionConfig.model_fields))
    expected, nearest = _expectation(field, given, complaint)
    return ConfigError(
        f"{field}={given!r} ({source(field)}) is not valid: {expected}.", remedy=f"Nearest valid choice: {nearest}."
    )


def _expectation(field: str, given: Any, complaint: Mapping[str, Any]) -> tuple[str, str]:
    """What a field accepts, and the accepted value nearest to the given one."""
    info = FusionConfig.model_fields[field]
    kinds = get_args(info.annotation) or (info.annotation,)
    bounds = {
        key: value
        for part in info.metadata
        for key in ("gt", "ge", "le")
        if (value := getattr(part, key, None)) is not None
    }
    if words := _choices(field):
        near = _nearest(str(given), words) or str(info.default)
        return "one of " + ", ".join(map(repr, words)) + " is expected", repr(near)
    if bool in kinds:
        return "True or False is expected (in the environment also 1/0, yes/no, on/off)", repr(_near_bool(given))
    if Path in kinds:
        return "a path or None is expected", repr(info.default)
    kind = "a whole number" if int in kinds else "a number"
    relations = {"gt": "above", "ge": "at least", "le": "at most"}
    limits = " and ".join(f"{relations[key]} {value}" for key, value in bounds.items())
    none = " or None" if type(None) in kinds else ""
    return f"{kind} {limits}{none} is expected".replace("  ", " "), repr(_near_number(given, bounds, info.default))


def _near_bool(given: Any) -> bool:
    word = _nearest(str(given), [*TRUE_WORDS, *FALSE_WORDS])
    return word not in FALSE_WORDS if word else bool(given)


def _near_number(given: Any, bounds: Mapping[str, Any], default: Any) -> Any:
    try:
        number = float(given)
    except (TypeError, ValueError):
        return default
    if "ge" in bounds and number < bounds["ge"]:
        return bounds["ge"]
    if "le" in bounds and number > bounds["le"]:
        return bounds["le"]
    return round(number) if "ge" in bounds and number.is_integer() else default
