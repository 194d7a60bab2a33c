"""What is known of data that batches are drawn from one by one, without drawing any."""

from __future__ import annotations

from typing import Any, NamedTuple

from client_callback.host_view import library_of

_ORDERED = {
    *("TensorSlice", "Tensor", "Range", "Zip"),
    *(
        "Batch",
        "ParallelBatch",
        "Map",
        "ParallelMap",
        "Prefetch",
        "Options",
        "Cache",
        "Repeat",
        "Take",
        "Skip",
    ),
    *("Filter", "Enumerate", "Shard", "Unbatch", "Concatenate", "Rebatch", "AssertCardinality", "Model"),
}
"""tf.data's own steps that give the same examples in the same order each time."""
_ONE_TO_ONE = {"Map", "ParallelMap", "Prefetch", "Options", "Model"}
_BATCHES = {"Batch", "ParallelBatch"}


class Source(NamedTuple):
    """`None`: not known."""

    name: str
    examples: int | None = None
    batch_size: int | None = None
    shuffled: bool | None = None
    weighted: bool = False


def source_of(data: Any) -> Source:
    """Of what `fit` was given instead of arrays."""
    name = type(data).__name__
    if hasattr(data, "element_spec") and library_of(data) == "tensorflow":
        return _of_tf_data(data)
    if library_of(data) == "torch" and name == "DataLoader":
        return _of_data_loader(data)
    return Source(name)


def _of_tf_data(dataset: Any) -> Source:
    spec = dataset.element_spec
    weighted = isinstance(spec, tuple) and len(spec) == 3
    try:
        return Source("tf.data", *_batches_of(dataset), _shuffled(dataset), weighted)
    except (AttributeError, TypeError, ValueError):  # another TensorFlow's
        return Source("tf.data", weighted=weighted)


def _batches_of(dataset: Any) -> tuple[int | None, int | None]:
    """(examples, examples in a batch), where the last steps are Keras' usual ones."""
    while _step(dataset) in _ONE_TO_ONE:
        (dataset,) = dataset._inputs()
    if _step(dataset) not in _BATCHES:
        return None, None
    (single,) = dataset._inputs()
    examples, size = int(single.cardinality()), int(dataset._batch_size)
    return (examples if examples >= 0 else None), size


def _shuffled(dataset: Any) -> bool | None:
    """Whether some step shuffles anew each time. `None`: one of them may, or may not."""
    known = True
    waiting = [dataset]
    while waiting:
        part = waiting.pop()
        step = _step(part)
        if step == "Shuffle":
            return bool(getattr(part, "_reshuffle_each_iteration", True))
        if step == "Cache":
            continue  # what was shuffled before it comes in that order ever after
        known = known and step in _ORDERED
        waiting += part._inputs()
    return False if known else None


def _step(dataset: Any) -> str:
    """`Batch` of a `_BatchDataset`. Of datasets of the user's own the name tells nothing."""
    own = type(dataset).__module__.startswith("tensorflow.")
    return type(dataset).__name__.strip("_").removesuffix("Dataset").removesuffix("V2") if own else ""


def _of_data_loader(loader: Any) -> Source:
    size = getattr(loader, "batch_size", None)
    shuffled = {"RandomSampler": True, "SequentialSampler": False}.get(type(loader.sampler).__name__)
    tensors = getattr(loader.dataset, "tensors", None) if library_of(loader.dataset) == "torch" else None
    examples = int(tensors[0].shape[0]) if tensors else None
    weighted = tensors is not None and len(tensors) == 3
    return Source("DataLoader", examples, size if isinstance(size, int) else None, shuffled, weighted)
