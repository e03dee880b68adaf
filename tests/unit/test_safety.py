"""Skips, spikes and roll backs: decided alike on all ranks, on both sides of every limit; norms; the collector."""

import gc
import json
import math
import random
from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from crawl2clip.config import CONFIG_DIR
from crawl2clip.errors import ConfigError
from train.monitoring.garbage_collection import SteadyGarbageCollection
from train.monitoring.norms import NormWatch, l2_norms, tower_of
from train.monitoring.roll_back import RollBack, plan_roll_back
from train.monitoring.safety import Action, Guard, OnNonFinite, OnSpike, SafetyConfig, skip_flag
from train.strategies.protocol import Parts

NAN, INF = math.nan, math.inf


@dataclass(frozen=True)
class Seen:
    step: int
    loss: float = 2.0
    grad_norm: float = 1.0
    lr: float = 1e-3
    logit_scale: float = 20.0


CONFIG = SafetyConfig(
    on_non_finite=OnNonFinite.skip,
    max_skips_in_a_row=2,
    on_spike=OnSpike.roll_back,
    spike_window_steps=8,
    spike_deviations=6.0,
    min_spike=0.1,
    spike_steps=2,
    max_roll_backs=1,
    rewind_steps=100,
    min_skipped_steps=200,
    logit_scale_steps=3,
    norms_every_steps=1,
)


def guard(**changes):
    return Guard(replace(CONFIG, **changes), max_logit_scale=100.0)


def calm(watcher, steps=8):
    """Losses 2.00 to 2.07 for eight steps: median 2.035, median absolute deviation 0.02."""
    for step in range(1, steps + 1):
        assert watcher.judge(Seen(step, loss=2.0 + 0.01 * ((step - 1) % 8))).action is Action.go_on
    return watcher


@pytest.mark.parametrize(
    ("loss", "grad_norm", "skip"), [(1, 1, 0), (NAN, 1, 1), (1, INF, 1), (-INF, NAN, 1), (1e38, 0, 0)]
)
def test_the_flag_of_a_step(loss, grad_norm, skip):
    flag = skip_flag(torch.tensor(float(loss), requires_grad=True), torch.tensor([float(grad_norm)]))
    assert flag.dtype == torch.float32
    assert flag.shape == ()
    assert not flag.requires_grad
    assert flag.item() == skip


def test_one_bad_step_is_skipped_with_a_word():
    watcher = guard()
    verdict = watcher.judge(Seen(1, loss=NAN))
    assert verdict.action is Action.go_on
    assert "step 1: loss is nan" in verdict.warnings[0]
    assert "left out on all ranks (1 so far, 1 in a row)" in verdict.warnings[0]
    assert watcher.skipped == 1


def test_too_many_skips_in_a_row_stop_the_run():
    watcher = guard()
    for step in (1, 2, 4, 5):
        assert watcher.judge(Seen(step, grad_norm=INF)).action is Action.go_on
        if step == 2:
            watcher.judge(Seen(3))
    verdict = watcher.judge(Seen(6, grad_norm=INF, lr=5e-4, logit_scale=99.5))
    assert (verdict.action, verdict.since) == (Action.stop, 4)
    for words in (
        "step 6: loss is 2, gradient norm inf at learning rate 0.0005 and logit scale 99.5",
        "for the 3. step in a row, and safety.max_skips_in_a_row=2 allows no more",
        "lower optimizer.lr or optimizer.max_grad_norm, more schedule.warmup_steps",
    ):
        assert words in verdict.message


def test_stop_stops_at_once():
    verdict = guard(on_non_finite=OnNonFinite.stop).judge(Seen(7, loss=INF))
    assert verdict.action is Action.stop
    assert "safety.on_non_finite=stop" in verdict.message


def test_roll_backs_are_counted_and_run_out():
    watcher = guard(on_non_finite=OnNonFinite.roll_back)
    assert watcher.judge(Seen(9, loss=NAN)).action is Action.roll_back
    watcher.rolled_back(4)
    verdict = watcher.judge(Seen(5, loss=NAN))
    assert (verdict.action, verdict.since) == (Action.stop, 5)
    assert "rolled back 1 times already and safety.max_roll_backs=1 allows no more" in verdict.message


@pytest.mark.parametrize(
    ("loss", "loss_scale", "in_a_row"), [(2.0, 1024.0, 0), (2.0, 1.0, 1), (2.0, None, 1), (NAN, 1024.0, 1)]
)
def test_a_scaler_that_feels_for_its_limit_is_not_held_against_the_run(loss, loss_scale, in_a_row):
    watcher = guard()
    watcher.judge(Seen(1, loss=loss, grad_norm=INF), loss_scale)
    assert watcher.skipped == 1
    assert watcher.state_dict()["skips_in_a_row"] == in_a_row


# 2.035 + 6 x 1.4826 x 0.02 = 2.2129
@pytest.mark.parametrize(("loss", "high"), [(2.212, 0), (2.214, 1)])
def test_a_high_loss_on_both_sides_of_the_limit(loss, high):
    watcher = calm(guard())
    watcher.judge(Seen(9, loss=loss))
    assert watcher.state_dict()["high_in_a_row"] == high


def test_a_spike_must_last():
    watcher = calm(guard())
    actions = [watcher.judge(Seen(step, loss)).action for step, loss in ((9, 5.0), (10, 2.0), (11, 5.0))]
    assert actions == [Action.go_on] * 3
    verdict = watcher.judge(Seen(12, loss=5.0))
    assert (verdict.action, verdict.since) == (Action.roll_back, 11)
    assert "a loss spike, 2 steps in a row above" in verdict.message
    watcher.rolled_back(6)
    assert [step for step, _ in watcher.state_dict()["losses"]] == [5, 6]  # 1 to 4 left with steps 9 to 12


def test_a_spike_is_told_once_when_it_only_warns():
    watcher = calm(guard(on_spike=OnSpike.warn))
    told = [watcher.judge(Seen(step, loss=5.0)).warnings for step in (9, 10, 11)]
    assert [len(warnings) for warnings in told] == [0, 1, 0]
    assert "If it does not come back: Go on from the last checkpoint" in told[1][0]


def test_nothing_is_judged_before_the_window_is_full_and_flat_losses_have_a_margin():
    watcher = guard()
    assert calm(watcher, 7).judge(Seen(8, loss=50.0)).action is Action.go_on
    flat = guard()
    for step in range(1, 9):
        flat.judge(Seen(step, loss=2.0))
    flat.judge(Seen(9, loss=2.09))
    assert flat.state_dict()["high_in_a_row"] == 0
    flat.judge(Seen(10, loss=2.11))
    assert flat.state_dict()["high_in_a_row"] == 1


def test_noise_and_a_falling_loss_raise_no_alarm():
    watcher = Guard(replace(CONFIG, spike_window_steps=200, spike_steps=5), 100.0)
    noise = random.Random(0)
    for step in range(1, 5001):
        loss = 8.0 / math.sqrt(1 + step / 300) + noise.gauss(0, 0.05)
        assert watcher.judge(Seen(step, loss=loss)).action is Action.go_on


def test_a_stage_border_starts_a_new_window():
    watcher = calm(guard())
    watcher.forget()
    assert watcher.judge(Seen(9, loss=9.0)).action is Action.go_on
    assert watcher.state_dict()["high_in_a_row"] == 0


@pytest.mark.parametrize(
    ("scale", "words"), [(100.0, "at its clamp loss.max_logit_scale=100"), (1.0, "at 1 or below")]
)
def test_the_logit_scale_at_a_bound_is_told_once(scale, words):
    watcher = guard()
    told = [watcher.judge(Seen(step, logit_scale=scale)).warnings for step in range(1, 6)]
    assert [len(warnings) for warnings in told] == [0, 0, 1, 0, 0]
    assert words in told[2][0]
    watcher.judge(Seen(6, logit_scale=50.0))
    assert [len(watcher.judge(Seen(step, logit_scale=scale)).warnings) for step in (7, 8, 9)] == [0, 0, 1]


def test_a_restart_goes_on_as_if_nothing_had_happened():
    whole, before = calm(guard()), calm(guard())
    for watcher in (whole, before):
        watcher.judge(Seen(9, loss=NAN))
        watcher.judge(Seen(10, loss=5.0))
    after = guard()
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.judge(Seen(11, loss=5.0)) == whole.judge(Seen(11, loss=5.0))
    assert after.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_skips_in_a_row": -1}, "safety.max_skips_in_a_row is -1; give 0 or more"),
        ({"spike_window_steps": 7}, "safety.spike_window_steps is 7; give 8 or more"),
        ({"spike_deviations": 0.0}, "safety.spike_deviations is 0.0; give a number above 0"),
        (
            {"spike_steps": 4},
            "safety.spike_steps=4 is half of safety.spike_window_steps=8 or more.*at most 3 steps",
        ),
        ({"min_spike": NAN}, "safety.min_spike is nan"),
    ],
)
def test_limits_that_make_no_sense(changes, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


# Checkpoints every 50 steps of 8 samples; the spike began at step 275 and was found at 280.
@pytest.mark.parametrize(
    ("saved", "rewind", "skip", "expected"),
    [
        (
            (150, 200, 250),
            100,
            0,
            RollBack(150, 2240, 1040),
        ),  # 175 is 100 back; 130 batches were drawn since 150
        ((150, 200, 250), 100, 200, RollBack(150, 2800, 1600)),  # 200 batches from 150: up to 350
        ((150, 175), 100, 0, RollBack(175, 2240, 840)),  # exactly 100 back is far enough
        ((200, 250), 100, 0, RollBack(200, 2240, 640)),  # none is so old: the oldest
        ((250,), 0, 0, RollBack(250, 2240, 240)),
        ((275, 280), 100, 0, None),  # a checkpoint of the spike's first step holds its update
        ((), 100, 0, None),
    ],
)
def test_where_a_roll_back_goes_on(saved, rewind, skip, expected):
    plan = plan_roll_back(
        {step: 8 * step for step in saved},
        since=275, drawn=8 * 280, global_batch_size=8, rewind_steps=rewind, min_skipped_steps=skip,
    )  # fmt: skip
    assert plan == expected


def test_a_second_roll_back_starts_from_the_moved_place():
    # After a roll back to step 150 at place 2240, step 160 was saved at 2240 + 80.
    plan = plan_roll_back(
        {150: 1200, 160: 2320},
        since=170,
        drawn=2400,
        global_batch_size=8,
        rewind_steps=5,
        min_skipped_steps=3,
    )
    assert plan == RollBack(160, 2400, 80)


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("visual.transformer.resblocks.0.ln_1.weight", "image_tower"),
        ("transformer.resblocks.0.ln_1.weight", "text_tower"),
        ("text.transformer.resblocks.0.ln_1.weight", "text_tower"),
        ("token_embedding.weight", "text_tower"),
        ("positional_embedding", "text_tower"),
        ("text_projection", "text_tower"),
        ("logit_scale", "rest"),
        ("text_decoder.resblocks.0.ln_1.weight", "rest"),
    ],
)
def test_parameters_belong_to_towers(name, tower):
    assert tower_of(name) == tower


class Towers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(3, 4, dtype=torch.float64)
        self.token_embedding = torch.nn.Embedding(5, 2, dtype=torch.float64)
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))


def flat(tensors):
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).norm().item()


def parts_of(model):
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in trainable.items() if p.grad is not None}
    return Parts({name: p.detach() for name, p in trainable.items()}, gradients, None)


def test_norms_are_those_of_the_plain_formula():
    torch.manual_seed(0)
    model = Towers()
    model.visual.bias.requires_grad_(False)
    watch = NormWatch(lambda: parts_of(model), torch.device("cpu"), every_steps=10)
    assert [step for step in range(1, 31) if watch.due(step)] == [10, 20, 30]
    assert not NormWatch(lambda: parts_of(model), torch.device("cpu"), 0).due(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.visual.weight.grad = torch.randn_like(model.visual.weight)
    model.logit_scale.grad = torch.tensor(-3.0, dtype=torch.float64)
    watch.before()
    optimizer.step()
    found = {name: value.item() for name, value in watch.after().items()}
    expected = {
        "grad_norm/image_tower": flat([model.visual.weight.grad]),
        "grad_norm/text_tower": 0.0,
        "grad_norm/rest": 3.0,
        "param_norm/image_tower": flat([model.visual.weight]),
        "param_norm/text_tower": flat([model.token_embedding.weight]),
        "param_norm/rest": 3.5,
        "update_norm/image_tower": 0.5 * flat([model.visual.weight.grad]),
        "update_norm/text_tower": 0.0,
        "update_norm/rest": 1.5,
    }
    assert found == pytest.approx(expected, rel=1e-6)  # the result is float32


def test_norms_of_nothing_are_zero():
    found = l2_norms({"a": [], "b": []}, torch.device("cpu"), None)
    assert {name: value.item() for name, value in found.items()} == {"a": 0, "b": 0}


def test_the_collector_runs_every_so_many_steps_only(monkeypatch):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda *generation: collected.append(generation))
    with SteadyGarbageCollection(every_steps=3) as collection:
        assert not gc.isenabled()
        for step in range(1, 8):
            collection.step(step)
    assert gc.isenabled()
    assert collected == [(), (1,), (1,)]


@pytest.mark.parametrize("name", ["skip", "stop", "roll_back"])
def test_the_settings_files_fit(name):
    def values(file):
        found = yaml.safe_load((CONFIG_DIR / "safety" / f"{file}.yaml").read_text())
        bases = found.pop("defaults", [])
        return {key: value for base in bases for key, value in values(base).items()} | found

    config = OmegaConf.to_object(OmegaConf.merge(SafetyConfig, values(name)))
    assert config.on_non_finite.value == name
