"""Weights: the files that a model's or a head's name in the config stands for.

Names in, paths out, and ConfigError or StorageError where there is none. Built-in weights ship with the
package.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from dataengine.errors import ConfigError, StorageError

BUILTIN = "builtin:"
MODELS = Path(__file__).parent.parent / "models"

UNREADABLE = (SafetensorError, UnpicklingError, OSError, RuntimeError, ValueError, EOFError, KeyError)
"""What loading a file that holds no weights, other ones, or more than weights may raise."""


def builtin_weights(name: str, what: str) -> Path:
    """The weights file `name` that ships with the package. Raises ConfigError naming those there are."""
    names = sorted(path.stem for path in MODELS.glob("*.safetensors"))
    if name not in names:
        raise ConfigError(f"{what}: no built-in weights {name!r}{suggest(name, names)}")
    return MODELS / f"{name}.safetensors"


def clip_weights(model: str, pretrained: str) -> Path:
    """The weights file of an open_clip model: fetched for a tag, `builtin`, or the path itself.

    Raises ConfigError when the model or tag is not known, and StorageError when a tag's file cannot be had.
    """
    import open_clip

    register_builtin()
    if model not in open_clip.list_models():
        raise ConfigError(f"scorer: open_clip has no model {model!r}{suggest(model, open_clip.list_models())}")
    if pretrained == BUILTIN.removesuffix(":"):
        return builtin_weights(model, f"scorer {model}")
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        return _weights_file(model, pretrained, open_clip.list_pretrained_tags_by_model(model))
    try:
        return Path(open_clip.download_pretrained(tag))
    except (OSError, RuntimeError) as error:
        place = tag.get("hf_hub") or tag.get("url")
        raise StorageError(
            f"scorer {model}: cannot fetch the weights {pretrained!r} from {place}: {error}; fetch them "
            f"where there is a network and copy the cache, or set `pretrained` to the path of a weights file"
        ) from error


@functools.cache
def register_builtin() -> None:
    """Make the built-in models known to open_clip, once in a process."""
    import open_clip

    open_clip.add_model_config(MODELS)


@functools.cache
def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the nearest known ones, or the first."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(names[:20]) or 'none'}"


def _weights_file(model: str, pretrained: str, tags: list[str]) -> Path:
    path = Path(pretrained)
    if path.suffix in (".safetensors", ".pt", ".pth", ".bin") or "/" in pretrained:
        if path.is_file():
            return path
        raise ConfigError(f"scorer {model}: no weights file {pretrained}; give its path, or a tag: {', '.join(tags)}")
    raise ConfigError(f"scorer {model}: no pretrained tag {pretrained!r}{suggest(pretrained, tags)}")
