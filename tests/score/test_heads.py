"""Heads: both shapes give what torch gives, and a file that is no fitting head says why."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dataengine.errors import ConfigError
from dataengine.score import weights as weights_module
from dataengine.score.heads import load_head

REAL = Path(os.environ.get("DATAENGINE_TEST_DATA", "absent")) / "aesthetic-heads"
needs_real = pytest.mark.skipif(not REAL.exists(), reason="DATAENGINE_TEST_DATA names no folder with aesthetic heads")


def unit_rows(num_rows: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(num_rows, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def mlp() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(8, 5), torch.nn.Dropout(0.2), torch.nn.Linear(5, 3), torch.nn.Linear(3, 1)
    )


def test_a_linear_head_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.arange(4.0)[None], "bias": torch.tensor([0.5])}, path)
    head = load_head(str(path), 4)
    assert head.apply(np.eye(4, dtype=np.float32)).tolist() == [0.5, 1.5, 2.5, 3.5]
    assert head.apply(np.empty((0, 4), np.float32)).shape == (0,)
    assert head.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_mlp_gives_what_torch_gives(tmp_path: Path, suffix: str) -> None:
    module = mlp().eval()
    tensors = {f"layers.{name}": value for name, value in module.state_dict().items()}
    path = tmp_path / f"head{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    embeddings = unit_rows(10, 8)
    with torch.inference_mode():
        wanted = module(torch.from_numpy(embeddings))[:, 0].numpy()
    found = load_head(str(path), 8).apply(embeddings)
    assert found.dtype == np.float32
    assert found == pytest.approx(wanted, abs=1e-6)


def test_the_grade_of_a_row_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file({f"layers.{name}": value for name, value in mlp().state_dict().items()}, path)
    head = load_head(str(path), 8)
    embeddings = unit_rows(33, 8)
    together = head.apply(embeddings)
    assert [head.apply(row[None])[0] for row in embeddings] == together.tolist()


def test_a_head_for_another_dimension_names_both(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 512), "bias": torch.ones(1)}, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match=r"h\.safetensors.*512.*768"):
        load_head(str(tmp_path / "h.safetensors"), 768)


@pytest.mark.parametrize(
    ("tensors", "hint"),
    [
        ({"kernel": torch.ones(1, 4)}, r"holds \['kernel'\]"),
        ({"layers.0.weight": torch.ones(1, 4)}, "both of each"),
        ({"weight": torch.ones(2, 4), "bias": torch.ones(2)}, "one number"),
        ({"weight": torch.ones(4), "bias": torch.ones(1)}, "one number"),
        ({"weight": torch.full((1, 4), float("nan")), "bias": torch.ones(1)}, "infinite or undefined"),
        (
            {
                f"layers.{n}.{k}": torch.ones(3, 4) if k == "weight" else torch.ones(3)
                for n in (0, 2)
                for k in ("weight", "bias")
            },
            "one number",
        ),
    ],
)
def test_what_is_no_head_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], hint: str) -> None:
    save_file(tensors, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match=hint):
        load_head(str(tmp_path / "h.safetensors"), 4)


class Payload:
    """An object that only an unsafe loader would revive."""


@pytest.mark.parametrize("content", [Payload(), [torch.ones(1)], {"weight": 3}])
def test_a_file_that_holds_more_than_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "h.pth")
    with pytest.raises(ConfigError, match=r"h\.pth"):
        load_head(str(tmp_path / "h.pth"), 4)


@pytest.mark.parametrize("name", ["h.pth", "h.safetensors"])
def test_garbage_and_absent_files_are_config_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_head(str(tmp_path / name), 4)
    (tmp_path / name).write_bytes(b"not a tensor in sight")
    with pytest.raises(ConfigError, match="weights-only"):
        load_head(str(tmp_path / name), 4)


def test_builtin_heads_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "MODELS", tmp_path)
    save_file({"weight": torch.ones(1, 4), "bias": torch.zeros(1)}, tmp_path / "nice.safetensors")
    assert load_head("builtin:nice", 4).apply(np.ones((1, 4), np.float32)).tolist() == [4]
    with pytest.raises(ConfigError, match="'nicer'; did you mean nice"):
        load_head("builtin:nicer", 4)
    with pytest.raises(ConfigError, match="no built-in"):
        load_head("builtin:../nice", 4)


@needs_real
@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("sa_0_4_vit_l_14_linear.pth", 768),
        ("sa_0_4_vit_b_32_linear.pth", 512),
        ("sac+logos+ava1-l14-linearMSE.pth", 768),
    ],
)
def test_published_heads_grade_on_their_scale(name: str, dim: int) -> None:
    grades = load_head(str(REAL / name), dim).apply(unit_rows(50, dim))
    assert np.all((grades > -5) & (grades < 15))
