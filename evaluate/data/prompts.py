"""Class names and prompt templates: from files, from the data set's folder, or from CLIP_benchmark by name.

A data set without templates of its own is an error: giving it ImageNet's 80 in silence changes the score by
points and nobody sees why. Lists shipped by CLIP_benchmark are read from its package, not copied here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json
from evaluate.results import hash_of

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"

Templates = list[str] | dict[str, list[str]]
"""Templates with a `{c}` for the class name, or whole prompts for each class name (Pratt et al. 2022)."""


@dataclass(frozen=True)
class Prompts:
    """What stands for each class in text."""

    class_names: list[str]
    templates: Templates

    def per_class(self) -> list[list[str]]:
        """The filled prompts of each class, in class order."""
        if isinstance(self.templates, dict):
            return [self.templates[name] for name in self.class_names]
        return [[fill(template, name) for template in self.templates] for name in self.class_names]

    @property
    def sha256(self) -> str:
        """Over all prompts, in order."""
        return hash_of(self.per_class())


def fill(template: str, class_name: str) -> str:
    """A template with the class name in it; any other braces stay as they are."""
    return template.replace("{c}", class_name)


def make_prompts(class_names: list[str], templates: Templates, where: str) -> Prompts:
    """Checks that names and templates fit.

    Raises:
        DataError: an empty list, an empty name, a template without `{c}`, or a class without prompts.
    """
    empty = [index for index, name in enumerate(class_names) if not name.strip()]
    if not class_names or empty:
        at = f"an empty class name at class {empty[0]}" if empty else "no class names"
        raise DataError(f"{where}: {at}; give one name a line, in the order of the labels")
    if not templates:
        raise DataError(
            f"{where}: no prompt templates; give one a line, with {{c}} where the class name goes"
        )
    if isinstance(templates, dict):
        without = [name for name in class_names if not templates.get(name)]
        if without:
            raise DataError(
                f"{where}: {len(without)} of {len(class_names)} classes have no prompts, the first is {without[0]!r}; "
                "give each class name a list of prompts"
            )
        return Prompts(class_names, templates)
    bad = [template for template in templates if "{c}" not in template]
    if bad:
        raise DataError(
            f"{where}: the template {bad[0]!r} has no {{c}} for the class name; every template needs one"
        )
    return Prompts(class_names, templates)


def read_class_names(path: Path) -> list[str]:
    """Class names in label order: one a line, or a JSON list.

    Raises:
        DataError: the file is missing or of another form.
    """
    if path.suffix == ".json":
        value = read_json(path)
        if not _is_list_of_text(value):
            raise DataError(f'{path} is no JSON list of class names; give ["cat", "dog", ...] in label order')
        return value
    return _read_lines(path)


def read_templates(path: Path) -> Templates:
    """Templates: one a line, a JSON list, or a JSON object of class name -> list of prompts.

    Raises:
        DataError: the file is missing or of another form.
    """
    if path.suffix != ".json":
        return _read_lines(path)
    value = read_json(path)
    if _is_list_of_text(value) or (
        isinstance(value, dict) and all(_is_list_of_text(v) for v in value.values())
    ):
        return value
    raise DataError(
        f"{path} is neither a JSON list of templates nor an object of class name -> list of prompts"
    )


def known_class_names(name: str, language: str) -> list[str] | None:
    """CLIP_benchmark's class names for a data set, or None when it has none ("vtab/x" also looks up "x")."""
    return _look_up(_benchmark_file(language, "classnames"), name)


def known_templates(name: str, language: str) -> Templates:
    """CLIP_benchmark's templates for a data set ("vtab/x" also looks up "x").

    Raises:
        ConfigError: it has none for this name.
    """
    table = _benchmark_file(language, "zeroshot_classification_templates")
    found = _look_up(table, name)
    if found is None:
        do = (
            f"No templates are assumed: set prompts=<one of these names>, templates_file=<file>, or put "
            f"{TEMPLATES_FILE} into the data set's folder."
        )
        raise ConfigError(unknown_name(f"data set with {language} prompt templates", name, table, do=do))
    return found


def _look_up(table: dict[str, Any], name: str) -> Any:
    short = name.partition("/")[2]
    return table.get(name, table.get(short) if short else None)


def _benchmark_file(language: str, what: str) -> dict[str, Any]:
    import importlib.util

    spec = importlib.util.find_spec("clip_benchmark")  # its import would load every data set library
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "class names and templates come from the clip_benchmark package; pip install clip-benchmark"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets"
    path = folder / f"{language}_{what}.json"
    if not path.is_file():
        languages = [file.name.split("_")[0] for file in folder.glob(f"*_{what}.json")]
        raise ConfigError(
            unknown_name("language of prompts", language, languages, do="Or give the prompts by file.")
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _read_lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; check the path, one entry a line is expected") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
