"""Draws from labelled features: nested, balanced, the same for the same seed."""

import torch

from evaluate.tasks.labelled import places_in_class, stratified_rows


def test_places_count_each_class_from_zero():
    labels = torch.tensor([1, 0, 1, 1, 4, 0])
    assert places_in_class(labels, seed=None).tolist() == [0, 0, 1, 2, 0, 1]
    for seed in (0, 1):
        places = places_in_class(labels, seed)
        assert all(
            sorted(places[labels == label].tolist()) == list(range(count))
            for label, count in ((0, 2), (1, 3), (4, 1))
        )


def test_the_order_is_the_seeds():
    labels = torch.zeros(50, dtype=torch.int64)
    assert places_in_class(labels, 3).tolist() == places_in_class(labels, 3).tolist()
    assert places_in_class(labels, 3).tolist() != places_in_class(labels, 4).tolist()


def test_a_draw_keeps_the_classes_shares_and_never_loses_one():
    labels = torch.tensor([0] * 600 + [1] * 300 + [2] * 99 + [3])
    rows = stratified_rows(labels, 100, seed=0)
    assert torch.bincount(labels[rows]).tolist() == [60, 30, 10, 1]
    assert rows.tolist() == sorted(set(rows.tolist()))


def test_a_small_set_is_taken_whole():
    assert stratified_rows(torch.tensor([2, 0, 2]), 3, seed=0).tolist() == [0, 1, 2]
    assert stratified_rows(torch.empty(0, dtype=torch.int64), 3, seed=0).tolist() == []
