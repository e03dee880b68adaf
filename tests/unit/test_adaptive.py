import asyncio

from data_pipeline.adaptive import AdaptiveLimit


def run(limit: AdaptiveLimit, *, per_second: float, timeouts: float, seconds: float, start: float) -> float:
    """Outcomes at a steady rate, a share of them time-outs; the clock when they end."""
    number = int(per_second * seconds)
    for index in range(number):
        timed_out = int(index * timeouts) != int((index + 1) * timeouts)
        limit._was_full = True  # there is always more to do
        limit.observe(timed_out=timed_out, now=start + index / per_second)
    return start + seconds


def test_the_limit_grows_while_more_brings_more():
    limit, now, sizes = AdaptiveLimit(200), 0.0, []
    for _ in range(8):
        now = run(limit, per_second=2.0 * limit.limit, timeouts=0.0, seconds=3, start=now)
        sizes.append(limit.limit)
    assert sizes == sorted(sizes)
    assert sizes[-1] == 200


def test_it_stays_where_more_brings_nothing():
    limit, now = AdaptiveLimit(1000), 0.0
    for _ in range(20):
        now = run(limit, per_second=min(2.0 * limit.limit, 100), timeouts=0.0, seconds=3, start=now)
    assert 50 <= limit.limit <= 150


def test_a_rise_of_timeouts_shrinks_it_and_never_below_the_floor():
    limit = AdaptiveLimit(64)
    now = run(limit, per_second=50, timeouts=0.0, seconds=3, start=0.0)
    before = limit.limit
    now = run(limit, per_second=50, timeouts=0.5, seconds=3, start=now)
    assert limit.limit < before
    for _ in range(30):
        now = run(limit, per_second=50, timeouts=0.95, seconds=3, start=now)
    assert limit.limit >= 16


def test_dead_hosts_do_not_shrink_it_for_ever():
    limit, now = AdaptiveLimit(400), 0.0
    for _ in range(40):
        now = run(limit, per_second=2.0 * limit.limit, timeouts=0.4, seconds=3, start=now)
    assert limit.limit == 400


def test_no_more_than_the_limit_are_inside_and_a_cancelled_one_leaves_its_place():
    async def main() -> None:
        limit = AdaptiveLimit(2)
        inside = most = 0

        async def one(seconds: float) -> None:
            nonlocal inside, most
            async with limit:
                inside += 1
                most = max(most, inside)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(one(60)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(asyncio.gather(*(one(0.001) for _ in range(20))), 10)
        assert (most, inside) == (2, 0)

    asyncio.run(main())
