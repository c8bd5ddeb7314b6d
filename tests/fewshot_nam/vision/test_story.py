"""The whole story on real images: a deployed model learns classes from photos, refuses unknowns, and survives a restart.

Tiny ImageNet's novel classes by MobileNetV2, whose 1,000 classes they are among: good for this walk, no evidence on new classes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import fewshot_nam

WAYS, SHOTS, QUERIES, UNKNOWNS = 5, 5, 12, 19  # 19 classes of unknowns are what a bound of 5% over new classes takes


def deployed(weights):
    """Return the vision model as it is deployed: nothing here knows of memories."""
    import timm
    from safetensors.torch import load_file

    model = timm.create_model("mobilenetv2_100", pad_type="same")
    model.load_state_dict(load_file(weights))
    return model


def attached(weights):
    """Return it with a memory, in the line that an engineer adds."""
    prepared = {"mean": 0.5, "std": 0.5, "input_size": 160, "crop_pct": 1.0, "interpolation": "bilinear"}
    return fewshot_nam.attach(deployed(weights), transform_options=prepared)


@pytest.fixture(scope="module")
def photos(data_dir):
    """Return the first photos of every novel class: ``{class: paths}``."""
    folders = sorted(path for path in (data_dir / "tiny-imagenet" / "novel").iterdir() if path.is_dir())
    return {
        folder.name: sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[
            : SHOTS + QUERIES
        ]
        for folder in folders
    }


@pytest.fixture(scope="module")
def weights(data_dir):
    pytest.importorskip("timm")
    return data_dir / "weights" / "mobilenetv2_100_imagenet.safetensors"


def accuracy(nam, photos, classes):
    answers = [(nam.predict(photos[name][SHOTS:]), name) for name in classes]
    right = [answer == name for found, name in answers for answer in found]
    return sum(right) / len(right)


def test_a_deployed_model_learns_refuses_forgets_and_comes_back(photos, weights, tmp_path):
    names = list(photos)
    known, unknowns, others = names[:WAYS], names[WAYS : WAYS + UNKNOWNS], names[WAYS + UNKNOWNS :]
    nam = attached(weights)

    # One photo a class, then five.
    for name in known:
        nam.learn(photos[name][0], name)
    one = accuracy(nam, photos, known)
    for name in known:
        nam.learn(photos[name][1:SHOTS], name)
    five = accuracy(nam, photos, known)
    assert one > 0.45
    assert five > max(one, 0.65)  # chance is 20%

    # Unknowns are refused: classes that it has neither learned nor been calibrated on.
    found = nam.calibrate(
        [path for name in unknowns for path in photos[name][:2]],
        [path for name in known for path in photos[name][SHOTS:]],
        target_fpr=0.05,
        unknown_labels=[name for name in unknowns for _ in range(2)],
        known_labels=[name for name in known for _ in range(QUERIES)],
    )
    assert found.bound <= 0.05
    answers = nam.predict([path for name in others for path in photos[name][:4]], unknown="unknown")
    assert answers.count("unknown") / len(answers) > 0.85
    assert found.known_accepted > 0.1
    assert float(nam.probabilities(photos[known[0]][0]).sum()) == pytest.approx(1, abs=1e-5)

    # It forgets, and what is left works as before.
    left = [name for name in known if name != known[2]]
    nam.forget(known[2])
    assert nam.classes == left
    assert accuracy(nam, photos, left) > 0.65

    # The same answers in a new process, from the file.
    nam.save(tmp_path / "memory.safetensors")
    queries = [str(path) for name in names[: WAYS + 3] for path in photos[name][SHOTS : SHOTS + 2]]
    run = [sys.executable, __file__, str(weights), str(tmp_path / "memory.safetensors"), *queries]
    paths = os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(run, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["classes"] == nam.classes
    assert again["answers"] == nam.predict(queries, unknown="unknown")
    assert again["threshold"] == nam.head.threshold
    torch.testing.assert_close(torch.tensor(again["scores"]), nam(queries))


def test_it_runs_in_onnxruntime_and_takes_there_what_is_learned_later(photos, weights, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[export]'")
    runtime = pytest.importorskip("onnxruntime")
    from fewshot_nam.vision.export import export_onnx, update_onnx

    names, path = list(photos), tmp_path / "model.onnx"
    nam = attached(weights)
    for name in names[:3]:
        nam.learn(photos[name][:SHOTS], name)
    export_onnx(nam, path)
    nam.learn(photos[names[3]][:SHOTS], names[3]).forget(names[0])
    nam.calibrate([photos[name][0] for name in names[WAYS:]], target_fpr=0.1)
    update_onnx(path, nam)

    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    classes, threshold = json.loads(about["classes"]), json.loads(about["threshold"])
    asked = [photo for name in names[: WAYS + 2] for photo in photos[name][SHOTS : SHOTS + 2]]
    images = torch.stack([nam.backbone.transform(Image.open(photo).convert("RGB")) for photo in asked])
    (scores,) = session.run(["scores"], {"pictures": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(scores), nam(asked), atol=1e-4, rtol=0)
    answers = [classes[row.argmax()] if row.max() >= threshold else "unknown" for row in scores]
    assert answers == nam.predict(asked, unknown="unknown")
    assert names[0] not in answers


def test_a_photo_is_learned_beside_the_classes_that_the_model_has(photos, weights, data_dir):
    # Class names of ImageNet, by number, are in timm; those that are to be new are taken out of its rows.
    numbers = {name: i for i, name in enumerate(pytest.importorskip("timm").data.ImageNetInfo().label_names())}
    base = sorted(path for path in (data_dir / "tiny-imagenet" / "base_unseen").iterdir() if path.is_dir())
    by_class = {folder.name: sorted(folder.rglob("*.*"))[:4] for folder in base}
    ordinary = [paths[0] for paths in by_class.values()]
    prepared = {"mean": 0.5, "std": 0.5, "input_size": 160, "crop_pct": 1.0, "interpolation": "bilinear"}
    model = deployed(weights)
    nam = fewshot_nam.attach(
        model, transform_options=prepared, keep_classes=sorted(numbers, key=numbers.get), base_images=ordinary
    )
    queries = [(path, name) for name, paths in by_class.items() for path in paths[1:]]
    truth = [name for _, name in queries]
    with torch.no_grad():
        features = nam.features([path for path, _ in queries])
        own = model.get_classifier()(features).argmax(dim=1).tolist()
    nam_right = [a == b for a, b in zip(nam.head.predict(features), truth, strict=True)]
    own_right = [number == numbers[name] for number, name in zip(own, truth, strict=True)]
    assert abs(sum(nam_right) - sum(own_right)) < 0.05 * len(queries)  # without the bias, by cosine
    new = list(photos)[:WAYS]
    nam.forget(new)
    for name in new:
        nam.learn(photos[name][0], name)
    assert sum(a == b for a, b in zip(nam.head.predict(features), truth, strict=True)) > 0.8 * sum(nam_right)
    assert accuracy(nam, photos, new) > 0.25  # of 1,000 classes


if __name__ == "__main__":
    nam = attached(sys.argv[1]).load(sys.argv[2])
    answer = {"classes": nam.classes, "threshold": nam.head.threshold, "scores": nam(sys.argv[3:]).tolist()}
    print(json.dumps(answer | {"answers": nam.predict(sys.argv[3:], unknown="unknown")}))
