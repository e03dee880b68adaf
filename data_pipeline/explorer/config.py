"""The settings of `python -m data_pipeline.explorer`; values are in configs/explorer.yaml."""

from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

from crawl2clip.errors import ConfigError


class Showing(Enum):
    """What the server does with a kind of image, whoever asks."""

    show = "show"
    blur = "blur"  # a picture of a few pixels; no address
    withhold = "withhold"  # it is in no result, count or export


@dataclass(kw_only=True, slots=True)
class SafetyConfig:
    """The server's policy. No request can change it."""

    unsafe: Showing = MISSING  # images with a punsafe above max_punsafe, or of one of nsfw_words
    untagged: Showing | None = (
        MISSING  # images no safety tagger judged; null: show on loopback, blur elsewhere
    )
    max_punsafe: float = MISSING  # 0 to 1
    nsfw_words: list[str] = field(default_factory=list)  # values of the column nsfw that are unsafe
    violent_prompts: list[str] = field(default_factory=list)  # for hide_violence: nearer to one of these ...
    harmless_prompts: list[str] = field(default_factory=list)  # ... than to any of these

    def __post_init__(self) -> None:
        if isinstance(self.max_punsafe, float) and not 0 <= self.max_punsafe <= 1:
            raise ConfigError(f"safety.max_punsafe is {self.max_punsafe}; give 0 to 1")


@dataclass(kw_only=True, slots=True)
class LimitsConfig:
    """What one client, or all together, may ask for."""

    request_bytes: int = MISSING  # of the body of a request other than an image
    upload_bytes: int = MISSING  # of an image
    upload_pixels: int = MISSING  # of an image, told from its header before it is decoded
    requests_per_s: float = MISSING  # of one address, on average
    burst: int = MISSING  # requests of one address at once, above that rate
    running: int = MISSING  # requests that are worked on at a time
    waiting: int = MISSING  # requests that wait for their turn; the others are told to come back
    results: int = MISSING  # how far one search can be paged through
    export_rows: int = MISSING  # rows of one export

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, (int, float)) and value <= 0:
                raise ConfigError(f"limits.{name} is {value}; give a number above 0")


@dataclass(kw_only=True, slots=True)
class ExplorerConfig:
    """Everything the command can be told."""

    runs: list[str] = MISSING  # output folders of the pipeline with an index, searched together
    host: str = MISSING  # address to listen on; 127.0.0.1 is this machine only
    port: int = MISSING  # 0: a free one
    # Names that a request may call this server by, beside those of loopback and `host`; others are refused.
    host_names: list[str] = field(default_factory=list)
    text_search: bool = MISSING  # load the model of the embeddings, for searches by text and by upload
    model: str | None = MISSING  # where the index names none: open_clip name
    pretrained: str | None = MISSING  # its weights, if they have moved: tag, file or export folder
    device: str = MISSING  # auto, cpu or cuda
    duplicate_cosine: float = MISSING  # images at least so similar are folded into one result, 0 to 1
    safety: SafetyConfig = MISSING
    limits: LimitsConfig = MISSING

    def __post_init__(self) -> None:
        if isinstance(self.runs, list) and not self.runs:
            raise ConfigError("runs is empty; give the output folders of the pipeline, as 'runs=[data/cc10]'")
        if isinstance(self.port, int) and not 0 <= self.port <= 65_535:
            raise ConfigError(f"port is {self.port}; give 0 to 65535")
        if isinstance(self.duplicate_cosine, float) and not 0 < self.duplicate_cosine <= 1:
            raise ConfigError(f"duplicate_cosine is {self.duplicate_cosine}; give above 0, at most 1")
