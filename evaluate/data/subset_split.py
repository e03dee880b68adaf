"""Some classes of a split: Babel-ImageNet scores a language on the ImageNet classes it has names for.

`whole` and `indices` are there for who has encoded the whole split already, for another language or for none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from crawl2clip.errors import DataError
from evaluate.data.samples import Record, Split
from evaluate.results import hash_of


class SubsetSplit:
    """The samples of some classes, in their order, with labels counted anew."""

    random_access = True
    targets = captions = num_targets = class_names = templates = None  # other kinds of splits have these

    def __init__(self, split: Split, labels: Sequence[int], classes: Sequence[int], name: str) -> None:
        """Chooses the samples.

        Args:
            split: whole, with random access.
            labels: of all its samples.
            classes: those to keep; the first of them becomes label 0, and so on.
            name: of the choice, for messages.

        Raises:
            DataError: no sample is of these classes.
        """
        position = {label: place for place, label in enumerate(classes)}
        self.whole, self._classes = split, list(classes)
        self.indices = [index for index, label in enumerate(labels) if label in position]
        self.name = f"{split.name} ({name})"
        self.labels = [position[labels[index]] for index in self.indices]
        self.num_samples = len(self.indices)
        self.metadata: list[dict[str, str]] = []
        if not self.num_samples:
            raise DataError(
                f"{self.name}: no sample is of its {len(classes)} classes; check that the data set is the one whose "
                "classes were chosen"
            )

    def record(self, index: int) -> Record:
        """The sample at a position among those kept."""
        return replace(self.whole.record(self.indices[index]), index=index, label=self.labels[index])

    def records(self) -> Iterator[Record]:
        """All kept samples in order."""
        return map(self.record, range(self.num_samples))

    def fingerprint(self) -> str:
        """Of the whole split and of the classes kept."""
        return hash_of([self.whole.fingerprint(), self._classes])
