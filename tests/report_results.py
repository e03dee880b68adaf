"""Made results for the tests of reports: plain ones, and some by people who want to break a page."""

from evaluate.intervals import Estimate, seed_spread, wilson
from evaluate.results import Result

HOSTILE = "<script>alert('x')</script>\"|`[a](javascript:1)\x1b[31m\n=1+1\u202e\ud800"


def result(**changes) -> Result:
    """A zero-shot ImageNet result whose published value is 63.33 and whose verdict is PASS or WARN."""
    settings = {
        "model": "ViT-B-32",
        "pretrained": "openai",
        "weights_sha256": "ab" * 32,
        "precision": "fp32",
        "dataset": "imagenet1k",
        "split": "test",
        "task": "zero_shot",
        "metric": "acc1",
        "metrics": {"acc1": wilson(31_665, 50_000, 0.001), "acc5": wilson(44_000, 50_000, 0.005)},
        "groups": {"rare": {"acc1": wilson(1, 4, 0.001)}},
        "num_samples": 50_000,
        "num_classes": 1000,
        "data_sha256": "d" * 64,
    }
    return Result(**{**settings, **changes})


def few_shot(**changes) -> Result:
    """Accuracies for k = 1, 2 and 16 over three seeds."""
    metrics = {
        "acc1@16_shot": seed_spread([0.61, 0.62, 0.63], 0.001),
        "acc1@2_shot": seed_spread([0.4, 0.42, 0.44], 0.001),
        "acc1@1_shot": seed_spread([0.2, 0.3, 0.4], 0.001),
    }
    return result(
        **{"task": "few_shot", "metric": "acc1@16_shot", "metrics": metrics, "groups": {}, **changes}
    )


def retrieval(**changes) -> Result:
    """Recalls and a mean rank."""
    metrics = {
        "image_retrieval_recall@10": wilson(90, 100, 0.1),
        "image_retrieval_recall@5": wilson(80, 100, 0.05),
        "image_retrieval_mean_rank": Estimate(3.4, 2.9, 4.0, "bootstrap_95", 100, 50.5, "rank"),
    }
    settings = {
        "dataset": "flickr8k",
        "task": "retrieval",
        "metric": "image_retrieval_recall@5",
        "groups": {},
    }
    return result(**{**settings, "metrics": metrics, "num_classes": None, **changes})
