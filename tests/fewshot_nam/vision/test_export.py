"""Export: the graph gives the model's scores for any number of images and classes, and what was learned later goes into it."""

import copy
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from backbones import Backbone
from fewshot_nam import NAMModel
from fewshot_nam.heads import (
    BaseStatistics,
    CosineHead,
    ErasedWeightsHead,
    Head,
    KeptClassifierHead,
    NAMHead,
    RidgeHead,
    WriteRuleHead,
    registry,
)
from fewshot_nam.vision import export
from fewshot_nam.vision.export import export_onnx, export_program, memory_of, update_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install '.[export]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[export]'")

PROTOTYPES = torch.rand(13, 12, generator=torch.Generator().manual_seed(0))  # 12 features, as Tiny has
BASE = BaseStatistics.from_prototypes(PROTOTYPES)
BASE_OF_6 = BaseStatistics.from_prototypes(PROTOTYPES[:, :6])
IMAGES = BaseStatistics.from_features(
    PROTOTYPES.repeat_interleave(4, 0) + 0.1 * torch.rand(52, 12, generator=torch.Generator().manual_seed(2)),
    torch.arange(13).repeat_interleave(4),
)
CASES = {
    "nam": (lambda: NAMHead(), {}),
    "nam over a background": (lambda: NAMHead(base=BASE), {}),
    "nam over base images": (lambda: NAMHead(base=IMAGES), {}),
    "nam with many classes": (
        lambda: NAMHead(base=IMAGES).write_base(
            torch.rand(70, 12, generator=torch.Generator().manual_seed(1)), range(100, 170)
        ),
        {},
    ),
    "nam-parallel with classes that are kept": (
        lambda: WriteRuleHead("parallel", base=BaseStatistics.from_mean(BASE.mean)),
        {"keep_classes": ["k", "l", "m", "n", "o"]},
    ),
    "a kept classifier": (
        lambda: KeptClassifierHead(torch.rand(60, 12, generator=torch.Generator().manual_seed(1))),
        {"keep_classes": ["k", "l", "m", "n", "o"]},
    ),
    "a kept classifier of version 0.1": (
        lambda: ErasedWeightsHead(BaseStatistics.from_mean(BASE.mean)),
        {"keep_classes": ["k", "l", "m", "n", "o"]},
    ),
    "nam with base classes": (
        lambda: NAMHead(base=BASE).write_base(PROTOTYPES[:5], ["k", "l", "m", "n", "o"]),
        {},
    ),
    "nam-sequential with a mean, in place": (
        lambda: WriteRuleHead("sequential", base=BaseStatistics.from_mean(BASE.mean)),
        {"in_place": True},
    ),
    "nam, in place": (lambda: NAMHead(), {"in_place": True}),
    "cosine at a layer's output": (
        lambda: CosineHead(7.0, log_partition_penalty=0.5, power_norm=True, base=BASE),
        {"layer": "norm", "classifier": None},
    ),
}


def scores(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["scores"], {"pictures": images.numpy()})[0]


def metadata(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map


def assert_same(path, model, painted):
    images = torch.stack([model.backbone.transform(painted(i)) for i in range(20, 27)])
    with torch.no_grad():
        expected = model(images).numpy()
    for batch in (1, 2, 7):
        found = scores(path, images[:batch])
        assert found.shape == (batch, len(model.classes))
        np.testing.assert_allclose(found, expected[:batch], atol=1e-4)
    assert json.loads(metadata(path)["classes"]) == model.classes


@pytest.mark.parametrize("case", CASES)
def test_a_file_gives_the_scores_of_the_model_also_with_more_and_fewer_classes_than_it_was_exported_with(
    attached, painted, tmp_path, case
):
    head, arguments = CASES[case]
    model = attached(head=head(), **arguments)
    model.learn([painted(i) for i in range(4)], ["a", 5, "c", "a"])
    path = tmp_path / "model.onnx"
    export_onnx(model, path)
    assert_same(path, model, painted)
    graph = onnx.load(path).graph
    assert [entry.name for entry in graph.input] == ["pictures"]
    model.learn([painted(i) for i in range(4, 13)], [f"more {i}" for i in range(9)])
    update_onnx(path, model)
    assert_same(path, model, painted)
    model.forget(model.classes[1:])
    update_onnx(path, model)
    assert_same(path, model, painted)


def test_a_file_that_is_written_within_autocast_is_that_of_outside(attached, painted, tmp_path):
    """Within autocast the graph held casts that no runtime takes."""
    model = attached(head=NAMHead()).learn([painted(i) for i in range(4)], ["a", "b", "c", "a"])
    with torch.autocast("cpu", torch.bfloat16):
        export_onnx(model, tmp_path / "model.onnx")
    assert_same(tmp_path / "model.onnx", model, painted)
    model.learn([painted(5)], ["d"])
    with torch.autocast("cpu", torch.bfloat16):
        update_onnx(tmp_path / "model.onnx", model)
        program = export_program(model)
    assert_same(tmp_path / "model.onnx", model, painted)
    images = torch.stack([model.backbone.transform(painted(i)) for i in range(20, 23)])
    torch.testing.assert_close(program.module()(images, memory_of(model)), model(images).detach())


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_that_never_ends_is_no_file_to_update(attached, painted):
    model = attached(head=NAMHead()).learn([painted(0)], ["a"])
    with pytest.raises(OSError, match="/dev/zero is no regular file"):
        update_onnx("/dev/zero", model)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A linear model of 4 classes, and its file."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 6))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(6, 48, generator=torch.Generator().manual_seed(1)))
    image = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(2))

    def make(head=None, scale=1.0):
        own = copy.deepcopy(network)
        with torch.no_grad():
            own[1].weight *= scale
        backbone = Backbone("linear", own, lambda _: image[0], "the same image always")
        return NAMModel(backbone, head or NAMHead()).learn(image[:4], [1, "1", "b", "ç"])

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(make(), path)
    return make, image, path.read_bytes()


@pytest.mark.parametrize("update", [False, True], ids=["export", "update"])
def test_a_model_that_learns_meanwhile_is_written_as_it_was(exported, tmp_path, monkeypatch, update):
    """The features of one state were written under the class names of another: answers were wrong, without a word."""
    make, image, content = exported
    model, path = make(), tmp_path / "model.onnx"
    path.write_bytes(content)
    model.learn(image[4:5], "new")
    with torch.no_grad():
        expected, known = model(image).numpy(), list(model.classes)

    def learned_meanwhile(taken):
        memory = memory_of(taken)
        if model.classes == known:
            model.forget([1, "b"]).learn(image[5:7], ["b", 1])
        return memory

    monkeypatch.setattr(export, "memory_of", learned_meanwhile)
    if update:
        update_onnx(path, model)
    else:
        export_onnx(model, path)
    assert model.classes != known
    assert json.loads(metadata(path)["classes"]) == known
    np.testing.assert_allclose(scores(path, image), expected, atol=1e-4)


def test_metadata_hold_what_a_runtime_needs(exported, tmp_path):
    make, image, content = exported
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    found = metadata(path)
    assert found["format"] == "fewshot-nam onnx"
    assert found["version"] == "1"
    assert json.loads(found["classes"]) == [1, "1", "b", "ç"]
    assert found["threshold"] == found["temperature"] == "null"
    assert found["transform"] == "the same image always"
    assert json.loads(found["backbone"]) == "linear"
    model = make()
    model.calibrate(image[4:], image[:2], target_fpr=0.5, known_labels=[1, "1"])
    update_onnx(path, model)
    assert json.loads(metadata(path)["threshold"]) == model.head.threshold
    temperature = json.loads(metadata(path)["temperature"])
    logits = torch.from_numpy(scores(path, image)) / temperature
    torch.testing.assert_close(torch.softmax(logits, dim=-1), model.probabilities(image), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": 2.0}, "weights differ"),
        ({"head": NAMHead(settings={"log_partition_penalty": 0.9})}, "settings differ"),
        ({"head": NAMHead(base=BaseStatistics.from_mean(torch.ones(6)))}, "constants differ"),
        (
            {"head": NAMHead(base=BASE_OF_6)},
            r"or attach with head=NAMHead\(\) if that was made without base classes; or export",
        ),
        (
            {"head": CosineHead()},
            "head, settings, constants, shapes differ; load the memory that the file was made from; or",
        ),
    ],
    ids=str,
)
def test_another_model_is_not_put_into_a_file(exported, tmp_path, changed, message):
    make, _, content = exported
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        update_onnx(path, make(**changed))
    assert path.read_bytes() == content


def test_a_file_is_updated_after_a_restart_where_the_transform_is_a_function(attached, painted, tmp_path):
    def shrink(image):
        return torch.full((3, 16, 16), image.getpixel((0, 0))[0] / 255)

    path = tmp_path / "m.onnx"
    export_onnx(attached(transform=shrink).learn(painted(0), "a"), path)
    again = types.FunctionType(shrink.__code__, shrink.__globals__, "shrink")  # at another address
    again.__qualname__ = shrink.__qualname__
    model = attached(transform=again).learn([painted(0), painted(1)], ["a", "b"])
    update_onnx(path, model)
    assert json.loads(metadata(path)["classes"]) == ["a", "b"]
    assert " at 0x" not in metadata(path)["transform"]


def test_a_file_that_is_none_of_ours_or_damaged_is_refused_and_left(exported, tmp_path):
    make, _, content = exported
    model, path = make(), tmp_path / "m.onnx"
    with pytest.raises(FileNotFoundError):
        update_onnx(path, model)
    foreign = onnx.load_model_from_string(content)
    del foreign.metadata_props[:]
    later = onnx.load_model_from_string(content)
    next(entry for entry in later.metadata_props if entry.key == "version").value = "2"
    torn = onnx.load_model_from_string(content)
    next(entry for entry in torn.metadata_props if entry.key == "graph").value = "{"
    for bad, message in (
        (content[: len(content) // 2], "cut short, or no ONNX file|not one that export_onnx wrote"),
        (b"no model at all", "cut short, or no ONNX file|not one that export_onnx wrote"),
        (foreign.SerializeToString(), "not one that export_onnx wrote"),
        (later.SerializeToString(), "of format 2, this release writes format 1"),
        (torn.SerializeToString(), "damaged"),
    ):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            update_onnx(path, model)
        assert path.read_bytes() == bad


def nest(file) -> None:
    next(entry for entry in file.metadata_props if entry.key == "graph").value = "[" * 100_000


def without_nodes(file) -> None:
    del file.graph.node[:]


def without_outputs(file) -> None:
    del file.graph.output[:]


def rename_output(file) -> None:
    file.graph.output[0].name = "other"


def point_outside(file) -> None:
    weights = next(entry for entry in file.graph.initializer if entry.name not in ("memory", "offsets"))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"


@pytest.mark.parametrize("forge", [nest, without_nodes, without_outputs, rename_output, point_outside])
def test_a_forged_file_is_refused_in_one_line_and_left(exported, tmp_path, forge):
    make, _, content = exported
    file, path = onnx.load_model_from_string(content), tmp_path / "m.onnx"
    forge(file)
    path.write_bytes(file.SerializeToString())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"m\.onnx is damaged: [^\n]+$"):
        update_onnx(path, make())
    assert path.read_bytes() == before


def test_what_cannot_be_exported_is_refused_by_name(exported, attached, nam, painted, tmp_path):
    make, image, _ = exported
    with pytest.raises(ValueError, match="knows no class yet"):
        export_onnx(nam, tmp_path / "m.onnx")
    can = sorted({entry.builder().__name__ for entry in registry.specs() if entry.exports})
    with pytest.raises(ValueError, match=f"a RidgeHead cannot be exported: attach with {' or '.join(can)}$"):
        export_onnx(attached(head=RidgeHead()).learn(painted(0), "a"), tmp_path / "m.onnx")
    half = make()
    half.backbone.network.bfloat16()
    with pytest.raises(ValueError, match=r"weights are torch\.bfloat16"):
        export_onnx(half, tmp_path / "m.onnx")

    class Fixed(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :6] * len(images)

    model = NAMModel(Backbone("fixed", Fixed(), lambda _: image[0], "same"), NAMHead()).learn(image[:1], "a")
    with pytest.raises(ValueError, match=r"torch\.export cannot trace fixed for any number of images"):
        export_onnx(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Manhattan(Head):
    """Minus the city-block distance to the class means, times a buffer of its own."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def _learn(self, support):
        return support.with_base(support.base, support.class_means(support.features))

    def _score(self, learned, query):
        return -self.factor * (query.unsqueeze(-2) - learned.unsqueeze(-3)).abs().sum(dim=-1)


def test_a_head_of_another_package_that_is_registered_to_export_exports(attached, painted, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    model = attached(head=Manhattan(2.0)).learn([painted(i) for i in range(3)], ["a", "b", "c"])
    with pytest.raises(ValueError, match="a Manhattan cannot be exported"):
        export_onnx(model, path)
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))
    registry.register(registry.HeadSpec("manhattan", Manhattan, "city-block distance", exports=True))
    export_onnx(model, path)
    assert_same(path, model, painted)
    model.learn([painted(i) for i in range(3, 9)], [f"more {i}" for i in range(6)])
    update_onnx(path, model)
    assert_same(path, model, painted)
    with pytest.raises(ValueError, match="constants differ"):
        update_onnx(path, attached(head=Manhattan(3.0)).learn(painted(0), "a"))


def test_without_onnx_the_error_says_what_to_install(exported, tmp_path, monkeypatch):
    make, _, _ = exported
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'pip install "fewshot-nam\[export\]"'):
        export_onnx(make(), tmp_path / "m.onnx")


def test_a_program_takes_any_memory_and_holds_no_features_of_images(exported):
    make, image, _ = exported
    model = make(
        NAMHead(base=BaseStatistics.from_prototypes(torch.rand(13, 6, generator=torch.Generator().manual_seed(3))))
    )
    program = export_program(model)
    assert sum(tensor.numel() for name, tensor in program.state_dict.items() if "support" in name) == 0
    torch.export.save(program, file := io.BytesIO())
    assert file.getbuffer().nbytes
    run = program.module()
    for step in ("as exported", "more", "fewer"):
        if step == "more":
            model.learn(image[4:], list(range(10, 15)))
        if step == "fewer":
            model.forget(model.classes[:-1])
        for batch in (1, 2, 7):
            torch.testing.assert_close(run(image[:batch], memory_of(model)), model(image[:batch]), atol=1e-5, rtol=0)
