"""A model with a memory: it learns, answers, refuses and forgets, as the head behind it does on features."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewshot_nam.heads import NAMHead


def test_learning_is_writing_features_into_the_head(nam, painted):
    images = [painted(i) for i in range(4)]
    features = nam.features(images)
    head = NAMHead().write(features[:2], ["a", 7]).write(features[2:3], "a")
    assert nam.learn(images[:2], ["a", 7]).learn(images[2], "a") is nam
    assert nam.classes == ["a", 7]
    torch.testing.assert_close(nam(images), head(features))
    assert nam.predict(images[:2]) == ["a", 7]


def test_an_image_that_was_learned_before_is_noticed(nam, painted):
    nam.learn([painted(0), painted(1)], ["a", "b"])
    with pytest.warns(UserWarning, match="1 image was learned before .*given as 'c', as 'b'.: it counts again"):
        nam.learn([painted(2), painted(1)], "c")
    assert nam.classes == ["a", "b", "c"]
    nam.forget(["b", "c"]).learn(painted(1), "b")  # and not after it was forgotten


def test_one_image_gets_one_answer_and_many_a_list(nam, painted):
    nam.learn([painted(0), painted(1)], ["a", "b"])
    assert nam.predict(painted(1)) == "b"
    assert nam.predict([painted(1)]) == ["b"]
    assert nam(painted(1)).shape == (1, 2)
    ready = nam.backbone.transform(painted(1))
    assert nam.predict(ready) == "b"
    assert nam.predict(ready.unsqueeze(0)) == ["b"]
    torch.testing.assert_close(nam(ready.unsqueeze(0)), nam(painted(1)))


def test_a_label_stands_for_all_images_or_there_is_one_for_each(nam, painted):
    images = [painted(i) for i in range(3)]
    assert nam.learn(images, "all").classes == ["all"]
    with pytest.raises(ValueError, match="3 features, 2 labels"):
        nam.learn(images, ["a", "b"])
    with pytest.raises(TypeError, match="a label must be an int or a string"):
        nam.learn("no file is looked for.png", 1.5)
    assert nam.classes == ["all"]


def test_forgetting_leaves_the_model_that_never_saw_the_class(nam, attached, painted):
    nam.learn([painted(0), painted(1), painted(2)], ["a", "b", "c"])
    assert nam.forget("b") is nam
    other = attached().learn([painted(0), painted(2)], ["a", "c"])
    assert torch.equal(nam(painted(5)), other(painted(5)))
    with pytest.raises(ValueError, match="'b' was never written"):
        nam.forget("b")


def test_unknown_classes_are_refused_after_calibration(nam, painted):
    nam.learn([painted(0), painted(1)], ["a", "b"])
    with pytest.raises(ValueError, match="needs a threshold"):
        nam.predict(painted(0), unknown="?")
    known = [painted(0, (40, 48)), painted(1, (40, 48)), painted(0, (60, 72))]
    found = nam.calibrate([painted(i) for i in range(100, 160)], known, target_fpr=0.05, known_labels=["a", "b", "a"])
    assert found.bound <= 0.05
    assert found.unknowns == 60
    assert nam.head.threshold == pytest.approx(found.threshold)
    answers = nam.predict([painted(i) for i in range(200, 300)], unknown="?")
    assert answers.count("?") >= 85  # 95 expected: the bound plus four standard deviations
    nam.head.threshold = -1000
    assert nam.predict(painted(0), unknown="?") == "a"
    torch.testing.assert_close(nam.probabilities(known).sum(dim=-1), torch.ones(3))


def test_the_backbone_stays_frozen_whatever_train_says(nam, painted):
    before = nam.learn(painted(0), "a")(painted(1))
    nam.train()
    for _ in range(3):
        nam(painted(2))
    assert torch.equal(nam(painted(1)), before)
    assert not nam.backbone.network.training
    assert not any(p.requires_grad for p in nam.parameters())


def test_scoring_one_batch_does_not_depend_on_how_it_is_cut(nam, painted):
    images = [painted(i) for i in range(7)]
    nam.learn(images[:3], [0, 1, 2])
    whole = nam(images)
    nam.batch_size = 3
    torch.testing.assert_close(nam(images), whole)


def test_a_model_without_classes_says_so(nam, painted):
    with pytest.raises(ValueError, match="knows no class yet"):
        nam(painted(0))


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copied", "sent"])
def test_a_copy_learns_by_itself(attached, painted, how, in_place):
    nam = attached(in_place=in_place).learn(painted(0), "a")
    other = how(nam)
    other.learn(painted(1), "b")
    assert (nam.classes, other.classes) == (["a"], ["a", "b"])
    torch.testing.assert_close(other.forget("b")(painted(2)), nam(painted(2)))


def test_threads_do_not_get_into_each_others_way(attached, painted):
    nam = attached(in_place=True).learn([painted(0), painted(1)], ["a", "b"])
    model = nam.backbone.network.model
    ready = torch.stack([nam.backbone.transform(painted(i)) for i in range(2)])
    scores = nam(ready)

    def serve(run):
        return all(torch.equal(run(ready), scores) for _ in range(100))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(serve, (nam, model, nam, model)))


@pytest.mark.parametrize("many", [True, False])
def test_float_images_that_were_never_transformed_are_refused(nam, painted, many):
    nam.learn(painted(0), "a")
    pixels = torch.full((1, 3, 16, 16), 255.0)
    pixels[0, 0] = 0
    images = pixels if many else [painted(1), pixels[0]]
    with pytest.raises(ValueError, match="from 0 to 255 cannot come from this model's transform, which gives 0 to 1"):
        nam.predict(images)
    assert nam.predict(pixels / 255) == ["a"]


def test_calibration_takes_groups_and_a_confidence(nam, painted):
    nam.learn(painted(0), "a")
    images = [painted(i) for i in range(100, 130)]
    assert nam.calibrate(images, target_fpr=0.1, groups=[i // 3 for i in range(30)]).groups == 10
    assert nam.calibrate(images, target_fpr=0.1, confidence=0.95).bound_95 <= 0.1


def test_a_snapshot_answers_as_the_model_did_and_refuses_to_learn(nam, painted):
    nam.learn([painted(0), painted(1)], ["a", "b"])
    images = [painted(i) for i in range(8)]
    served, answers = nam.snapshot(), nam.predict(images)
    nam.learn(painted(2), "c").forget("a")
    assert served.predict(images) == answers
    assert (served.classes, nam.classes) == (["a", "b"], ["b", "c"])
    with pytest.raises(ValueError, match="write: a snapshot cannot change"):
        served.learn(painted(3), "d")
