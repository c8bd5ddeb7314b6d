"""Models on the Hugging Face Hub, tried on local directories: what is there, and that another backbone is refused."""

import json
import sys

import pytest
import torch

import backbones
from fewshot_nam import NAMModel, attach
from fewshot_nam.heads import CosineHead, NAMHead
from fewshot_nam.vision import hub
from fewshot_nam.vision.saving import read_head

hub_library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install '.[hub]'")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def inks():
    """Return eight images for conv4, transformed already."""
    return torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def learned(inks):
    model = attach("conv4", NAMHead(base=backbones.create("conv4").base_statistics))
    model.learn(inks[:3], ["a", 7, "7"]).calibrate(inks[3:6], target_fpr=0.5)
    return model


def test_a_directory_gives_the_same_model_again_with_a_backbone_made_anew(learned, inks, tmp_path):
    assert learned.save_pretrained(tmp_path / "shop") is None
    assert sorted(file.name for file in (tmp_path / "shop").iterdir()) == [
        "README.md",
        "config.json",
        "memory.safetensors",
    ]
    config = json.loads((tmp_path / "shop" / "config.json").read_text())
    assert config["backbone"] == "conv4"
    assert config["classes"] == ["a", 7, "7"]
    assert config["settings"]["settings"]["ridge"] == 16.0
    again = NAMModel.from_pretrained(tmp_path / "shop")
    assert type(again) is NAMModel
    assert again.classes == ["a", 7, "7"]
    assert again.head.threshold == learned.head.threshold
    torch.testing.assert_close(again(inks), learned(inks))
    again.learn(inks[6], "b").save_pretrained(str(tmp_path / "shop"))
    assert NAMModel.from_pretrained(str(tmp_path / "shop")).classes == ["a", 7, "7", "b"]


def test_names_of_timm_bring_their_options_and_their_transform(tmp_path):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    options = {
        "transform_options": {"input_size": 40, "interpolation": "bilinear"},
        "model_options": {"act_layer": "silu"},
    }
    model = attach("timm/resnet18", CosineHead(), weights=False, **options)
    state = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    save_file(model.backbone.network.state_dict(), state)
    model.learn(torch.rand(2, 3, 40, 40), ["a", "b"]).save_pretrained(tmp_path / "shop")
    again = NAMModel.from_pretrained(tmp_path / "shop", weights=state)
    assert again.backbone.transform_id == model.backbone.transform_id
    assert again.backbone.model_options == {"act_layer": "silu"}
    images = torch.rand(3, 3, 40, 40)
    torch.testing.assert_close(again(images), model(images))
    with pytest.raises(ValueError, match="this one is timm/resnet18, weights"):
        NAMModel.from_pretrained(tmp_path / "shop", weights=False)


def test_a_model_of_ones_own_is_given_attached_or_not(attached, tiny, transform, painted, tmp_path):
    attached().learn([painted(0), painted(1)], ["a", "b"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"learned with a model of its own, .*Tiny: attach that model"):
        NAMModel.from_pretrained(tmp_path)
    options = {"classifier": "fc", "transform": transform}
    assert NAMModel.from_pretrained(tmp_path, tiny(), attach_options=options).predict(painted(1)) == "b"
    own = attached()
    assert NAMModel.from_pretrained(tmp_path, own) is own
    assert own.classes == ["a", "b"]
    with pytest.raises(ValueError, match=r"this one is .*Tiny, weights"):
        NAMModel.from_pretrained(tmp_path, tiny(shift=0.1), attach_options=options)


@pytest.mark.parametrize("content", ["[1]", "null", '{"model": 1}', "[" * 5000, "{"])
def test_what_stands_in_the_configuration_changes_nothing(learned, tmp_path, content):
    """ModelHubMixin took arguments from it, and raised what it pleased."""
    learned.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(content)
    assert type(learned).from_pretrained(tmp_path).classes == learned.classes


def test_a_directory_that_was_changed_elsewhere_is_not_replaced(learned, inks, tmp_path):
    """Of two programs that saved into one directory, the second undid the first's change; `save` refused its own file."""
    learned.save_pretrained(tmp_path)
    first, second = (type(learned).from_pretrained(tmp_path) for _ in range(2))
    first.learn(inks[6], "from the first").save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    with pytest.raises(ValueError, match="was changed elsewhere"):
        second.learn(inks[7], "from the second").save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == config
    assert "from the first" in type(learned).from_pretrained(tmp_path).classes
    first.learn(inks[7], "more").save(tmp_path / "memory.safetensors")
    first.save_pretrained(tmp_path)
    assert "more" in json.loads((tmp_path / "config.json").read_text())["classes"]


def test_a_save_that_fails_after_the_memory_was_written_is_ones_own(learned, inks, tmp_path):
    """The model refused its own file for good: it was "changed elsewhere"."""
    (tmp_path / "config.json").mkdir()
    with pytest.raises(OSError, match="config"):
        learned.save_pretrained(tmp_path)
    learned.learn(inks[6], "more").save(tmp_path / "memory.safetensors")
    assert "more" in read_head(tmp_path / "memory.safetensors")[1].classes


def test_pushing_uploads_the_same_files(learned, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repo_id, **options):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **options):
            sent[repo_id] = {file.name: file.read_bytes() for file in folder_path.iterdir()}
            return "https://hub/commit"

    monkeypatch.setattr(sys.modules[hub_library.ModelHubMixin.__module__], "HfApi", Api)
    assert learned.push_to_hub("me/shop", token="mine") == "https://hub/commit"
    assert sent["token"] == "mine"
    assert set(sent["me/shop"]) == {"README.md", "config.json", "memory.safetensors"}
    card = sent["me/shop"]["README.md"].decode()
    assert card.startswith("---\n")
    assert "library_name: fewshot-nam" in card
    assert "- 7" in card


def test_what_is_not_there_or_damaged_is_an_error(learned, tmp_path):
    with pytest.raises(OSError, match="nobody/nothing: no such directory, and the Hub does not give it"):
        NAMModel.from_pretrained("nobody/nothing", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(OSError, match=r"gone/at/all: no such directory"):  # and no name of a repository either
        NAMModel.from_pretrained(tmp_path / "gone/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"memory\.safetensors"):
        NAMModel.from_pretrained(tmp_path / "empty")
    learned.save_pretrained(tmp_path / "shop")
    file = tmp_path / "shop" / hub.FILE
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="cut short"):
        NAMModel.from_pretrained(tmp_path / "shop")


def test_without_the_library_the_error_says_what_to_install(nam, tmp_path, monkeypatch):
    hub._carrier.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "fewshot-nam\[hub\]"'):
        nam.save_pretrained(tmp_path)
    monkeypatch.undo()
    hub._carrier.cache_clear()


def test_labels_are_letters_in_the_card_and_no_markdown(nam, painted, tmp_path):
    nam.learn(painted(0), "[a](b) *c*\n# d").save_pretrained(tmp_path)
    assert "- \\[a\\]\\(b\\) \\*c\\* \\# d\n" in (tmp_path / "README.md").read_text()
    nam.learn(painted(1), "gnp.\u202etxt").save_pretrained(tmp_path / "more")
    assert "\\\\u202etxt" in (tmp_path / "more" / "README.md").read_text()
