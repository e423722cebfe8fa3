"""Weights: the files that a model's or a head's name in the config stands for, and what identifies them.

Names in, paths and identities out, and ConfigError or StorageError where there is none. Built-in weights ship with the
package. Nothing here loads a model, and only open_clip's tags need open_clip imported.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dataengine.errors import ConfigError, StorageError
from dataengine.score.published import settings_of

if TYPE_CHECKING:
    from dataengine.config.score import ScorerConfig

BUILTIN = "builtin:"
MODELS = Path(__file__).parent.parent / "models"

_FOLDER_FILES = ("open_clip_config.json", "config.json", "*token*.json", "vocab*", "merges.txt", "*.model")
"""Of a `local-dir:`, beside the weights, what a model and its tokenizer are read from."""


def builtin_weights(name: str, what: str) -> Path:
    """The weights file `name` that ships with the package. Raises ConfigError naming those there are."""
    names = sorted(path.stem for path in MODELS.glob("*.safetensors"))
    if name not in names:
        raise ConfigError(f"{what}: no built-in weights {name!r}{suggest(name, names)}")
    return MODELS / f"{name}.safetensors"


def identify_scorer(config: ScorerConfig) -> str:
    """What a scorer's weights are: `sha256:...` of a file; `tag:...` or `hub:...` for what others keep under a name.

    Fetches nothing. Raises ConfigError when model, tag or file do not exist, so that a run says so before it begins.
    """
    what = f"scorer {config.model}"
    if config.model.startswith("hf-hub:"):
        known = config.weights_sha256
        return f"hub:{config.model.removeprefix('hf-hub:')}" if known is None else weights_identity(config, known)
    if config.model.startswith("local-dir:"):
        # Its config and tokenizer are part of what it is, so the folder must be here.
        found = file_sha256(_checkpoint(config.model, what))
        return weights_identity(config, config.weights_sha256 or found)
    _check_model(config.model)
    if config.weights_sha256 is not None:
        return weights_identity(config, config.weights_sha256)
    assert config.pretrained is not None
    if config.pretrained == BUILTIN.removesuffix(":"):
        return weights_identity(config, file_sha256(builtin_weights(config.model, what)))
    if config.is_file:
        return weights_identity(config, file_sha256(_weights_file(config)))
    _tag(config.model, config.pretrained)
    return f"tag:{config.pretrained}"


def weights_identity(config: ScorerConfig, sha256: str) -> str:
    """What weights that hash to `sha256` are: the hash, and what decides beside it how the model is built.

    That is how its embedding was trained, for a file, and the config and tokenizer of a `local-dir:`.
    """
    beside = settings_of(config)
    if config.model.startswith("local-dir:"):
        folder = Path(config.model.removeprefix("local-dir:"))
        beside = {path.name: file_sha256(path) for pattern in _FOLDER_FILES for path in folder.glob(pattern)}
    return f"sha256:{sha256}" + (f" {json.dumps(beside, sort_keys=True)}" if beside else "")


def head_path(weights: str) -> Path:
    """The file of a head. Raises ConfigError for a built-in head that does not exist."""
    return builtin_weights(weights.removeprefix(BUILTIN), "head") if weights.startswith(BUILTIN) else Path(weights)


def clip_weights(config: ScorerConfig) -> Path:
    """The weights file of an open_clip model: fetched for a tag or hf-hub:, `builtin`, or the path itself.

    Raises ConfigError when the model or tag is not known, and StorageError when a file cannot be fetched.
    """
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf

    register_builtin()
    what = f"scorer {config.model}"
    if config.model.startswith("local-dir:"):
        return _checkpoint(config.model, what)
    if config.model.startswith("hf-hub:"):
        return _fetched(config, config.model, lambda: download_pretrained_from_hf(config.model.removeprefix("hf-hub:")))
    if config.model not in open_clip.list_models():
        raise ConfigError(f"scorer: open_clip has no model {config.model!r}{suggest(config.model, _model_names())}")
    assert config.pretrained is not None
    if config.pretrained == BUILTIN.removesuffix(":"):
        return builtin_weights(config.model, what)
    if config.is_file:
        return _weights_file(config)
    tag = _tag(config.model, config.pretrained)
    return _fetched(config, str(tag.get("hf_hub") or tag.get("url")), lambda: open_clip.download_pretrained(tag))


def _fetched(config: ScorerConfig, place: str, fetch: Callable[[], str]) -> Path:
    name = config.pretrained or config.model
    remedy = "set `pretrained` to the path of a weights file" if config.pretrained else "give its folder as local-dir:"
    try:
        return Path(fetch())
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(
            f"scorer {config.model}: cannot fetch the weights {name!r} from {place}: {error}; fetch them "
            f"where there is a network and copy the cache, or {remedy}"
        ) from error


@functools.cache
def register_builtin() -> None:
    """Make the built-in models known to open_clip, once in a process."""
    import open_clip

    open_clip.add_model_config(MODELS)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 hex characters; remembered as long as its size and time of change stay."""
    status = path.stat()
    return _file_sha256(path, status.st_size, status.st_mtime_ns)


@functools.cache
def _file_sha256(path: Path, *_when: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: Exception) -> str:
    """Why a weights file does not load, in words that are safe to follow.

    torch answers a file that holds more than weights with advice to run it as code.
    """
    from pickle import UnpicklingError

    words = str(error)
    if "TorchScript" in words:
        return "it is a TorchScript archive, as OpenAI's own files are, and holds code; save its state_dict() alone"
    if isinstance(error, UnpicklingError) or "weights_only" in words:
        return "it holds more than weights, or is damaged"
    return f"{type(error).__name__}: {words[:500]}"


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: the nearest known ones, or the first."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(names[:20]) or 'none'}"


def _check_model(model: str) -> None:
    """Raises ConfigError for an architecture that open_clip and the package do not have."""
    names = _model_names()
    if model in names:
        return
    import open_clip  # somebody may have registered more

    if model not in open_clip.list_models():
        raise ConfigError(f"scorer: open_clip has no model {model!r}{suggest(model, names)}")


@functools.cache
def _model_names() -> list[str]:
    """Architectures by name, from open_clip's files: importing it takes four seconds."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigError("score: open_clip is not installed; pip install 'dataengine[engine,cpu]'")
    folders = [Path(place) / "model_configs" for place in spec.submodule_search_locations]
    return sorted(path.stem for folder in (*folders, MODELS) for path in folder.glob("*.json"))


def _tag(model: str, name: str) -> dict[str, object]:
    import open_clip

    tag: dict[str, object] = open_clip.get_pretrained_cfg(model, name)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ConfigError(f"scorer {model}: no pretrained tag {name!r}{suggest(name, tags)}")
    return tag


def _checkpoint(model: str, what: str) -> Path:
    """The weights in a `local-dir:` folder, as open_clip chooses among several. Raises ConfigError."""
    folder = Path(model.removeprefix("local-dir:"))
    if not (folder / "open_clip_config.json").is_file():
        raise ConfigError(f"{what}: {folder} holds no open_clip_config.json; give a folder that open_clip saved")
    from open_clip.factory import _find_checkpoint_in_dir

    found = _find_checkpoint_in_dir(folder)
    if found is None:
        raise ConfigError(f"{what}: {folder} holds no weights; wanted open_clip_model.safetensors or the like")
    return Path(found)


def _weights_file(config: ScorerConfig) -> Path:
    path = Path(config.pretrained or "")
    if not path.is_file():
        raise ConfigError(
            f"scorer {config.model}: no weights file {path}; give its path, an open_clip tag, or its `weights_sha256` "
            f"when only the workers have it"
        )
    return path
