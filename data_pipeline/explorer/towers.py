"""The model of the embeddings, for queries: texts by any text tower that matches the images, and uploaded images.

It must be the model that made the index. By weights where their hash is known, else by name and tag; another one is
refused with both names, since its similarities would be noise that looks like results.
"""

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline.clip_models import SentenceTextTower, TextTower, weights_fingerprint
from data_pipeline.explorer.library import model_name

if TYPE_CHECKING:
    from PIL.Image import Image

_REMEMBERED = 2_000  # texts


class Towers:
    """Texts and images to unit vectors; thread-safe, one forward pass at a time."""

    def __init__(
        self, indexed: dict[str, Any], *, model: str | None, pretrained: str | None, device: str
    ) -> None:
        """Loads the image tower's model; other text towers when they are first asked for.

        Args:
            indexed: the model's record in the index.
            model: open_clip name; None: as the index has it.
            pretrained: weights; None: where they were when the data was tagged.
            device: auto, cpu or cuda.

        Raises:
            ConfigError: it is another model than the index's.
            DataError: weights that are missing or cannot be read.
        """
        from crawl2clip.distributed import pick_device
        from crawl2clip.encoder import load_encoder

        asked = {
            "model": model or indexed["model"],
            "pretrained": pretrained or indexed["pretrained"],
        }
        asked["weights_sha256"] = weights_fingerprint(asked["pretrained"])
        check_same(indexed, asked)
        self._names: dict[str, str | None] = indexed["towers"]
        self._device = pick_device(device, 0)
        self._encoder = load_encoder(asked["model"], asked["pretrained"], device=self._device)
        self._text_towers: dict[str | None, TextTower] = {None: self._encoder}
        self._texts: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._lock = Lock()

    @property
    def dim(self) -> int:
        """Of the vectors."""
        return self._encoder.embed_dim

    @property
    def names(self) -> list[str]:
        """The text towers, the default first."""
        return list(self._names)

    def encode_text(self, text: str, tower: str | None = None) -> np.ndarray:
        """[D] float32, of length one.

        Raises:
            ConfigError: there is no tower of that name.
        """
        name = tower or self.names[0]
        if name not in self._names:
            raise ConfigError(unknown_name("text tower", name, self.names))
        with self._lock:
            found = self._texts.get((name, text))
            if found is None:
                source = self._names[name]
                if source not in self._text_towers:
                    assert source is not None
                    self._text_towers[source] = SentenceTextTower(source, self._device)
                found = self._text_towers[source].encode_texts([text]).numpy()[0]
                self._texts[name, text] = found
            self._texts.move_to_end((name, text))
            if len(self._texts) > _REMEMBERED:
                self._texts.popitem(last=False)
        return found

    def encode_image(self, image: "Image") -> np.ndarray:
        """[D] float32, of length one."""
        pixels = self._encoder.preprocess(image)[None]
        with self._lock:
            return self._encoder.encode_images(pixels).numpy()[0]


def check_same(indexed: dict[str, Any], asked: dict[str, Any]) -> None:
    """Refuses a model that did not make the index's embeddings.

    Raises:
        ConfigError: it is another one, or one that cannot be told to be the same.
    """
    if indexed["weights_sha256"] is not None or asked["weights_sha256"] is not None:
        same = indexed["weights_sha256"] == asked["weights_sha256"]
    else:
        same = (indexed["model"], indexed["pretrained"]) == (asked["model"], asked["pretrained"])
    if not same:
        raise ConfigError(
            f"the index was made with {model_name(indexed)}, the model to search it with is {model_name(asked)}; their "
            "embeddings cannot be compared. Give model and pretrained of the first one, or tag and index again"
        )
