"""Groups that scores are shown for: of classes (a file) and of samples (metadata), with names and left-out ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json

GROUPS_FILE = "groups.json"
NO_GROUP = ""
"""The group of a sample that is left out of worst-group scores."""


def read_groups(path: Path, num_classes: int) -> dict[str, list[int]]:
    """Named groups of classes: a JSON object of name -> class indices.

    Raises:
        DataError: another form, an empty group, or an index that no class has.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(entry, list) and entry for entry in value.values()):
        raise DataError(f"{path} must be a JSON object of group name -> non-empty list of class indices")
    for name, classes in value.items():
        bad = [c for c in classes if type(c) is not int or not 0 <= c < num_classes]
        if bad:
            raise DataError(
                f"{path}: group {name!r} holds {bad[0]!r}, which is no class index; allowed are 0 to {num_classes - 1}"
            )
    return value


def groups_of_samples(
    values: Sequence[str], where: str, *, names: Sequence[str] = (), ignored: Sequence[str] = ()
) -> list[str]:
    """The group of each sample, by name.

    Args:
        values: of the metadata field that groups; where `names` are given, an index into them.
        where: data set and field, for messages.
        names: what the codes stand for, in order; empty when the values are names.
        ignored: groups whose samples get NO_GROUP.

    Raises:
        ConfigError: a code without a name, or an ignored group that is none.
    """
    if names:
        allowed = {str(code): name for code, name in enumerate(names)}
        strange = sorted(set(values) - allowed.keys())
        if strange:
            raise ConfigError(
                f"{where}: the code {strange[0]!r} has no name, group_names has {len(names)} (codes 0 to "
                f"{len(names) - 1}); give a name for each code, in order"
            )
        values = [allowed[value] for value in values]
    for name in ignored:
        if name not in values and name not in names:
            raise ConfigError(unknown_name(f"group in ignored_groups of {where}", name, set(values)))
    left_out = set(ignored)
    return [NO_GROUP if value in left_out else value for value in values]


def check_group_field(metadata: Sequence[Mapping[str, str]], field: str, where: str) -> None:
    """Refuses a split where a sample lacks the field that groups.

    Raises:
        DataError: it does; the message lists the fields that are there.
    """
    without = [index for index, found in enumerate(metadata) if field not in found]
    if without or not metadata:
        known = sorted({name for found in metadata for name in found})
        raise DataError(
            f"{where}: {len(without) or 'all'} samples have no metadata field {field!r} (group_by); fields found: "
            f"{', '.join(known) or 'none'}. Metadata is a .json object beside the image, or a .npy whose columns "
            "metadata_fields names"
        )
