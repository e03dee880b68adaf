"""The plan of a curriculum: steps, positions and learning rates at every border, and what it refuses."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from crawl2clip.config import CONFIG_DIR
from crawl2clip.errors import ConfigError
from train.data.text_mask import TextMask
from train.model.flops import total_budget
from train.optimization.schedule import DecayShape, ScheduleConfig, ScheduleName, scheduled_lr
from train.stage_plan import plan_stages
from train.stages import StageConfig, architecture_for, budget_parts, stage_lr, stage_of

ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 224, "patch_size": 16, "layers": 2, "width": 32},
    "text_cfg": {"context_length": 77, "width": 32, "layers": 2},
}
COSINE = ScheduleConfig(name=ScheduleName.cosine, warmup_steps=10, final_lr_fraction=0.0)
RUN = {
    "architecture": ARCHITECTURE,
    "samples_seen": 10_000,
    "num_samples": 5000,
    "global_batch_size": 100,
    "lr": 1e-3,
    "schedule": COSINE,
    "decode_size": 256,
    "world_size": 2,
}


def plan(*stages, **change):
    return plan_stages([StageConfig(**stage) for stage in stages] or None, **{**RUN, **change})


def test_without_stages_the_run_is_one():
    (stage,) = plan()
    assert (stage.number, stage.first_step, stage.num_steps, stage.last_step, stage.first_position) == (
        0,
        1,
        100,
        100,
        0,
    )
    assert (stage.image_size, stage.context_length, stage.patch_dropout) == (224, 77, 0.0)
    assert (stage.global_batch_size, stage.per_rank_batch_size, stage.samples) == (100, 50, 10_000)
    for step in (1, 10, 11, 55, 100):
        assert stage_lr(stage, COSINE, step) == scheduled_lr(step, COSINE, peak_lr=1e-3, total_steps=100)
    assert architecture_for(stage, ARCHITECTURE)["vision_cfg"] == ARCHITECTURE["vision_cfg"]


def test_stages_follow_without_a_gap_in_steps_or_positions():
    first, second, third = plan(
        {"fraction": 0.5, "image_size": 112, "context_length": 16},
        {"fraction": 0.3, "patch_dropout": 0.5, "global_batch_size": 250},
        {"fraction": 0.2},
    )
    assert [(s.first_step, s.num_steps, s.first_position) for s in (first, second, third)] == [
        (1, 50, 0),
        (51, 12, 5000),
        (63, 20, 8000),
    ]
    assert (second.image_size, third.patch_dropout) == (
        224,
        0.0,
    )  # null is the run's own, not the stage before's
    assert [stage_of([first, second, third], step).number for step in (1, 50, 51, 62, 63, 82, 83)] == [
        0, 0, 1, 1, 2, 2, 2,
    ]  # fmt: skip


def test_what_a_stage_lacks_to_a_whole_batch_the_next_one_gets():
    """1,050 samples at a batch of 100 are ten steps and 50 samples, with which the second has 90 whole ones."""
    first, second = plan({"samples_seen": 1050}, {"samples_seen": 8950})
    assert (first.num_steps, second.num_steps) == (10, 90)
    thirds = plan(*[{"fraction": 1 / 3}] * 3, samples_seen=30_000)
    assert [stage.num_steps for stage in thirds] == [100, 100, 100]


def test_stages_without_an_lr_share_the_runs_schedule():
    stages = plan({"fraction": 0.5, "image_size": 112}, {"fraction": 0.5})
    found = [stage_lr(stage_of(stages, step), COSINE, step) for step in range(1, 101)]
    assert found == [scheduled_lr(step, COSINE, peak_lr=1e-3, total_steps=100) for step in range(1, 101)]


def test_a_stage_with_an_lr_begins_a_schedule_that_the_next_goes_on_with():
    stages = plan(
        {"fraction": 0.4},
        {"fraction": 0.4, "lr": 1e-4, "warmup_steps": 5},
        {"fraction": 0.2, "image_size": 112},
    )
    found = [stage_lr(stage_of(stages, step), COSINE, step) for step in range(1, 101)]
    assert found[:40] == [scheduled_lr(step, COSINE, peak_lr=1e-3, total_steps=40) for step in range(1, 41)]
    own = ScheduleConfig(name=ScheduleName.cosine, warmup_steps=5, final_lr_fraction=0.0)
    assert found[40:] == [scheduled_lr(step, own, peak_lr=1e-4, total_steps=60) for step in range(1, 61)]
    assert found[40] == pytest.approx(2e-5)
    assert found[44] == found[45] == 1e-4


def test_the_architecture_of_a_stage():
    first, second = plan(
        {"fraction": 0.5, "image_size": 112, "context_length": 16, "patch_dropout": 0.5}, {"fraction": 0.5}
    )
    small = architecture_for(first, ARCHITECTURE)
    assert small["vision_cfg"] == {**ARCHITECTURE["vision_cfg"], "image_size": 112, "patch_dropout": 0.5}
    assert small["text_cfg"] == {**ARCHITECTURE["text_cfg"], "context_length": 16}
    assert architecture_for(second, ARCHITECTURE) == ARCHITECTURE
    assert ARCHITECTURE["vision_cfg"]["image_size"] == 224  # a copy was changed


def test_a_small_first_stage_saves_what_its_tokens_say():
    staged = plan({"fraction": 0.9, "image_size": 112, "context_length": 16}, {"fraction": 0.1})
    whole, parts = (
        total_budget(budget_parts(plan(), ARCHITECTURE), text_tokens=77),
        budget_parts(staged, ARCHITECTURE),
    )
    assert [samples for _, samples in parts] == [9000, 1000]
    assert total_budget(parts, text_tokens=77) < 0.4 * whole


@pytest.mark.parametrize(
    ("name", "samples_seen", "expected"),
    [
        ("clipa", 2_315_000_000, [(112, 16, 0.0, 65536, 2.048e-3), (224, 16, 0.0, 8192, 2.56e-5)]),
        ("flip", 12_928_000_000, [(224, 77, 0.5, 65536, 1.024e-3), (224, 77, 0.0, 65536, 1.024e-4)]),
    ],
)
def test_recipes(name, samples_seen, expected):
    with initialize_config_dir(str(CONFIG_DIR / "curriculum"), version_base="1.3"):
        values = OmegaConf.to_object(compose(name).stages)
    big = {"samples_seen": samples_seen, "num_samples": 400_000_000, "world_size": 8}
    stages = plan(*values, **big)
    assert [
        (s.image_size, s.context_length, s.patch_dropout, s.global_batch_size, s.peak_lr) for s in stages
    ] == expected
    assert sum(stage.samples for stage in stages) == pytest.approx(samples_seen, rel=1e-4)
    if name == "clipa":
        assert stages[1].samples == pytest.approx(131_072_000, rel=1e-3)  # --train-num-samples of their tune


@pytest.mark.parametrize(
    ("stages", "change", "message"),
    [
        (
            [{"fraction": 0.5}, {"fraction": 0.4}],
            {},
            r"the stages' fractions are 0.5 \+ 0.4 = 0.9; make them add up to 1",
        ),
        (
            [{"samples_seen": 4000}, {"samples_seen": 5000}],
            {},
            r"the stages see 9000 samples \(4000 \+ 5000\), the run 10000; set train.samples_seen=9000, or "
            "change a stage",
        ),
        (
            [{"samples_seen": 4000}, {"fraction": 0.6}],
            {},
            "1 stages give a fraction and 1 give samples_seen; give the same for all",
        ),
        (
            [{"fraction": 0.99}, {"fraction": 0.005}, {"fraction": 0.005}],
            {},
            "stage 1 has 50 samples, less than one batch of 100; give it a longer fraction or "
            "samples_seen, or a smaller global_batch_size",
        ),
        (
            [{"fraction": 1.0, "global_batch_size": 101}],
            {},
            "global batch 101 in stage 0 is not divisible by 2 ranks; set it to 100 or 102",
        ),
        (
            [{"fraction": 1.0, "global_batch_size": 6000}],
            {},
            "global batch 6000 in stage 0 is more than the 5000 usable samples of the data; set it to 5000 "
            "or less, or add data",
        ),
        (
            [{"fraction": 1.0, "image_size": 100}],
            {},
            "image size 100 in stage 0 is not a multiple of the model's 16-pixel patches; give 96 or 112",
        ),
        (
            [{"fraction": 1.0, "image_size": 336}],
            {},
            "image size 336 in stage 0 is above data.decode_size=256, so images would be enlarged; "
            "set data.decode_size=336 or more",
        ),
        (
            [{"fraction": 1.0, "patch_dropout": 0.5}],
            {"architecture": {**ARCHITECTURE, "vision_cfg": {"layers": [3, 4, 6, 3], "image_size": 224}}},
            "patch_dropout=0.5 in stage 0 has no effect on a ResNet, which has no patches; "
            "leave it null, or take a ViT",
        ),
        (
            [{"fraction": 1.0, "text_mask": TextMask.block}],
            {},
            "text_mask=block in stage 0 has nothing to leave out: the stage's context_length is 77 and the model's own "
            "77; give the stage a shorter one, or leave text_mask null",
        ),
        (
            [{"fraction": 1.0, "text_mask": TextMask.random, "context_length": 16}],
            {"architecture": {**ARCHITECTURE, "text_cfg": {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}},
            "text_mask=random in stage 0 keeps the marks of start and end of CLIP's own tokenizer, and this model has "
            "timm/ViT-B-16-SigLIP's; leave text_mask null",
        ),
        (
            [{"fraction": 0.9}, {"fraction": 0.1, "lr": 1e-4, "warmup_steps": 10}],
            {},
            "schedule.warmup_steps=10 does not end before the 10 steps of stage 1; give fewer warm-up steps or make "
            "stage 1 longer",
        ),
        (
            [{"fraction": 0.8, "lr": 1e-4, "warmup_steps": 10}, {"fraction": 0.1}, {"fraction": 0.1}],
            {
                "schedule": ScheduleConfig(
                    name=ScheduleName.wsd,
                    warmup_steps=0,
                    final_lr_fraction=0.0,
                    cooldown_fraction=0.95,
                    decay_shape=DecayShape.linear,
                )
            },
            "schedule.warmup_steps=10 and the 95 steps of schedule.cooldown_fraction=0.95 are more than the 100 "
            "steps of the run; give less of either or make the run longer",
        ),
    ],
)
def test_plans_that_do_not_fit(stages, change, message):
    with pytest.raises(ConfigError, match=message):
        plan(*stages, **change)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a stage has fraction=None and samples_seen=None; give exactly one of them"),
        (
            {"fraction": 0.5, "samples_seen": 10},
            "a stage has fraction=0.5 and samples_seen=10; give exactly one",
        ),
        ({"fraction": 0.0}, "a stage has fraction=0.0; give a fraction above 0 up to 1"),
        ({"fraction": 1.0, "context_length": 2}, "a stage has context_length=2; give 3 or more"),
        (
            {"fraction": 1.0, "patch_dropout": 1.0},
            "a stage has patch_dropout=1.0; give a fraction from 0 to below 1",
        ),
        (
            {"fraction": 1.0, "lr": -1.0, "warmup_steps": 0},
            "a stage has lr=-1.0; give a peak learning rate above 0",
        ),
        (
            {"fraction": 1.0, "lr": 1e-4},
            "a stage has lr=0.0001 and warmup_steps=None; give both, for a schedule of its own, or neither",
        ),
    ],
)
def test_stage_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        StageConfig(**values)
