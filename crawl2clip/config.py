"""From the command line to typed settings: Hydra composes, a dataclass checks, a command runs.

`command` is the whole of a `__main__`: it composes `configs/<name>.yaml`, turns the result into the
command's dataclass, sets up logging and calls one function. Errors of the user's come out as one
`error:` line and exit status 2. Past this file nobody sees a DictConfig.
"""

import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from crawl2clip.errors import ConfigError, Crawl2ClipError, unknown_name
from crawl2clip.logs import setup_logging

CONFIG_DIR = Path(__file__).resolve().parents[1] / "configs"
"""The checkout's configs/; the three commands run from the checkout, the wheel holds the core only."""

_MISSING_VALUE = re.compile(r"Missing mandatory value: ([\w.]+)")

T = TypeVar("T")
logger = logging.getLogger(__name__)


def register(name: str, node: type, group: str | None = None) -> None:
    """Makes a dataclass the schema `name` that a root YAML lists first in its `defaults`."""
    ConfigStore.instance().store(name=name, node=node, group=group)


def typed(config: DictConfig, cls: type[T]) -> T:
    """The composed config as an object of its dataclass, interpolations resolved, checks run.

    Raises:
        ConfigError: a required setting has no value, one that is taken from another does not fit, or a
            dataclass's own check refused a value.
    """
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        value = None if missing else OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        reason = str(error.msg or error).splitlines()[0]
        if (
            needed := _MISSING_VALUE.search(reason)
        ) is not None:  # a setting that is taken from it was looked at first
            raise ConfigError(_without_value(needed[1])) from error
        raise ConfigError(
            f"setting {error.full_key} cannot be used: {reason}; correct it, or the setting it is taken from"
        ) from error
    if missing:
        raise ConfigError(
            f"settings without a value: {', '.join(missing)}; give each on the command line, "
            f"for example {missing[0]}=..."
        )
    if not isinstance(value, cls):
        raise TypeError(f"composed config is a {type(value).__name__}, expected {cls.__name__}")
    return value


def command(config_name: str, schema: type[T], run: Callable[[T, DictConfig], int | None]) -> None:
    """Runs a command: compose, check, log, run; exits with the status `run` returns (None is 0).

    Args:
        config_name: the root YAML in configs/, whose defaults start with `<config_name>_schema`.
        schema: the root dataclass.
        run: the command; gets the typed settings and the composed config, the latter to be saved, not read.
    """
    # Offline unless the user says otherwise: a training job must not depend on a hub or a tracker being up.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises, and the message below is ours
    register(f"{config_name}_schema", schema)
    setup_logging(
        rank=int(os.environ.get("RANK", "0") or 0), world_size=int(os.environ.get("WORLD_SIZE", "1") or 1)
    )

    @hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)
    def main(config: DictConfig) -> None:
        sys.exit(run(typed(config, schema), config) or 0)

    try:
        _check_choices(sys.argv[1:])
        main()
    except Crawl2ClipError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error))


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _check_choices(words: list[str]) -> None:
    """Refuses true and false where a file of configs/ is to be chosen; Hydra answers with a traceback.

    Raises:
        ConfigError: naming the files.
    """
    for word in words:
        name, _, value = word.partition("=")
        group = CONFIG_DIR / name.lstrip("+")
        if name and value.lower() in ("true", "false") and group.is_dir():
            known = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
            raise ConfigError(
                f"{word}: {name} takes the name of a file in configs/{name}; give one of {known}, or null"
            )


def explain(error: Exception) -> str:
    """One readable sentence for an error of Hydra's or OmegaConf's, with the names that would have worked."""
    cause: Any = error.__cause__ if error.__cause__ is not None else error
    parent = getattr(cause, "parent_node", None)
    key = getattr(cause, "key", None)
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and isinstance(parent, DictConfig):
        known = [str(name) for name in parent]
        where = getattr(cause, "full_key", None) or str(key)
        return unknown_name("setting", str(where).rpartition(".")[2], known, do=f"Asked for as {where}.")
    missing = _MISSING_VALUE.search(str(error))
    if missing:  # met while Hydra looks for the folder of the run, before `typed` could name all of them
        return _without_value(missing[1])
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if cause is not error:
        lines += [line.strip() for line in str(cause).splitlines()[:1] if line.strip()]
    return " ".join(dict.fromkeys(lines))


def _without_value(name: str) -> str:
    return f"setting without a value: {name}; give it on the command line, for example {name}=..."


def save_config(config: DictConfig, folder: Path) -> None:
    """Writes the composed, resolved config to `<folder>/config.yaml`, so that a run can be read and repeated."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")


__all__ = ["CONFIG_DIR", "ConfigError", "command", "explain", "register", "save_config", "typed"]
