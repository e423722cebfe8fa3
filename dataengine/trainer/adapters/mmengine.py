"""mmengine and xtuner: the dataset in their registries, and a train loop that resumes without replaying.

Importing it registers `ShardDataset` (datasets), `OpenUniSample` (transforms) and `ResumableTrainLoop` (loops) with
mmengine, and `ShardDataset` with xtuner's builder, which is a root of its own, where xtuner is installed. mmengine's
own loop takes one batch from the data for every past iteration when it resumes; this one takes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import DATASETS, FUNCTIONS, LOOPS, TRANSFORMS
from mmengine.runner import IterBasedTrainLoop

from dataengine.errors import ConfigError, InputError
from dataengine.trainer.adapters.openuni import OpenUniSample
from dataengine.trainer.adapters.stream import Stream
from dataengine.trainer.dataset import ShardDataset
from dataengine.trainer.loader import DataLoader
from dataengine.trainer.ranks import rank_and_world_size

ENTRY = "dataengine"  # of a checkpoint, beside state_dict, optimizer and meta


def build_dataset(**config: Any) -> ShardDataset:
    """A `ShardDataset`; its `transform`, and that one's `tokenizer`, may be dicts with a `type`, as in configs."""
    return ShardDataset(**_with_transform(config))


DATASETS.register_module(name="ShardDataset", module=build_dataset)
TRANSFORMS.register_module(name="OpenUniSample", module=OpenUniSample)
try:
    from xtuner.registry import BUILDER
except ImportError:  # mmengine alone
    pass
else:
    BUILDER.register_module(name="ShardDataset", module=build_dataset)


def build_loader(config: Mapping[str, Any]) -> DataLoader:
    """A loader of a `train_dataloader` dict: `dataset`, and arguments of DataLoader.

    `batch_size` is mmengine's, of one rank; `global_batch_size` may be given instead. `collate_fn` may be a dict with a
    `type`, as in mmengine. Raises ConfigError for a sampler, which the loader has no use for.
    """
    given = dict(config)
    for name in ("sampler", "batch_sampler"):
        if given.pop(name, None) is not None:
            raise ConfigError(f"train_dataloader: {name} given; the order is the loader's own, so leave it out")
    dataset = given.pop("dataset")
    if isinstance(dataset, Mapping):
        dataset = DATASETS.build(_with_transform(dataset))
    if "batch_size" in given:
        given["global_batch_size"] = given.pop("batch_size") * rank_and_world_size()[1]
    if isinstance(given.get("collate_fn"), Mapping):
        given["collate_fn"] = _function(given["collate_fn"])
    return DataLoader(dataset, **given)


class PositionHook(Hook):
    """Writes the position into every checkpoint, and keeps the one of a checkpoint that is loaded."""

    priority = "VERY_HIGH"

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.loaded: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Called by mmengine on the rank that saves."""
        checkpoint[ENTRY] = self._stream.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Called by mmengine on every rank, also where only weights are wanted."""
        self.loaded = checkpoint.get(ENTRY)


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's IterBasedTrainLoop that goes on at the checkpoint's position, on any number of ranks, at once.

    `dataloader` is a dict for `build_loader`, or a DataLoader; `max_iters` or `max_epochs` says how long. Raises
    InputError on resuming from a checkpoint without a position.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Mapping[str, Any] | DataLoader,
        max_iters: int | None = None,
        max_epochs: int | None = None,
        **kwargs: Any,
    ) -> None:
        if (max_iters is None) == (max_epochs is None):
            raise ConfigError(f"ResumableTrainLoop: max_iters={max_iters}, max_epochs={max_epochs}; wanted one of them")
        stream = Stream(build_loader(dataloader) if isinstance(dataloader, Mapping) else dataloader)
        iterations = max_iters if max_iters is not None else (max_epochs or 0) * len(stream)
        super().__init__(runner, stream, iterations, **kwargs)
        self._stream = stream
        self._hook = PositionHook(stream)
        runner.register_hook(self._hook)

    def run(self) -> Any:
        """Train from where the checkpoint says to `max_iters`."""
        past = self._iter
        if past > 0:
            if self._hook.loaded is None:
                raise InputError(
                    f"the checkpoint of iteration {past} has no entry {ENTRY!r}: it was saved by another loop. Train "
                    "with load_from instead of resume to begin the data anew with its weights"
                )
            self._stream.load_state_dict(self._hook.loaded)
        # The base class takes and drops a batch for each past iteration: here it gets that many of nothing.
        self.dataloader_iterator = _after_nothing(past, self._stream.endless)
        try:
            return super().run()
        finally:
            self._stream.loader.close()


def _after_nothing(count: int, batches: Iterator[Any]) -> Iterator[Any]:
    for _ in range(count):
        yield None
    yield from batches


def _with_transform(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with a transform, and its tokenizer, that are dicts built by mmengine's registry."""
    given = dict(config)
    if isinstance(given.get("transform"), Mapping):
        transform = dict(given["transform"])
        if isinstance(transform.get("tokenizer"), Mapping):
            transform["tokenizer"] = TRANSFORMS.build(transform["tokenizer"])
        given["transform"] = TRANSFORMS.build(transform)
    return given


def _function(config: Mapping[str, Any]) -> Callable[..., Any]:
    named = dict(config)
    kind = named.pop("type")
    found: Any = FUNCTIONS.get(kind) if isinstance(kind, str) else kind
    if found is None:
        raise ConfigError(f"collate_fn: no function {kind!r} in mmengine's registry")
    if isinstance(found, type):
        return found(**named)  # a class whose objects collate
    return partial(found, **named)
