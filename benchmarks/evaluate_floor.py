"""The least that benchmarks/evaluate.py's work can cost: `python evaluate_floor.py FOLDER SETTINGS.json`.

Every distinct text once through the text tower, sorted by length so that a batch is cut close to each of its texts, and
every image decoded, preprocessed and encoded once; open_clip's towers in fp32, nothing kept, nothing scored. Imports
and loading the model are left out. The last line printed is JSON: seconds of "classifier" and "whole".
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import open_clip
import torch
from evaluate_runs import FEW_CLASSES, MANY, RETRIEVAL, ZERO_SHOT

from evaluate.data.prompts import (
    CLASS_NAMES_FILE,
    TEMPLATES_FILE,
    make_prompts,
    read_class_names,
    read_templates,
)
from evaluate.data.tar_split import TarSplit

_BATCH = 128


def main(folder: Path, settings: dict[str, Any]) -> None:
    """Times both and prints."""
    device = settings["device"]
    clock = time.perf_counter if device == "cuda" else time.process_time

    def seconds(model: str, work: Callable[[Any, Any, Any], None]) -> float:
        loaded, _, preprocess = open_clip.create_model_and_transforms(
            model, pretrained=str(folder / f"{model}.pt")
        )
        loaded, tokenizer = loaded.to(device).eval(), open_clip.get_tokenizer(model)
        start = clock()
        with torch.inference_mode():
            work(loaded, tokenizer, preprocess)
            if device == "cuda":
                torch.cuda.synchronize()
        return clock() - start

    def classifier(model: Any, tokenizer: Any, _: Any) -> None:
        prompts = _prompts(folder / "data" / MANY)
        encode_texts(
            model, tokenizer, [text for of_class in prompts[FEW_CLASSES:] for text in of_class], device
        )

    def whole(model: Any, tokenizer: Any, preprocess: Any) -> None:
        data = folder / "data"
        texts = [text for name in ZERO_SHOT for of_class in _prompts(data / name) for text in of_class]
        told = TarSplit(data / RETRIEVAL, "test", with_labels=False, with_captions=True)
        texts += [caption for of_image in told.captions or [] for caption in of_image]
        encode_texts(model, tokenizer, texts, device)
        scored = (*ZERO_SHOT, RETRIEVAL)
        for split in (tar.parent for tar in sorted(data.glob("*/*/0.tar")) if tar.parts[-3] in scored):
            images = TarSplit(split.parent, split.name, with_labels=False, with_captions=False)
            encode_images(model, (preprocess(record.image) for record in images.records()), device)

    times = {
        "classifier": seconds(settings["classifier_model"], classifier),
        "whole": seconds(settings["model"], whole),
    }
    print(json.dumps(times))


def encode_texts(model: Any, tokenizer: Any, texts: Iterable[str], device: str) -> None:
    """Each distinct text, cut to the longest of its batch; open_clip's CLIP.encode_text step by step."""
    tokens = tokenizer(list(dict.fromkeys(texts)))
    ends = tokens.argmax(dim=-1)  # where the last mark stands, the highest token
    for rows in ends.argsort().split(_BATCH):
        length = int(ends[rows].max()) + 1
        cut = tokens[rows, :length].to(device)
        x = model.token_embedding(cut) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        _ = x[torch.arange(len(cut)), cut.argmax(dim=-1)] @ model.text_projection


def encode_images(model: Any, images: Iterator[torch.Tensor], device: str) -> None:
    """Preprocessed images, in batches."""
    batch: list[torch.Tensor] = []
    for image in images:
        batch.append(image)
        if len(batch) == _BATCH:
            model.encode_image(torch.stack(batch).to(device))
            batch = []
    if batch:
        model.encode_image(torch.stack(batch).to(device))


def _prompts(folder: Path) -> list[list[str]]:
    names, templates = read_class_names(folder / CLASS_NAMES_FILE), read_templates(folder / TEMPLATES_FILE)
    assert isinstance(names, list)  # evaluate_sets.py writes one a line
    return make_prompts(names, templates, folder.name).per_class()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
