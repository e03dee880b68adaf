"""The usual ways to a plausible but wrong score, ranked by what a deviation looks like.

Every one of them has cost somebody points without an error message; the threads are named. The ranking is a
heuristic over the size and direction of the deviation, what the split holds, and whether the same weights are off
on other data sets too: a wrong activation or normalisation shows everywhere, wrong labels or prompts on one set.
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

MODEL_WIDE_FRACTION = 0.5  # of the other data sets are off: the model, not this set, is the cause
MIXED_FRACTION = 0.2  # of those are off in the other direction: other weights, not a spoilt model
MIN_OTHERS = 2  # data sets beside this one, before anything is concluded from them
_SHOWN = 3  # traps in a message


class Trap(str, Enum):
    """A cause of a wrong score."""

    quickgelu = "quickgelu"
    normalisation = "normalisation"
    precision = "precision"
    weights = "weights"
    label_order = "label_order"
    class_list = "class_list"
    wrong_split = "split"
    prompt = "prompt"
    captions = "captions"
    probe = "probe"


_MODEL_WIDE = (Trap.quickgelu, Trap.normalisation, Trap.precision, Trap.weights)
_ONE_SET = (Trap.label_order, Trap.class_list, Trap.wrong_split, Trap.prompt, Trap.captions)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known about a value that deviates; percent and points of percent."""

    NO_OTHERS: ClassVar[tuple[int, int, int]] = (0, 0, 0)

    model: str
    task: str
    value: float
    published: float
    chance: float | None = None
    half_interval: float = 0.0
    precision: str = "fp32"
    num_samples: int | None = None  # images in the split, undecodable ones counted
    expected_samples: int | None = None  # of the published split
    num_classes: int | None = None
    expected_classes: int | None = None
    other_activation: float | None = None  # what was published for the same weights with the other activation
    others_off: int = 0  # other data sets of the same weights that are off in the same direction
    others_opposite: int = 0  # other data sets of the same weights that are off in the other direction
    others: int = 0  # other data sets of the same weights with a verdict

    @property
    def drop(self) -> float:
        """How far below the published value it is; negative above it."""
        return self.published - self.value


def likely_traps(evidence: Evidence) -> list[str]:
    """What to check, likeliest first, at most three of them.

    Args:
        evidence: of a value outside its tolerance.

    Returns:
        Sentences for the reader.
    """
    scores = _scores(evidence)
    if evidence.others >= MIN_OTHERS:
        off = evidence.others_off + evidence.others_opposite
        everywhere = off / evidence.others >= MODEL_WIDE_FRACTION
        for trap in _MODEL_WIDE if everywhere else _ONE_SET:
            scores[trap] = scores.get(trap, 0) + 30
        if everywhere and evidence.others_opposite >= MIXED_FRACTION * off:
            # Wrong preprocessing makes a model worse; better here and worse there is another model.
            scores[Trap.weights] = scores.get(Trap.weights, 0) + 30
    ranked = sorted(scores, key=lambda trap: (-scores[trap], list(Trap).index(trap)))
    return [_text(trap, evidence) for trap in ranked[:_SHOWN]]


def _scores(e: Evidence) -> dict[Trap, int]:
    """How well each trap fits, 0 to 100; only the order matters."""
    if e.task == "retrieval":
        scores = _retrieval_scores(e)
    elif e.task in ("linear_probe", "few_shot", "knn"):
        scores = {Trap.probe: 50, Trap.wrong_split: 40, Trap.normalisation: 30}
    else:
        scores = _classification_scores(e)
    scores[Trap.weights] = 35
    if e.expected_samples and e.num_samples:
        # An equal count can still be another split, but seldom.
        equal = e.num_samples == e.expected_samples
        scores[Trap.wrong_split] = min(scores.get(Trap.wrong_split, 0), 30) if equal else 100
    if e.expected_classes and e.num_classes and e.num_classes != e.expected_classes:
        scores[Trap.class_list] = 100
    if e.other_activation is not None:
        # The same weights are published with both activations; the nearer the value is to the other one, the likelier.
        gap = abs(e.other_activation - e.published)
        near = gap > 0.1 and abs(e.value - e.other_activation) < 0.35 * gap
        scores[Trap.quickgelu] = 95 if near else 70 if e.other_activation > e.published else 45
    return scores


def _classification_scores(e: Evidence) -> dict[Trap, int]:
    by_chance = e.chance is not None and e.value <= max(3 * e.chance, e.chance + 3 * e.half_interval)
    if e.drop < 0:
        return {Trap.wrong_split: 50, Trap.prompt: 45, Trap.label_order: 10}
    if by_chance and e.drop > 10:
        return {Trap.label_order: 90, Trap.class_list: 60, Trap.normalisation: 20}
    if e.drop > 15:
        return {Trap.label_order: 55, Trap.class_list: 50, Trap.normalisation: 45, Trap.quickgelu: 30}
    if e.drop > 1:
        quick = 45 if not e.model.endswith("-quickgelu") else 35
        return {Trap.prompt: 46 if e.drop > 2.9 else 40, Trap.quickgelu: quick, Trap.normalisation: 42}
    reduced = e.precision != "fp32"
    return {Trap.precision: 50 if reduced else 30, Trap.normalisation: 40, Trap.prompt: 35}


def _retrieval_scores(e: Evidence) -> dict[Trap, int]:
    if abs(e.drop) > 5:
        return {Trap.wrong_split: 60, Trap.captions: 55, Trap.normalisation: 40}
    if e.drop < 0:
        return {Trap.prompt: 50, Trap.wrong_split: 45}
    return {Trap.normalisation: 45, Trap.quickgelu: 42, Trap.prompt: 35, Trap.precision: 30}


def _text(trap: Trap, e: Evidence) -> str:
    if trap is Trap.quickgelu:
        return quickgelu_trap(e.model, e.other_activation)
    if trap is Trap.wrong_split:
        found = (
            f"{e.num_samples} images are in this split" if e.num_samples else "count the images of this split"
        )
        expected = f", {e.expected_samples} in the published one" if e.expected_samples else ""
        return (
            f"split: {found}{expected}; another split, a part of it, or training images move a score by points "
            "(Flickr30k whole instead of Karpathy's 1,000: CLIP_benchmark#48)."
        )
    if trap is Trap.class_list:
        counts = (
            f" ({e.num_classes} here, {e.expected_classes} published)"
            if e.num_classes and e.expected_classes
            else ""
        )
        return f"class list: names that are missing, doubled or of another release of the data set{counts}."
    if trap is Trap.precision:
        return (
            f"precision: this ran in {e.precision}; run it with precision=fp32, reduced precision alone moves ImageNet "
            "by 0.12 and sets like MNIST by more than a point."
        )
    return _TEXTS[trap]


def quickgelu_trap(model: str, other_percent: float | None) -> str:
    """What to check when the activation may be the wrong one.

    Args:
        model: as the result names it.
        other_percent: what was published for the same weights with the other activation; None when nothing was.
    """
    other = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"
    text = (
        "quickgelu: weights run with the activation they were not trained with lose points without an error (2.69 on "
        f"ImageNet for laion400m_e32); compare with model={other}"
    )
    return f"{text}, published at {other_percent:.2f}." if other_percent is not None else f"{text}."


_TEXTS = {
    Trap.weights: (
        "weights: another checkpoint under this name (an earlier epoch, the average instead of the last); compare "
        "weights_sha256 with a run that agrees."
    ),
    Trap.normalisation: (
        "mean/std and resize: the weights' own values must be used (laion2b_s32b_b82k wants 0.5/0.5, OpenAI's do not), "
        "with bicubic resize and centre crop."
    ),
    Trap.label_order: (
        "label order: class names in another order than the labels give a score near chance (Pets 9.9, Caltech101 2.9: "
        "openai/CLIP#346); compare the first samples' labels with their names."
    ),
    Trap.prompt: (
        "prompt: a single template costs 3 to 4 points against the data set's own list (openai/CLIP#272, #246), and "
        'retrieval gains 1 to 2 with "a photo of" in front; compare prompts_sha256 with a run that agrees.'
    ),
    Trap.captions: (
        "captions: all five captions of an image count, in Karpathy's test split; one each gives far other recalls "
        "(CLIP_benchmark#7)."
    ),
    Trap.probe: (
        "probe: published values are the best of a grid chosen on the test set, on features after the projection; a "
        "strength chosen on validation data and features=penultimate give others."
    ),
}
