"""Heads: both shapes give what torch gives, and a file that is no fitting head says why."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dataengine.config.score import HeadConfig, ScorerConfig
from dataengine.errors import ConfigError
from dataengine.score import weights as weights_module
from dataengine.score.heads import Head, identify_head, load_head

REAL = Path(os.environ.get("DATAENGINE_TEST_DATA", "absent")) / "aesthetic-heads"
EMBEDDING = "some-model/some-tag"
SCORER = ScorerConfig(model="some-model", pretrained="some-tag")
needs_real = pytest.mark.skipif(not REAL.exists(), reason="DATAENGINE_TEST_DATA names no folder with aesthetic heads")


def config(path: object, **settings: object) -> HeadConfig:
    return HeadConfig.model_validate({"weights": str(path), "embedding": EMBEDDING, **settings})


def load(path: object, dim: int, **settings: object) -> Head:
    return load_head(config(path, **settings), SCORER, dim)


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
    head = load(path, 4)
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
    found = load(path, 8).apply(embeddings)
    assert found.dtype == np.float32
    assert found == pytest.approx(wanted, abs=1e-6)


def test_the_grade_of_a_row_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file({f"layers.{name}": value for name, value in mlp().state_dict().items()}, path)
    head = load(path, 8)
    embeddings = unit_rows(33, 8)
    together = head.apply(embeddings)
    assert [head.apply(row[None])[0] for row in embeddings] == together.tolist()


def test_a_head_for_another_dimension_names_both(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 512), "bias": torch.ones(1)}, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match=r"h\.safetensors.*512.*768"):
        load(tmp_path / "h.safetensors", 768)


@pytest.mark.parametrize(
    ("tensors", "hint"),
    [
        ({"kernel": torch.ones(1, 4)}, r"holds \['kernel'\]"),
        ({"layers.0.weight": torch.ones(1, 4)}, "weight and bias of linear layers"),
        ({"weight": torch.ones(4), "bias": torch.ones(1)}, "do not follow"),
        ({"weight": torch.full((1, 4), float("nan")), "bias": torch.ones(1)}, "infinite or undefined"),
        (
            {
                f"layers.{n}.{k}": torch.ones(3, 4) if k == "weight" else torch.ones(3)
                for n in (0, 2)
                for k in ("weight", "bias")
            },
            "do not follow",
        ),
    ],
)
def test_what_is_no_head_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], hint: str) -> None:
    save_file(tensors, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match=hint):
        load(tmp_path / "h.safetensors", 4)


class Payload:
    """An object that only an unsafe loader would revive."""


@pytest.mark.parametrize("content", [Payload(), [torch.ones(1)], {"weight": 3}])
def test_a_file_that_holds_more_than_weights_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "h.pth")
    with pytest.raises(ConfigError, match=r"h\.pth"):
        load(tmp_path / "h.pth", 4)


@pytest.mark.parametrize("name", ["h.pth", "h.safetensors"])
def test_garbage_and_absent_files_are_config_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / name, 4)
    (tmp_path / name).write_bytes(b"not a tensor in sight")
    with pytest.raises(ConfigError, match="weights-only"):
        load(tmp_path / name, 4)


FINE = {"weight": torch.ones(1, 4), "bias": torch.ones(1)}


@pytest.mark.parametrize(
    "tensors",
    [
        FINE | {"weight": torch.ones(1, 4, dtype=torch.complex64)},
        FINE | {"weight": torch.ones(1, 4, dtype=torch.int64)},
        FINE | {"weight": torch.ones(1, 4).to_sparse()},
        FINE | {"weight": torch.ones(1).expand(1_000_000, 1_000_000)},
        FINE | {"weight": torch.empty(1, 4, device="meta")},
        {"weight": torch.ones(0, 4), "bias": torch.ones(0)},
        {"weight": torch.tensor(1.0), "bias": torch.ones(1)},
        {1: torch.ones(1)},
        {},
    ],
)
def test_tensors_of_another_kind_are_refused_when_a_run_is_planned(tmp_path: Path, tensors: dict[str, object]) -> None:
    torch.save(tensors, tmp_path / "h.pth")
    with pytest.raises(ConfigError, match=r"h\.pth"):
        identify_head(config(tmp_path / "h.pth"), SCORER)


def test_whole_numbers_in_safetensors_are_refused(tmp_path: Path) -> None:
    save_file(FINE | {"weight": torch.ones(1, 4, dtype=torch.int32)}, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match="weight holds I32"):
        identify_head(config(tmp_path / "h.safetensors"), SCORER)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_any_width_are_read(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    weight = torch.tensor([[1.5, -2.0, 0.25, 1e-3]]).to(dtype)
    tensors = {"weight": torch.nn.Parameter(weight), "bias": torch.nn.Parameter(torch.ones(1, dtype=dtype))}
    path = tmp_path / f"h{suffix}"
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file({name: value.detach() for name, value in tensors.items()}, path)
    assert load(path, 4).layers[0][0].tolist() == weight.float().tolist()


def test_what_does_not_fit_float32_is_refused(tmp_path: Path) -> None:
    save_file(FINE | {"weight": torch.full((1, 4), 1e300, dtype=torch.float64)}, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match="infinite or undefined"):
        load(tmp_path / "h.safetensors", 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_zip", [True, False])
def test_damaged_files_are_config_errors(tmp_path: Path, is_zip: bool) -> None:
    rng = np.random.default_rng(7)
    path = tmp_path / "h.pth"
    torch.save(FINE, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 900), rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ConfigError):
            identify_head(config(path), SCORER)
            continue
        refused += 1
    assert refused > 20


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["more than weights", "TorchScript"])
def test_a_refusal_does_not_advise_to_run_a_file_as_code(tmp_path: Path, kind: str) -> None:
    if kind == "TorchScript":
        torch.jit.script(torch.nn.Linear(4, 1)).save(tmp_path / "h.pth")
    else:
        torch.save({"weight": Payload()}, tmp_path / "h.pth")
    with pytest.raises(ConfigError, match=kind) as caught:
        load(tmp_path / "h.pth", 4)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("metadata", ['{"embedding": 5}', '{"embedding": null}', "3", '["a"]'])
def test_metadata_that_is_no_text_says_nothing(tmp_path: Path, metadata: str) -> None:
    header = f'{{"__metadata__": {metadata}}}'.encode()
    (tmp_path / "h.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ConfigError, match="set `embedding`"):
        identify_head(HeadConfig(weights=str(tmp_path / "h.safetensors")), SCORER)
    with pytest.raises(ConfigError, match=r"h\.safetensors"):
        identify_head(config(tmp_path / "h.safetensors"), SCORER)


def test_builtin_heads_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_module, "MODELS", tmp_path)
    save_file({"weight": torch.ones(1, 4), "bias": torch.zeros(1)}, tmp_path / "nice.safetensors")
    assert load("builtin:nice", 4).apply(np.ones((1, 4), np.float32)).tolist() == [4]
    with pytest.raises(ConfigError, match="'nicer'; did you mean nice"):
        load("builtin:nicer", 4)
    with pytest.raises(ConfigError, match="no built-in"):
        load("builtin:../nice", 4)


def test_a_head_is_refused_on_another_embedding(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, tmp_path / "h.safetensors")
    other = ScorerConfig(model="other-model", pretrained="some-tag")
    with pytest.raises(ConfigError, match=r"trained on the embedding some-model/some-tag.*other-model/some-tag"):
        load_head(config(tmp_path / "h.safetensors"), other, 4)
    named = ScorerConfig(model="other-model", pretrained="/w/file.pt", embedding=EMBEDDING)
    assert load_head(config(tmp_path / "h.safetensors"), named, 4).embedding == EMBEDDING


def test_a_head_must_say_its_embedding_and_not_against_its_file(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(1, 4), "bias": torch.ones(1)}
    save_file(tensors, tmp_path / "mute.safetensors")
    with pytest.raises(ConfigError, match="set `embedding`"):
        load(tmp_path / "mute.safetensors", 4, embedding=None)
    save_file(tensors, tmp_path / "telling.safetensors", metadata={"embedding": EMBEDDING})
    assert load(tmp_path / "telling.safetensors", 4, embedding=None).embedding == EMBEDDING
    with pytest.raises(ConfigError, match="the config says a/b"):
        load(tmp_path / "telling.safetensors", 4, embedding="a/b")


def test_openai_weights_are_one_embedding_under_both_names(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, tmp_path / "h.safetensors")
    quick = ScorerConfig(model="ViT-L-14-quickgelu", pretrained="openai")
    assert load_head(config(tmp_path / "h.safetensors", embedding="ViT-L-14/openai"), quick, 4)
    metaclip = ScorerConfig(model="ViT-B-32-quickgelu", pretrained="metaclip_400m")
    with pytest.raises(ConfigError, match="trained on"):
        load_head(config(tmp_path / "h.safetensors", embedding="ViT-B-32/metaclip_400m"), metaclip, 4)


def test_another_file_than_planned_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match=f"the config says {'0' * 64}"):
        load(tmp_path / "h.safetensors", 4, sha256="0" * 64)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("output", ["value", "sigmoid", "softmax"])
def test_a_classifier_gives_what_torch_gives(tmp_path: Path, activation: str, output: str) -> None:
    torch.manual_seed(1)
    kinds = {"relu": torch.nn.ReLU, "gelu": torch.nn.GELU, "silu": torch.nn.SiLU, "tanh": torch.nn.Tanh}
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 6), kinds[activation](), torch.nn.Linear(6, 5), kinds[activation](), torch.nn.Linear(5, 3)
    )
    save_file({f"net.{name}": value for name, value in module.state_dict().items()}, tmp_path / "h.safetensors")
    embeddings = unit_rows(10, 8)
    with torch.inference_mode():
        raw = module(torch.from_numpy(embeddings))
    wanted = {"value": raw, "sigmoid": raw.sigmoid(), "softmax": raw.softmax(dim=1)}[output][:, 2].numpy()
    head = load(tmp_path / "h.safetensors", 8, activation=activation, output=output, index=2)
    assert head.apply(embeddings) == pytest.approx(wanted, abs=1e-6)


def test_layers_are_taken_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    torch.manual_seed(2)
    sizes = [4, *[3] * 11, 1]
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    tensors = {f"{n}.{k}": v for n, layer in enumerate(layers) for k, v in layer.state_dict().items()}
    save_file(tensors, tmp_path / "h.safetensors")
    with torch.inference_mode():
        wanted = torch.nn.Sequential(*layers)(torch.from_numpy(unit_rows(3, 4)))[:, 0].numpy()
    assert load(tmp_path / "h.safetensors", 4).apply(unit_rows(3, 4)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("settings", [{"index": 2}, {"index": 0, "output": "softmax"}])
def test_an_output_that_is_not_there_is_refused(tmp_path: Path, settings: dict[str, object]) -> None:
    save_file({"weight": torch.ones(1, 4), "bias": torch.ones(1)}, tmp_path / "h.safetensors")
    with pytest.raises(ConfigError, match="has 1 outputs"):
        load(tmp_path / "h.safetensors", 4, **settings)


LAION = {
    "sa_0_4_vit_b_32_linear.pth": ("ViT-B-32", 512),
    "sa_0_4_vit_b_16_linear.pth": ("ViT-B-16", 512),
    "sa_0_4_vit_l_14_linear.pth": ("ViT-L-14", 768),
    "sac+logos+ava1-l14-linearMSE.pth": ("ViT-L-14", 768),
}


@needs_real
@pytest.mark.parametrize("name", LAION)
def test_laions_heads_equal_a_product_written_by_hand(name: str) -> None:
    model, dim = LAION[name]
    embeddings = unit_rows(50, dim)
    head = load_head(HeadConfig(weights=str(REAL / name)), ScorerConfig(model=model, pretrained="openai"), dim)
    tensors = torch.load(REAL / name, map_location="cpu", weights_only=True)
    values = embeddings.astype(np.float64)
    stems = [""] if "weight" in tensors else [f"layers.{n}." for n in (0, 2, 4, 6, 7)]
    for stem in stems:
        weight, bias = (tensors[f"{stem}{kind}"].double().numpy() for kind in ("weight", "bias"))
        values = np.stack([weight @ row + bias for row in values])
    assert head.apply(embeddings) == pytest.approx(values[:, 0], abs=1e-6)
    assert np.all((values > -5) & (values < 15))


@needs_real
@pytest.mark.parametrize("name", LAION)
def test_laions_heads_refuse_every_other_embedding(name: str) -> None:
    model, dim = LAION[name]
    others = {(other, "openai") for other in ("ViT-B-32", "ViT-B-16", "ViT-L-14")} - {(model, "openai")}
    for other, pretrained in {*others, (model, "datacomp_xl_s13b_b90k")}:
        with pytest.raises(ConfigError, match=f"trained on the embedding {model}/openai"):
            load_head(HeadConfig(weights=str(REAL / name)), ScorerConfig(model=other, pretrained=pretrained), dim)


def test_a_head_that_changed_since_the_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.zeros(1, 4), "bias": torch.ones(1)}, path)
    planned = identify_head(config(path), SCORER)
    assert load_head(config(path), SCORER, 4, planned).sha256 == planned
    save_file({"weight": torch.zeros(1, 4), "bias": 2 * torch.ones(1)}, path)
    with pytest.raises(ConfigError, match=f"hashes to .* planned with {planned}"):
        load_head(config(path), SCORER, 4, planned)
