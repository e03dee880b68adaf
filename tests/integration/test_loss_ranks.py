"""Losses on 1, 2 and 4 gloo ranks: the mean over ranks and its gradients are those of one big matrix in float64."""

import itertools

import loss_ranks as ranks
import numpy as np
import pytest
import torch
import torch.nn.functional as F

Case = ranks.Case

TILES = (1, 3, 5, 64)  # one number at a time, a rest of two, exactly the batch, more than there is
EXCHANGES = ("gather", "ring")
CASES = [
    *(
        Case(loss, exchange, tile_size=tile_size)
        for loss, exchange, tile_size in itertools.product(("infonce", "sigmoid", "distillation"), EXCHANGES, TILES)
    ),
    *(
        Case(loss, exchange, **options)
        for loss, exchange in itertools.product(("infonce", "sigmoid", "distillation"), EXCHANGES)
        for options in (
            {"per_rank": 1},
            {"scale": 100.0},
            {"scale": 100.0, "magnitude": 30.0},  # logits up to 90,000: their exponentials are beyond float64
            {"dtype": torch.float32},
            {"dtype": torch.bfloat16, "scale": 100.0},
        )
    ),
    Case("caption"),
]  # fmt: skip
GROUPED = [
    Case(loss, exchange, groups_of_two=True) for loss in ("infonce", "sigmoid") for exchange in EXCHANGES
]
PEERS = [Case("open_clip_infonce"), Case("open_clip_sigmoid"), Case("gathered_sum")]


@pytest.fixture(scope="module")
def measured():
    """Outcomes by number of ranks and case; the processes of a number of ranks start once."""
    done = {}

    def get(world_size, case):
        if world_size not in done:
            cases = CASES + (PEERS if world_size > 1 else []) + (GROUPED if world_size == 4 else [])
            done[world_size] = dict(zip(cases, ranks.measure(world_size, cases), strict=True))
        return done[world_size][case]

    return get


def expected(case, size):
    """The loss and its gradients from one matrix of all pairs, in float64."""
    if case.loss == "caption":
        logits, labels = ranks.global_captions(size)
        logits.requires_grad_()
        per_token = -logits.log_softmax(2).gather(2, labels[:, :, None])[:, :, 0]
        loss = per_token[labels != 0].mean()
        loss.backward()
        return {"loss": loss.item(), "logits": logits.grad.numpy()}
    inputs = {
        name: value.double().requires_grad_() for name, value in ranks.global_inputs(case, size).items()
    }
    logits = inputs["scale"] * inputs["images"] @ inputs["texts"].T
    same = torch.eye(size, dtype=torch.float64)
    if case.loss == "sigmoid":
        labels = 2 * same - 1
        loss = -F.logsigmoid(labels * (logits + inputs["bias"])).sum() / size
    else:
        teacher = (inputs["scale"] / 2 * inputs["teacher_images"] @ inputs["teacher_texts"].T).detach()
        rows, columns = logits.log_softmax(1), logits.log_softmax(0)
        contrastive = -(same * (rows + columns)).sum() / (2 * size)
        under_teacher = -(teacher.softmax(1) * rows + teacher.softmax(0) * columns).sum() / (2 * size)
        loss = contrastive if case.loss == "infonce" else 0.7 * contrastive + 1.3 * under_teacher
    loss.backward()
    names = ["images", "texts", "scale", *(["bias"] if case.loss == "sigmoid" else [])]
    return {"loss": loss.item(), **{name: inputs[name].grad.numpy() for name in names}}


def check(outcome, reference, world_size, **tolerance):
    """Losses, scales and biases: their mean over ranks. Rows: a rank has `world_size` times its part of the mean."""
    assert set(outcome) >= set(reference)
    for name, value in reference.items():
        of_rows = name in ("images", "texts", "logits")
        found = np.concatenate(outcome[name]) / world_size if of_rows else outcome[name].mean(axis=0)
        np.testing.assert_allclose(found, value, err_msg=name, **tolerance)


def tolerance_of(case):
    # A float32 logit of size 1400 may be off by 1e-4, a tenth of its last digits; bfloat16 gradients have 8 bits. All
    # else is the order of sums in float64, next to logits of up to 90,000 in the extreme case.
    if case.dtype == torch.bfloat16:
        return {"rtol": 1e-2, "atol": 1e-4}
    if case.dtype == torch.float32:
        return {"rtol": 1e-4, "atol": 1e-5}
    return {"rtol": 1e-11, "atol": 1e-11 if case.magnitude > 1 else 1e-13}


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_mean_over_ranks_and_its_gradient_are_those_of_the_whole_matrix(measured, case, world_size):
    outcome = measured(world_size, case)
    check(outcome, expected(case, world_size * case.per_rank), world_size, **tolerance_of(case))
    assert all(np.isfinite(value).all() for value in outcome.values())
    if world_size > 1:
        assert len(set(outcome["loss"].tolist())) == world_size  # each rank's rows have a loss of their own


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("loss", ["infonce", "sigmoid", "distillation"])
def test_the_ring_gives_what_gathering_gives(measured, loss, world_size):
    ring, gathered = measured(world_size, Case(loss, "ring")), measured(world_size, Case(loss, "gather"))
    for name, value in gathered.items():  # sums in another order, in float64
        np.testing.assert_allclose(ring[name], value, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", GROUPED, ids=str)
def test_the_group_is_the_global_batch_whatever_other_ranks_there_are(measured, case):
    outcome = measured(4, case)
    for members in ([0, 2], [1, 3]):  # the two groups got the same batch
        part = {name: value[members] for name, value in outcome.items()}
        check(part, expected(case, 2 * case.per_rank), 2, **tolerance_of(case))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_losses_are_open_clips(measured, loss, world_size):
    """Rank by rank for values; the gradient of the scale is shared out otherwise, its mean is the same."""
    ours, theirs = measured(world_size, Case(loss)), measured(world_size, Case(f"open_clip_{loss}"))
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=1e-12)
    for name in ("images", "texts"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(ours["scale"].mean(), theirs["scale"].mean(), rtol=1e-11)


@pytest.mark.parametrize("world_size", [2, 4])
def test_gathered_rows_get_the_gradients_of_all_ranks(measured, world_size):
    outcome = measured(world_size, Case("gathered_sum"))
    rows = np.concatenate(outcome["images"])
    numbers = np.arange(1, len(rows) + 1)[:, None] * world_size  # every rank's sum weighs row n with n
    np.testing.assert_allclose(rows, np.broadcast_to(numbers, rows.shape), rtol=1e-15)
