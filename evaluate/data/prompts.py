"""Class names and prompt templates: from files, from the data set's folder, or from a package by name.

A data set without templates of its own is an error: giving it ImageNet's 80 in silence changes the score by
points and nobody sees why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json
from evaluate.data.package_prompts import (
    BABEL,
    CUPL,
    OPEN_CLIP,
    babel_prompts,
    benchmark_table,
    cupl_table,
    open_clip_class_names,
    open_clip_templates,
)
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


def read_class_names(path: Path, names: Sequence[str] = ()) -> list[str] | dict[str, str]:
    """Class names in label order: one a line, a JSON list, or either kind of JSON object.

    Args:
        path: .txt or .json.
        names: of the data set; an object that has one of them as a key is CLIP_benchmark's form, data set -> list.

    Returns:
        The names; or, from an object of text -> text, class folder -> name, for folders of images.

    Raises:
        DataError: the file is missing or of another form.
    """
    if path.suffix != ".json":
        return _read_lines(path)
    value = _of_data_set(read_json(path), names)
    if _is_list_of_text(value):
        return value
    if isinstance(value, dict) and value and all(isinstance(entry, str) for entry in value.values()):
        return value
    raise DataError(
        f'{path} is no JSON list of class names; give ["cat", "dog", ...] in label order, or an object of data set -> '
        "list, or of class folder -> name"
    )


def read_templates(path: Path, names: Sequence[str] = ()) -> Templates:
    """Templates: one a line, a JSON list, or a JSON object of class name -> list of prompts.

    Args:
        path: .txt or .json.
        names: of the data set; an object that has one of them as a key is CLIP_benchmark's form, data set -> templates.

    Raises:
        DataError: the file is missing or of another form.
    """
    if path.suffix != ".json":
        return _read_lines(path)
    value = _of_data_set(read_json(path), names)
    if _is_list_of_text(value) or (
        isinstance(value, dict) and all(_is_list_of_text(v) for v in value.values())
    ):
        return value
    raise DataError(
        f"{path} is neither a JSON list of templates nor an object of class name -> list of prompts (nor of data set "
        f"-> one of these, with an entry for {' or '.join(names) or 'this data set'})"
    )


def _of_data_set(value: Any, names: Sequence[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return next((value[name] for name in names if name in value), value)


def known_class_names(name: str, language: str) -> list[str] | None:
    """Class names that a package has for a data set, or None when there are none.

    Args:
        name: of CLIP_benchmark ("vtab/x" also looks up "x"), "cupl/<one of these>", "open_clip/imagenet" or
            "babel_imagenet".
        language: of CLIP_benchmark's or Babel-ImageNet's list.

    Raises:
        ConfigError: no such language.
    """
    if name.startswith(OPEN_CLIP):
        return open_clip_class_names()
    if name == BABEL:
        return babel_prompts(language).class_names
    return _look_up(benchmark_table(language, "classnames"), name.removeprefix(CUPL))


def known_templates(name: str, language: str) -> Templates:
    """Templates that a package has for a data set; names as in `known_class_names`.

    Raises:
        ConfigError: there are none for this name, or no such language.
    """
    if name == BABEL:
        return list(babel_prompts(language).templates)
    if name.startswith(CUPL):
        table, key = cupl_table(), name.removeprefix(CUPL)
    elif name.startswith(OPEN_CLIP):
        table, key = open_clip_templates(), name.removeprefix(OPEN_CLIP)
    else:
        table, key = benchmark_table(language, "zeroshot_classification_templates"), name
    found = _look_up(table, key)
    if found is None:
        prefix = name[: len(name) - len(key)]
        do = (
            f"No templates are assumed: set prompts=<one of these names>, templates_file=<file>, or put "
            f"{TEMPLATES_FILE} into the data set's folder."
        )
        known = [prefix + entry for entry in table]
        raise ConfigError(unknown_name(f"data set with {language} prompt templates", name, known, do=do))
    return found


def _look_up(table: dict[str, Any], name: str) -> Any:
    short = name.partition("/")[2]
    return table.get(name, table.get(short) if short else None)


def _is_list_of_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _read_lines(path: Path) -> list[str]:
    try:
        # utf-8-sig: an editor's byte order mark would become part of the first name.
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; check the path, one entry a line is expected") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
