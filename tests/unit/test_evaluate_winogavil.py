"""WinoGAViL: Jaccard index by hand and against DataComp's way of computing it, board sizes, ties, bad input."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from crawl2clip.errors import DataError
from evaluate.tasks.winogavil import score_winogavil


def random_boards(num: int, seed: int = 0):
    """Image and cue features, candidates and associations of boards of all four sizes."""
    rng = np.random.default_rng(seed)
    candidates = [rng.permutation(40)[: (5, 6, 10, 12)[board % 4]].tolist() for board in range(num)]
    associations = [found[: int(rng.integers(1, 5))] for found in candidates]
    features = [torch.from_numpy(rng.normal(size=(rows, 8)).astype(np.float32)) for rows in (40, num)]
    images, cues = (torch.nn.functional.normalize(part, dim=-1) for part in features)
    return images, cues, candidates, associations


def datacomps(images, cues, candidates, associations) -> np.ndarray:
    """Board by board as eval_utils/wino_eval.py of DataComp does: argsort, the last k, scikit-learn's Jaccard."""
    values = []
    for cue, found, chosen in zip(cues, candidates, associations, strict=True):
        truth = np.isin(found, chosen)
        top = np.argsort((cue @ images[found].T).numpy())[-truth.sum() :]
        values.append(jaccard_score(truth, np.isin(np.arange(len(found)), top)))
    return np.asarray(values)


def test_one_board_by_hand():
    cosines = torch.tensor([0.9, 0.1, 0.8, 0.3, 0.2])
    images = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    # It picks 0 and 2; people picked 0 and 3: one of three in either set is in both.
    score = score_winogavil(images, torch.tensor([[1.0, 0.0]]), [[0, 1, 2, 3, 4]], [[3, 0]])
    assert score.metrics["jaccard"].value == pytest.approx(1 / 3)
    # Two of five at random: both right in 1 of 10 ways (1), one right in 6 of 10 (1/3).
    assert score.metrics["jaccard"].chance == pytest.approx(0.1 + 0.6 / 3)
    assert "jaccard_10_12" not in score.metrics
    assert score.details["boards_by_size"] == {"5": 1}


def test_boards_equal_datacomps():
    case = random_boards(60)
    score, expected = score_winogavil(*case), datacomps(*case)
    sizes = np.asarray([len(found) for found in case[2]])
    assert score.predictions["jaccard"] == pytest.approx(expected, abs=1e-12)
    assert score.predictions["num_candidates"].tolist() == sizes.tolist()
    assert score.metrics["jaccard"].value == pytest.approx(expected.mean(), abs=1e-12)
    assert score.metrics["jaccard_5_6"].value == pytest.approx(expected[sizes <= 6].mean(), abs=1e-12)
    assert score.metrics["jaccard_10_12"].value == pytest.approx(expected[sizes >= 10].mean(), abs=1e-12)
    assert [score.metrics[name].num for name in ("jaccard", "jaccard_5_6", "jaccard_10_12")] == [60, 30, 30]
    assert score.metrics["jaccard"].low < score.metrics["jaccard"].value < score.metrics["jaccard"].high


def test_random_features_get_the_chance_level():
    estimate = score_winogavil(*random_boards(4000)).metrics["jaccard"]
    # Five standard errors: a board's index spreads by about 0.3.
    assert estimate.value == pytest.approx(estimate.chance, abs=5 * 0.3 / math.sqrt(4000))


def test_of_equal_images_the_first_on_the_board_is_picked():
    images, cue = torch.ones(6, 2), torch.ones(1, 2)
    first = score_winogavil(images, cue, [[5, 4, 3, 2, 1]], [[5, 4]])
    last = score_winogavil(images, cue, [[5, 4, 3, 2, 1]], [[2, 1]])
    assert (first.metrics["jaccard"].value, last.metrics["jaccard"].value) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("candidates", "associations", "message"),
    [
        ([[0, 1, 9]], [[0]], r"board 0 has the candidates \[0, 1, 9\]; expected distinct images from 0 to 4"),
        (
            [[0, 1, 1]],
            [[0]],
            "expected distinct images from 0 to 4. If one of its images could not be decoded",
        ),
        ([[0, -1]], [[0]], "expected distinct images"),
        ([[]], [[]], "expected distinct images"),
        (
            [[0, 1]],
            [[]],
            r"board 0 associates \[\] of its candidates \[0, 1\].*at least one of them, and not all",
        ),
        ([[0, 1]], [[0, 1]], "at least one of them, and not all"),
        ([[0, 1]], [[2]], "at least one of them, and not all"),
        ([[0, 1]] * 2, [[0]] * 2, "2 boards with candidates for 1 cues; give one for each"),
        ([[0, 1]], [], "0 boards with associations for 1 cues"),
    ],
)
def test_boards_that_are_none_are_refused(candidates, associations, message):
    with pytest.raises(DataError, match=message):
        score_winogavil(torch.eye(5), torch.eye(5)[:1], candidates, associations)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="1 of 1 cue features are not finite"):
        score_winogavil(torch.eye(5), torch.full((1, 5), torch.nan), [[0, 1]], [[0]])
