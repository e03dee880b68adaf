"""The evaluation: encode each data set once, let every task be matrix algebra on the features.

`evaluate` is the library entry. It takes an encoder, so the command, the in-loop check and anyone's model
go through the same lines; it runs on every rank, and every rank gets the same results.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from crawl2clip.distributed import World
from crawl2clip.encoder import Encoder
from crawl2clip.errors import ConfigError, DataError
from evaluate.cache import FeatureCache
from evaluate.data.datasets import EvaluationDataset, Task
from evaluate.data.samples import check_labels
from evaluate.features import ImageFeatures, encode_images, main_decides
from evaluate.results import Result, Score
from evaluate.tasks.few_shot import FewShotConfig, score_few_shot
from evaluate.tasks.linear_probe import score_linear_probe
from evaluate.tasks.retrieval import score_retrieval
from evaluate.tasks.zero_shot import score_zero_shot, zero_shot_classifier
from evaluate.texts import TextFeatures

logger = logging.getLogger(__name__)


def evaluate(
    encoder: Encoder,
    datasets: Sequence[EvaluationDataset],
    *,
    world: World,
    image_batch_size: int = 128,
    text_batch_size: int = 256,
    num_workers: int = 0,
    max_bad_images: int = 0,
    few_shot: FewShotConfig | None = None,
    cache: FeatureCache | None = None,
    pretrained: str | None = None,
    record: dict[str, Any] | None = None,
    show_progress: bool = True,
) -> list[Result]:
    """Scores an encoder on data sets; a collective call that gives every rank the same results.

    Args:
        encoder: on this rank's device; its model's training mode is left as it was.
        datasets: from `open_datasets`, the same on every rank; may be used again for the next checkpoint.
        world: the ranks that share the encoding. The results do not depend on how many there are.
        image_batch_size: images a forward pass.
        text_batch_size: texts a forward pass.
        num_workers: processes a rank that decode images.
        max_bad_images: undecodable images allowed in a split; they are left out and counted.
        few_shot: shots and seeds, for data sets with that task.
        cache: features kept on disk; None for a model in training, whose features are never met again.
        pretrained: what the weights are called, for the record and for published values; None for a live model,
            whose weights and data are not hashed either, since that takes seconds.
        record: stored in each result as its provenance.
        show_progress: whether rank 0 draws bars.

    Raises:
        DataError: undecodable images, labels that fit no class, or features that are not finite.
        ConfigError: few-shot without its settings.
    """
    texts = TextFeatures(
        encoder, world=world, batch_size=text_batch_size, cache=cache, show_progress=show_progress
    )

    def score(dataset: EvaluationDataset) -> list[Result]:
        encoded = {
            name: encode_images(
                encoder, split, world=world, batch_size=image_batch_size, num_workers=num_workers,
                max_bad_images=max_bad_images, cache=cache, show_progress=show_progress,
            )
            for name, split in (("test", dataset.test), ("train", dataset.train), ("val", dataset.val))
            if split is not None
        }  # fmt: skip
        if Task.retrieval in dataset.tasks:
            scores = _retrieval_scores(dataset, encoded["test"], texts, world)
        else:
            scores = _classification_scores(dataset, encoded, texts, world, few_shot, encoder.device)
        identity = main_decides(world, lambda: _identity(encoder, dataset) if pretrained else {})
        return [
            Result(
                model=encoder.name,
                pretrained=pretrained,
                precision=encoder.precision,
                weights_sha256=identity.get("weights_sha256"),
                data_sha256=identity.get("data_sha256"),
                dataset=dataset.name,
                split=dataset.test_split,
                task=task.value,
                metric=list(found.metrics)[-1] if task is Task.few_shot else dataset.metric,
                metrics=found.metrics,
                groups=found.groups,
                num_samples=len(encoded["test"].features),
                num_bad_images=len(encoded["test"].faults),
                num_classes=dataset.num_classes,
                prompts_sha256=dataset.prompts.sha256 if dataset.prompts and task is Task.zero_shot else None,
                details=found.details,
                notes=found.notes,
                provenance=record or {},
            )
            for task, found in scores.items()
        ]

    for dataset in datasets:
        if Task.few_shot in dataset.tasks and few_shot is None:
            raise ConfigError(
                f"data set {dataset.name!r} has the few_shot task; pass few_shot with its shots, seeds and one_shot_l2"
            )
    return [result for dataset in datasets for result in score(dataset)]


def _retrieval_scores(
    dataset: EvaluationDataset, test: ImageFeatures, texts: TextFeatures, world: World
) -> dict[Task, Score]:
    captions = test.captions
    if captions is None:
        raise DataError(
            f"data set {dataset.name!r} has class labels and no captions; retrieval needs captions"
        )
    features = texts.of([caption for of_image in captions for caption in of_image], dataset.name)
    counts = torch.tensor([len(of_image) for of_image in captions])
    image_of_text = torch.arange(len(counts)).repeat_interleave(counts)
    return {
        Task.retrieval: main_decides(world, lambda: score_retrieval(test.features, features, image_of_text))
    }


def _classification_scores(
    dataset: EvaluationDataset,
    encoded: dict[str, ImageFeatures],
    texts: TextFeatures,
    world: World,
    few_shot: FewShotConfig | None,
    device: torch.device,
) -> dict[Task, Score]:
    """The scores of every task but retrieval; regressions run on rank 0's device."""
    labelled = {name: _labelled(dataset, name, part) for name, part in encoded.items()}
    if dataset.num_classes is None:
        dataset.num_classes = 1 + max(int(labels.max()) for _, labels in labelled.values())
    num_classes = dataset.num_classes
    scores: dict[Task, Score] = {}
    for task in dataset.tasks:
        logger.info("%s of %s", task.value, dataset.name)
        if task is Task.zero_shot:
            assert dataset.prompts is not None
            prompts = dataset.prompts.per_class()
            features = texts.of([prompt for of_class in prompts for prompt in of_class], dataset.name)
            classifier = zero_shot_classifier(features, [len(of_class) for of_class in prompts])
            scores[task] = main_decides(
                world,
                lambda classifier=classifier: score_zero_shot(*labelled["test"], classifier, dataset.groups),
            )
        elif task is Task.linear_probe:
            scores[task] = main_decides(
                world,
                lambda: score_linear_probe(
                    labelled["train"], labelled.get("val"), labelled["test"], num_classes, device
                ),
            )
        else:
            assert few_shot is not None
            scores[task] = main_decides(
                world,
                lambda: score_few_shot(labelled["train"], labelled["test"], num_classes, few_shot, device),
            )
    return scores


def _labelled(
    dataset: EvaluationDataset, split: str, part: ImageFeatures
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of a split, the labels checked."""
    where = f"data set {dataset.name!r}, {split} split"
    if part.labels is None:
        raise DataError(f"{where}: no class labels, which its tasks need; correct the tasks of this data set")
    # Without class names the labels themselves say how many classes there are; then only negatives are wrong.
    check_labels(part.labels.tolist(), dataset.num_classes or int(part.labels.max()) + 1, where)
    return part.features, part.labels


def _identity(encoder: Encoder, dataset: EvaluationDataset) -> dict[str, str]:
    return {"weights_sha256": encoder.weights_sha256, "data_sha256": dataset.test.fingerprint()}
