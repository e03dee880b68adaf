"""How far a sweep is and how long the rest takes."""

from evaluate.sweep import Sweep, duration


def test_the_rest_is_estimated_by_images_and_not_by_sets(caplog):
    caplog.set_level("INFO")
    times = iter([0.0, 10.0, 10.5, 130.5, 140.0])
    sweep = Sweep(4, 1000, lambda: next(times))
    assert sweep.finished("a", 100) == "a done (1 of 4) in 10 s; 900 of 1000 images left, about 90 s".replace(
        "90 s", "2 min"
    )
    # What was on disk already says nothing about the speed: 10.5 s for 100 images so far.
    assert (
        sweep.finished("b", 300, reused=True) == "b done (2 of 4) in 0 s; 600 of 1000 images left, about 63 s"
    )
    assert sweep.finished("c", 500) == "c done (3 of 4) in 2 min; 100 of 1000 images left, about 22 s"
    assert sweep.finished("d", 100) == "d done (4 of 4) in 10 s"
    assert caplog.messages[-1] == "d done (4 of 4) in 10 s"


def test_nothing_is_estimated_before_anything_was_done():
    sweep = Sweep(2, 20, lambda: 0.0)
    assert sweep.finished("a", 10, reused=True) == "a done (1 of 2) in 0 s"


def test_times_as_people_say_them():
    assert [duration(s) for s in (0.4, 89, 90, 3600, 89 * 60, 90 * 60, 12_000)] == [
        "0 s", "89 s", "2 min", "60 min", "89 min", "1 h 30 min", "3 h 20 min",
    ]  # fmt: skip
