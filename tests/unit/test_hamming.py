"""Near hashes: every pair within the radius is found, whatever the bands, and nothing else."""

from math import comb

import numpy as np
import pytest

from data_pipeline.taggers import hamming
from data_pipeline.taggers.hamming import HammingIndex, distances, masks_for, smallest_neighbours


def planted(rows, radius, seed=0):
    """Random hashes, half of them a few bits, up to two more than the radius, from another; shuffled."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(2**64, size=rows, dtype=np.uint64)
    for row in range(rows // 2, rows):
        bits = rng.choice(64, size=rng.integers(0, radius + 3), replace=False)
        hashes[row] = int(hashes[rng.integers(rows // 2)]) ^ sum(1 << int(bit) for bit in bits)
    return rng.permutation(hashes)


def brute(hashes, radius):
    """The first hash before each that is near, or its own place."""
    bits = np.array([[bin(int(a) ^ int(b)).count("1") for b in hashes] for a in hashes])
    return [int(np.flatnonzero(bits[row, : row + 1] <= radius)[0]) for row in range(len(hashes))]


@pytest.mark.parametrize(
    ("radius", "rows"), [(0, 10), (1, 10), (4, 10), (4, 10**6), (4, 10**9), (9, 10**7), (15, 10**8)]
)
def test_the_masks_of_a_choice_cover_what_the_proof_needs(radius, rows):
    masks = masks_for(radius, rows)
    bands = next(number for number in range(radius + 1, 65) if comb(number, radius) == len(masks))
    whole = hamming._bands(bands)
    assert sum(whole) == 2**64 - 1  # each bit is in one band
    chosen = {frozenset(place for place, band in enumerate(whole) if band & mask) for mask in masks}
    assert all(sum(whole[place] for place in places) in masks for places in chosen)
    assert chosen
    assert {len(places) for places in chosen} == {bands - radius}
    assert len(masks) <= 128


@pytest.mark.parametrize("radius", [0, 1, 3, 8])
@pytest.mark.parametrize("more", [0, 1])
def test_all_near_pairs_meet_in_some_choice_of_bands(radius, more, monkeypatch):
    hashes = planted(300, radius)
    monkeypatch.setattr(hamming, "_key_bits", lambda chosen, _: 0 if chosen < radius + 1 + more else 64)
    masks = masks_for(radius, 10**6)
    assert len(masks) == comb(radius + 1 + more, radius)
    found = np.min([smallest_neighbours(hashes, hashes & np.uint64(mask), radius) for mask in masks], axis=0)
    assert found.tolist() == brute(hashes, radius)


def test_large_groups_are_compared_in_blocks(monkeypatch):
    monkeypatch.setattr(hamming, "_SHIFTED", 8)
    monkeypatch.setattr(hamming, "_BLOCK", 7)
    hashes = planted(120, 3, seed=1)
    keys = np.where(np.arange(120) % 3 == 0, 5, 9).astype(np.uint64)
    found = smallest_neighbours(hashes, keys, 3)
    for group in (5, 9):
        places = np.flatnonzero(keys == group)
        assert found[places].tolist() == places[brute(hashes[places], 3)].tolist()


def test_nothing_has_no_neighbours():
    none = np.zeros(0, np.uint64)
    assert len(smallest_neighbours(none, none, 3)) == 0
    assert HammingIndex(none, 3).first_within(np.zeros(2, np.uint64)).tolist() == [-1, -1]


def test_distances_without_numpys_own_count(monkeypatch):
    first, second = planted(50, 4), planted(50, 4, seed=2)
    expected = [bin(int(a) ^ int(b)).count("1") for a, b in zip(first, second, strict=True)]
    assert distances(first, second).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert distances(first, second).tolist() == expected


def test_an_index_tells_the_first_reference_within_the_radius():
    references = planted(100, 4, seed=3)
    asked = np.concatenate([references[::3] ^ np.uint64(0b10001), planted(40, 4, seed=4)])
    found = HammingIndex(references, 4).first_within(asked)
    near = [[bin(int(a) ^ int(b)).count("1") <= 4 for b in references] for a in asked]
    assert found.tolist() == [row.index(True) if any(row) else -1 for row in near]
