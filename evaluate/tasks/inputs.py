"""What every task asks of its features before it makes a number of them.

A NaN compares false with everything, so a model whose features are NaN would rank the true class first each time
and score 100%. The encoders refuse such features already; features that come from elsewhere are refused here.
"""

import torch

from crawl2clip.errors import DataError


def check_features(what: str, features: torch.Tensor, *, dim: int | None = None) -> None:
    """Refuses features that are no finite matrix of the right width.

    Args:
        what: what the rows are, for messages.
        features: [N, D] floating point.
        dim: D of what they are compared with; None where there is nothing yet.

    Raises:
        DataError: there is no row, another number of dimensions, another D, or a value that is not finite.
    """
    if features.ndim != 2 or not len(features):
        raise DataError(
            f"{what} have the shape {list(features.shape)}; expected [N, D] with at least one row: encode them again"
        )
    if dim is not None and features.shape[1] != dim:
        raise DataError(
            f"{what} have {features.shape[1]} dimensions and are compared with features of {dim}; both must come from "
            "the same model: encode them again with one checkpoint"
        )
    bad = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(features)} {what} are not finite (the first is row {int(bad[0])}); no score is made "
            "of them: encode again in precision=fp32, or use other weights"
        )


def check_count(what: str, found: int, wanted: int, of: str) -> None:
    """Refuses a list that is not as long as what it describes.

    Raises:
        DataError: the lengths differ.
    """
    if found != wanted:
        raise DataError(f"{found} {what} for {wanted} {of}; give one for each, in the same order")
