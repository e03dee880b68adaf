"""What a suite says about one data set: what to measure, where it is, and what its classes are called."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name
from evaluate.data.benchmark_builder import SPLIT_IGNORED
from evaluate.data.package_prompts import BABEL, CUPL, OPEN_CLIP


class Task(str, Enum):
    """What to measure."""

    zero_shot = "zero_shot"
    retrieval = "retrieval"
    linear_probe = "linear_probe"
    few_shot = "few_shot"
    multi_label = "multi_label"  # zero-shot, several classes an image
    knn = "knn"
    selection = "selection"  # the right caption of several (SugarCrepe), or both pairings of two (Winoground)
    winogavil = "winogavil"  # the k images of a board that go with a word


TRAINED_TASKS = (Task.linear_probe, Task.few_shot, Task.knn)
ZERO_SHOT_ONLY = (
    "roc_auc",
    "worst_group_acc1",
    "worst_group_acc5",
)  # metrics that the trained tasks do not have
CLASSIFICATION_METRICS = ("acc1", "acc5", "mean_per_class_recall", "macro_f1", *ZERO_SHOT_ONLY)
RETRIEVAL_METRICS = tuple(
    f"{side}_retrieval_recall@{k}" for side in ("image", "text", "mean") for k in (1, 5, 10)
)
METRICS_ALONE = {
    Task.retrieval: RETRIEVAL_METRICS,
    Task.multi_label: ("mean_average_precision", "mean_average_precision_11_point"),
    Task.selection: ("acc1", "text_score", "image_score", "group_score"),
    Task.winogavil: ("jaccard", "jaccard_5_6", "jaccard_10_12"),
}
"""Tasks that stand alone in an entry, since their headline is no other task's."""


@dataclass(kw_only=True)
class DatasetConfig:
    """One data set of a suite."""

    tasks: list[Task] = MISSING
    metric: str = MISSING  # the headline; few_shot always shows acc1 for its largest k

    # Where it is. A folder in webdataset layout is taken first; else `builder` says how the folder is to be read.
    path: str | None = None  # folder, relative to data_root, or s3://bucket/folder; null: the data set's name
    # CLIP_benchmark's name, or image_folder, sugar_crepe/<set>, winoground, winogavil
    builder: str | None = None
    # owner/name[@revision] of a hub data set in webdataset layout, fetched when it is missing and download=true
    hub: str | None = None
    url: str | None = None  # the same for an http(s) address that the layout lies under
    test_split: str = "test"  # the split that is scored
    train_split: str = "train"  # linear probe, k-NN and few-shot learn from this one
    val_split: str | None = None  # linear probe chooses its L2 strength here; null: a fifth of train

    # Classes and prompts.
    # templates, and class names if it has none: of this CLIP_benchmark set, or of cupl/<set>, babel_imagenet,
    # open_clip/imagenet, open_clip/imagenet_simple
    prompts: str | None = None
    language: str = "en"  # of the packages' class names and templates, and of captions
    class_names_file: str | None = None  # own class names, .txt or .json
    templates_file: str | None = None  # own templates, or prompts of each class, .txt or .json
    class_names_from_folders: bool = False  # image_folder: folder names are class names, "_" is a blank
    # whether classes may lack samples, as iWildCam's do; class averages are then over the others
    allow_empty_classes: bool = False

    # retrieval: captions with equal text are one caption, and right for every image that has it (many-to-many);
    # false counts only the image it stands at, as CLIP_benchmark does
    shared_captions: bool = False

    # Groups of samples, for worst-group scores.
    group_by: str | None = None  # metadata field whose values are the groups
    # what the columns of a sample's .npy are called, in order
    metadata_fields: list[str] = field(default_factory=list)
    # what the codes 0, 1, ... of group_by stand for; empty: its values are names
    group_names: list[str] = field(default_factory=list)
    # samples of these have no group (WILDS leaves out FMoW's Other, DataComp does not)
    ignored_groups: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.tasks == MISSING or self.metric == MISSING:
            return  # an incomplete config names its missing settings elsewhere
        if not self.tasks:
            raise ConfigError(
                f"a data set has no tasks; give some of {', '.join(task.value for task in Task)}"
            )
        self._check_metric()
        self._check_places()
        self._check_groups()
        if self.shared_captions and Task.retrieval not in self.tasks:
            raise ConfigError(
                f"shared_captions is for retrieval, and the tasks are {', '.join(task.value for task in self.tasks)}; "
                "leave it out"
            )
        if self.language != "en" and self.prompts and self.prompts.startswith((CUPL, OPEN_CLIP)):
            raise ConfigError(
                f"prompts={self.prompts} are English, language is {self.language!r}; use language=en, a set of "
                f"CLIP_benchmark's in that language, or prompts={BABEL}"
            )

    def _check_metric(self) -> None:
        alone = next((task for task in self.tasks if task in METRICS_ALONE), None)
        if alone is not None and len(self.tasks) > 1:
            raise ConfigError(
                f"{alone.value} and {', '.join(t.value for t in self.tasks if t is not alone)} need different "
                "headlines; make two entries of this data set"
            )
        trained = any(task in TRAINED_TASKS for task in self.tasks)
        common = tuple(name for name in CLASSIFICATION_METRICS if not (trained and name in ZERO_SHOT_ONLY))
        allowed = METRICS_ALONE[alone] if alone is not None else common
        if self.metric not in allowed:
            raise ConfigError(
                unknown_name(f"metric for {', '.join(t.value for t in self.tasks)}", self.metric, allowed)
            )

    def _check_places(self) -> None:
        if self.builder in SPLIT_IGNORED and any(task in TRAINED_TASKS for task in self.tasks):
            raise ConfigError(
                f"{self.builder!r} has no train and test split in torchvision: a probe would be scored on its training "
                "images. Use its VTAB form (vtab/...), or a webdataset folder with real splits and builder=null"
            )
        used = [self.test_split, self.train_split, *([self.val_split] if self.val_split else [])]
        if any(task in TRAINED_TASKS for task in self.tasks) and len(set(used)) < len(used):
            raise ConfigError(
                f"the splits that are scored, learnt from and chosen by are {', '.join(used)}: one of them twice, so a "
                "probe would be scored on images it has seen; give each another name (val_split may be null)"
            )
        if self.hub and self.url:
            raise ConfigError(
                f"both hub ({self.hub}) and url ({self.url}) are set; keep the one to fetch from"
            )
        if self.class_names_from_folders and (self.builder != IMAGE_FOLDER or self.class_names_file):
            raise ConfigError(
                f"class_names_from_folders needs builder={IMAGE_FOLDER} (it is {self.builder!r}) and no "
                f"class_names_file ({self.class_names_file!r}); correct one of them"
            )

    def _check_groups(self) -> None:
        if self.group_by is None and (self.group_names or self.ignored_groups):
            raise ConfigError(
                "group_names and ignored_groups say nothing without group_by; set it to a metadata field"
            )
        if self.metric.startswith("worst_group") and self.group_by is None:
            raise ConfigError(
                f"{self.metric} needs group_by, the metadata field whose values are the groups; set it"
            )
        if self.metadata_fields and self.group_by is not None and self.group_by not in self.metadata_fields:
            raise ConfigError(unknown_name("metadata field in group_by", self.group_by, self.metadata_fields))


IMAGE_FOLDER = "image_folder"
