"""From features to scores: which function measures a task, and what it is handed.

A task that compares with texts says which ones (`texts`, the same on every rank, which share the encoding); rank 0
then scores. The functions themselves, in evaluate/tasks, know tensors and nothing of data sets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from crawl2clip.encoder import Encoder
from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import EvaluationDataset, Task
from evaluate.data.samples import check_classes_have_samples, check_labels
from evaluate.features import ImageFeatures
from evaluate.questions import boards_of, captions_of, shared_captions
from evaluate.results import Score
from evaluate.tasks.few_shot import FewShotConfig, score_few_shot
from evaluate.tasks.knn import KnnConfig, score_knn
from evaluate.tasks.linear_probe import LinearProbeConfig, ProbeFeatures, score_linear_probe
from evaluate.tasks.multi_label import score_multi_label
from evaluate.tasks.retrieval import score_retrieval
from evaluate.tasks.selection import score_selection
from evaluate.tasks.winogavil import score_winogavil
from evaluate.tasks.zero_shot import score_zero_shot, zero_shot_classifier


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Settings of the tasks that have some; None where no data set has the task."""

    few_shot: FewShotConfig | None = None
    linear_probe: LinearProbeConfig | None = None  # None: logistic regression on projected features
    knn: KnnConfig | None = None

    def check(self, datasets: Sequence[EvaluationDataset], encoder: Encoder) -> None:
        """Makes sure that the tasks of the data sets have their settings, and that the model can serve them.

        Raises:
            ConfigError: they have not, or the probe wants features that the model has not.
        """
        for dataset in datasets:
            for task, settings, what in (
                (Task.few_shot, self.few_shot, "its shots, seeds and one_shot_l2"),
                (Task.knn, self.knn, "its num_neighbors and temperature"),
            ):
                if task in dataset.tasks and settings is None:
                    raise ConfigError(
                        f"data set {dataset.name!r} has the {task.value} task; pass {task.value} with {what}"
                    )
            if self.probe_is_penultimate and Task.linear_probe in dataset.tasks:
                encoder.check_penultimate()

    def of(self, task: Task) -> FewShotConfig | LinearProbeConfig | KnnConfig | None:
        """The settings that a task's numbers depend on."""
        known = {Task.few_shot: self.few_shot, Task.linear_probe: self.linear_probe, Task.knn: self.knn}
        return known.get(task)

    @property
    def probe_is_penultimate(self) -> bool:
        """Whether the linear probe reads the features before the projection."""
        return self.linear_probe is not None and self.linear_probe.features is ProbeFeatures.penultimate


@dataclass(frozen=True)
class Material:
    """What the tasks of one data set are scored on."""

    dataset: EvaluationDataset
    encoded: Mapping[str, ImageFeatures]  # "test", and "train" and "val" where a task learns
    encoder: Encoder
    settings: TaskSettings = field(default_factory=TaskSettings)

    @property
    def test(self) -> ImageFeatures:
        """The scored split."""
        return self.encoded["test"]

    @property
    def where(self) -> str:
        """The data set, for messages."""
        return f"data set {self.dataset.name!r}"

    @property
    def num_classes(self) -> int:
        """Classes; where nobody named them, the labels of all splits say how many."""
        if self.dataset.num_classes is not None:
            return self.dataset.num_classes
        return 1 + max(int(part.labels.max()) for part in self.encoded.values() if part.labels is not None)

    def labelled(self, split: str, *, penultimate: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, D] and labels [N] of a split, the labels checked.

        Raises:
            DataError: samples without labels, labels that no class stands for, or a class that nothing is scored on.
        """
        part, where = self.encoded[split], f"{self.where}, {split} split"
        if part.labels is None:
            raise DataError(
                f"{where}: no class labels, which its tasks need; correct the tasks of this data set"
            )
        labels = part.labels.tolist()
        check_labels(labels, self.num_classes, where)
        opened = getattr(self.dataset, split)
        # A split that knew its labels was checked when it was opened, before bad images were left out.
        if (
            getattr(opened, "labels", None) is None
            and not self.dataset.allow_empty_classes
            and split == "test"
        ):
            check_classes_have_samples(labels, self.num_classes, where, self.dataset.class_names)
        features = part.penultimate if penultimate else part.features
        assert features is not None
        return features, part.labels


FeaturesOf = Callable[[Sequence[str]], torch.Tensor]
"""Features [N, D] of N of a task's texts, float32, L2-normalised."""


@dataclass(frozen=True)
class Scorer:
    """How a task is measured."""

    score: Callable[[Material, FeaturesOf], Score]  # on rank 0
    texts: Callable[[Material], list[str]] = lambda material: []


def prompts_of(dataset: EvaluationDataset) -> list[str]:
    """All prompts of a data set, class after class."""
    if dataset.prompts is None:
        raise DataError(
            f"data set {dataset.name!r} has no prompts; zero-shot needs class names and templates"
        )
    return [prompt for of_class in dataset.prompts.per_class() for prompt in of_class]


def _classifier(material: Material, features_of: FeaturesOf) -> torch.Tensor:
    assert material.dataset.prompts is not None
    return zero_shot_classifier(map(features_of, material.dataset.prompts.per_class()))


def _zero_shot(material: Material, features_of: FeaturesOf) -> Score:
    dataset, test = material.dataset, material.test
    return score_zero_shot(
        *material.labelled("test"),
        _classifier(material, features_of),
        dataset.groups,
        logit_scale=material.encoder.logit_scale,
        sample_groups=dataset.sample_groups(test.metadata or {}),
    )


def _multi_label(material: Material, features_of: FeaturesOf) -> Score:
    test, num_classes = material.test, material.num_classes
    if test.targets is None:
        raise DataError(
            f"{material.where} has no targets (a 0 or 1 for each class); multi_label needs them: correct its tasks"
        )
    targets = torch.zeros(len(test.targets), num_classes, dtype=torch.bool)
    for row, classes in enumerate(test.targets):
        check_labels(classes, num_classes, material.where)
        targets[row, classes] = True
    return score_multi_label(test.features, targets, _classifier(material, features_of))


def _retrieval_texts(material: Material) -> list[str]:
    captions = captions_of(material.test, material.where)
    return shared_captions(captions)[0] if material.dataset.shared_captions else captions.texts


def _retrieval(material: Material, features_of: FeaturesOf) -> Score:
    captions = captions_of(material.test, material.where)
    if material.dataset.shared_captions:
        texts, image_of_pair, text_of_pair = shared_captions(captions)
        return score_retrieval(
            material.test.features, features_of(texts), image_of_pair, text_of_pair=text_of_pair
        )
    return score_retrieval(material.test.features, features_of(captions.texts), captions.image_of_text)


def _images_per_example(material: Material) -> int:
    return getattr(material.dataset.test, "images_per_example", 1)


def _selection(material: Material, features_of: FeaturesOf) -> Score:
    captions = captions_of(material.test, material.where, _images_per_example(material))
    images = material.test.features[captions.rows]
    features = features_of(captions.texts)
    score = score_selection(images, features, captions.image_of_text, instances=captions.instances)
    return _with_left_out(score, captions.left_out)


def _winogavil(material: Material, features_of: FeaturesOf) -> Score:
    boards = boards_of(material.test, material.dataset.test, material.where)
    cues = features_of(boards.prompts)
    score = score_winogavil(material.test.features, cues, boards.candidates, boards.associations)
    return _with_left_out(score, boards.left_out)


def _with_left_out(score: Score, left_out: int) -> Score:
    if left_out:
        score.notes.append(
            f"{left_out} questions are left out because an image of theirs could not be decoded"
        )
    return score


def _linear_probe(material: Material, _: FeaturesOf) -> Score:
    settings = material.settings
    parts = {
        split: material.labelled(split, penultimate=settings.probe_is_penultimate)
        for split in material.encoded
    }
    return score_linear_probe(
        parts["train"],
        parts.get("val"),
        parts["test"],
        material.num_classes,
        material.encoder.device,
        config=settings.linear_probe,
    )


def _few_shot(material: Material, _: FeaturesOf) -> Score:
    config = material.settings.few_shot
    assert config is not None
    train, test = material.labelled("train"), material.labelled("test")
    return score_few_shot(train, test, material.num_classes, config, material.encoder.device)


def _knn(material: Material, _: FeaturesOf) -> Score:
    config = material.settings.knn
    assert config is not None
    train, test = material.labelled("train"), material.labelled("test")
    return score_knn(train, test, material.num_classes, config, material.encoder.device)


SCORERS: Mapping[Task, Scorer] = {
    Task.zero_shot: Scorer(_zero_shot, lambda material: prompts_of(material.dataset)),
    Task.multi_label: Scorer(_multi_label, lambda material: prompts_of(material.dataset)),
    Task.retrieval: Scorer(_retrieval, _retrieval_texts),
    Task.selection: Scorer(
        _selection,
        lambda material: captions_of(material.test, material.where, _images_per_example(material)).texts,
    ),
    Task.winogavil: Scorer(
        _winogavil, lambda material: boards_of(material.test, material.dataset.test, material.where).prompts
    ),
    Task.linear_probe: Scorer(_linear_probe),
    Task.few_shot: Scorer(_few_shot),
    Task.knn: Scorer(_knn),
}
