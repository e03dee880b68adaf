"""Data sets on the Hugging Face hub in CLIP_benchmark's webdataset layout, fetched into their folder.

The hub knows the size and, for tars, the SHA-256 of each file of a commit; both are compared after the
download. Its client returns an old folder with a warning when the hub cannot be reached; here the commit is
asked for first, so that what stands in the folder is what was asked for, or there is an error.
"""

import fnmatch
import logging
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from evaluate.data.tar_folder import COUNT_FILE

TOP_LEVEL = ("*.txt", "*.json", "README.md")  # class names, templates, type, groups, licence
logger = logging.getLogger(__name__)


def parse_reference(reference: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) of "owner/name", "owner/name@revision" or the address of its page.

    Raises:
        ConfigError: another form.
    """
    text = re.sub(r"^https?://[^/]+/datasets/", "", reference.strip())
    text = re.sub(r"/tree/([^/]+)/?$", r"@\1", text)
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", text)
    if not found:
        raise ConfigError(
            f"hub is {reference!r}; give owner/name, owner/name@revision or the address of a data set's page"
        )
    return found[1], found[2]


def fetch_from_hub(reference: str, folder: Path, splits: Sequence[str]) -> dict[str, str]:
    """Downloads splits of a hub data set; files that are there already and whole are not fetched again.

    Args:
        reference: as `parse_reference` takes it.
        folder: the data set's folder.
        splits: names of the splits wanted.

    Returns:
        Where it came from: {"hub": owner/name, "revision": full commit}.

    Raises:
        DataError: no network, no such data set or split, a file that arrived damaged.
    """

    def choose(names: Collection[str]) -> list[str]:
        for split in splits:
            if f"{split}/{COUNT_FILE}" not in names:
                known = sorted({name.split("/")[0] for name in names if name.endswith(f"/{COUNT_FILE}")})
                raise DataError(
                    f"hub data set {reference} has no split {split!r} in webdataset layout ({split}/{COUNT_FILE}); its "
                    f"splits: {', '.join(known) or 'none'}. Correct the data set's test_split, train_split or val_split"
                )
        return [name for name in names if _is_wanted(name, splits)]

    return _fetch(reference, folder, choose)


def fetch_files_from_hub(reference: str, folder: Path, files: Sequence[str]) -> dict[str, str]:
    """Downloads files of a hub data set by name; arguments, result and errors as in `fetch_from_hub`."""

    def choose(names: Collection[str]) -> list[str]:
        missing = [file for file in files if file not in names]
        if missing:
            raise DataError(
                f"hub data set {reference} has no file {missing[0]!r}; it has "
                f"{', '.join(sorted(names)[:20]) or 'none'}. Put the files {', '.join(files)} into {folder} by hand"
            )
        return list(files)

    return _fetch(reference, folder, choose)


def _fetch(reference: str, folder: Path, choose: Callable[[Collection[str]], list[str]]) -> dict[str, str]:
    repo, revision = parse_reference(reference)
    client = _client(repo, folder)
    try:
        info = client.HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    except Exception as error:  # the client's own classes, and those of whichever HTTP library it uses
        raise DataError(_unreachable(repo, revision, folder, error)) from error
    names = {entry.rfilename: entry for entry in info.siblings or ()}
    wanted = choose(names)
    logger.info("fetching %d files of %s at %s to %s", len(wanted), repo, info.sha, folder)
    try:
        client.snapshot_download(
            repo,
            repo_type="dataset",
            revision=info.sha,
            local_dir=folder,
            allow_patterns=wanted,
            max_workers=4,
        )
    except Exception as error:
        raise DataError(_unreachable(repo, revision, folder, error)) from error
    for name in wanted:
        _check(folder / name, names[name], repo)
    return {"hub": repo, "revision": str(info.sha)}


def _is_wanted(name: str, splits: Sequence[str]) -> bool:
    parent, _, file = name.rpartition("/")
    if not parent:
        return any(fnmatch.fnmatch(file, pattern) for pattern in TOP_LEVEL)
    # Nothing but these names, so no name that a stranger chose for a file decides where it is written.
    return parent in splits and re.fullmatch(r"\d+\.tar|nshards\.txt", file) is not None


def _client(repo: str, folder: Path) -> Any:
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError as error:
        raise ConfigError(
            f"huggingface_hub cannot be imported ({error}); pip install huggingface_hub, or {by_hand(repo, folder)}"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise DataError(
            f"hub data set {repo} is not at {folder}, and HF_HUB_OFFLINE is set (the commands set it unless you do): "
            f"run with HF_HUB_OFFLINE=0 and download=true on a machine with network, or {by_hand(repo, folder)}"
        )
    return huggingface_hub


def by_hand(repo: str, folder: Path) -> str:
    """What to do on a machine that cannot fetch."""
    return (
        f"copy it there from a machine that can: hf download {repo} --repo-type dataset --local-dir {folder}"
    )


def _unreachable(repo: str, revision: str | None, folder: Path, error: Exception) -> str:
    from huggingface_hub import constants

    at = f" at revision {revision}" if revision else ""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return (
        f"hub data set {repo}{at} cannot be fetched from {constants.ENDPOINT}: {type(error).__name__}: {reason}. Check "
        f"the name, the network and, for a gated set, that HF_TOKEN is set; or {by_hand(repo, folder)}"
    )


def _check(path: Path, announced: Any, repo: str) -> None:
    """Compares a file with what the hub says of it."""
    lfs = announced.lfs
    if not path.is_file():
        found, expected = "missing", "a file"
    elif announced.size is not None and path.stat().st_size != announced.size:
        found, expected = f"{path.stat().st_size} bytes", f"{announced.size}"
    elif lfs is not None and (sha256 := sha256_of(path)) != lfs["sha256"]:
        found, expected = f"SHA-256 {sha256[:16]}...", f"{lfs['sha256'][:16]}..."
    else:
        return
    raise DataError(
        f"{path} is not what hub data set {repo} announces ({found}, expected {expected}); delete it and run again "
        "with download=true"
    )
