"""From the command line to a typed object, and the words a user meets when it fails."""

import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from crawl2clip.config import typed
from crawl2clip.errors import ConfigError
from crawl2clip.models import ModelConfig

ROOT = Path(__file__).resolve().parents[2]

COMMAND = """
    import sys
    from dataclasses import dataclass
    from enum import Enum
    from pathlib import Path
    from omegaconf import MISSING
    from crawl2clip import config
    from crawl2clip.errors import ConfigError

    class Kind(Enum):
        small = 0
        large = 1

    @dataclass
    class Inner:
        learning_rate: float = MISSING
        kind: Kind = Kind.small
        def __post_init__(self):
            if self.learning_rate < 0:
                raise ConfigError(f"inner.learning_rate is {self.learning_rate}; give 0 or more")

    @dataclass
    class Root:
        inner: Inner = MISSING
        folder: str = MISSING

    def run(settings, composed):
        print("ran with", settings.inner.learning_rate, settings.inner.kind.name, settings.folder)
        return 3 if settings.folder == "three" else None

    config.CONFIG_DIR = Path(sys.argv.pop(1))
    config.command("toy", Root, run)
"""
TOY = """
defaults: [toy_schema, _self_]
inner: {learning_rate: 0.1}
hydra: {run: {dir: .}, output_subdir: null, job: {chdir: false}}
"""


@pytest.fixture
def toy(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    (tmp_path / "kinds").mkdir()
    for name in ("small", "big"):
        (tmp_path / "kinds" / f"{name}.yaml").write_text("")
    (tmp_path / "toy.py").write_text(textwrap.dedent(COMMAND))

    def run(*words):
        command = [sys.executable, str(tmp_path / "toy.py"), str(tmp_path), *words]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_command_runs_with_typed_settings_and_returns_its_status(toy):
    status, out, _ = toy("folder=x", "inner.kind=large")
    assert (status, out) == (0, "ran with 0.1 large x\n")
    assert toy("folder=three")[0] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["inner.learning_rte=1", "folder=x"],
            "unknown setting 'learning_rte'; did you mean 'learning_rate'? Known: kind",
        ),
        ([], "settings without a value: folder; give each on the command line, for example folder=..."),
        (["folder=x", "inner.learning_rate=-1"], "inner.learning_rate is -1.0; give 0 or more"),
        (["folder=x", "inner.learning_rate=fast"], "'fast' of type 'str' could not be converted to Float"),
        (
            ["folder=x", "kinds=true"],
            "kinds takes the name of a file in configs/kinds; give one of big, small, or",
        ),
        (["folder=x", "inner.kind=huge"], "expected one of [small, large]"),
    ],
)
def test_what_a_user_gets_wrong_is_one_clear_line_and_status_2(toy, words, message):
    status, out, err = toy(*words)
    assert status == 2, err
    assert not out
    line = err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "Traceback" not in err


@dataclass
class Inner:
    kinds: list[str] = field(default_factory=list)

    def __post_init__(self):
        sorted(self.kinds)


@dataclass
class Root:
    number: int = 3
    other: int = 4
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"other": "${nmber}"},
            "setting other cannot be used: Interpolation key 'nmber' not found; correct it",
        ),
        (
            {"inner": {"kinds": "${number}"}},
            "setting inner cannot be used: .*not iterable; correct .* taken from",
        ),
    ],
)
def test_a_value_taken_from_another_setting_that_does_not_fit(changes, message):
    with pytest.raises(ConfigError, match=message) as raised:
        typed(DictConfig(OmegaConf.merge(OmegaConf.structured(Root), changes)), Root)
    assert "\n" not in str(raised.value)


def test_typed_passes_a_components_own_error_on():
    config = OmegaConf.structured(ModelConfig(name="x"))
    OmegaConf.set_struct(config, False)
    config.architecture = {"embed_dim": 3}
    with pytest.raises(ConfigError, match=r"model\.architecture of 'x' lacks vision_cfg"):
        typed(config, ModelConfig)
