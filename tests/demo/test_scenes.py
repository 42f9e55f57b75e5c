import itertools
from dataclasses import replace

import numpy as np
import pytest

from vlprune.data import scenes


def pixels(scene, size=64):
    return np.asarray(scenes.draw(scene, size)).astype(int)


def test_no_test_content_is_drawn_for_training_over_many_seeds():
    train = {s.content() for seed in range(25) for s in scenes.split_scenes("train", 500, seed)}
    test = {s.content() for seed in range(25) for s in scenes.split_scenes("test", 100, seed)}
    assert len(train) > 12_000
    assert len(test) > 2_400
    assert not train & test


def test_captions_of_the_splits_are_disjoint_too():
    train = {scenes.caption(s) for s in scenes.split_scenes("train", 5_000, 3)}
    assert not train & {scenes.caption(s) for s in scenes.split_scenes("test", 1_000, 3)}


def test_split_ignores_wording_order_and_seed():
    for scene in scenes.split_scenes("test", 50, 1):
        first, second = scene.things
        for wording in range(len(scenes.WORDINGS)):
            other = replace(scene, things=(second, first), wording=wording, seed=scene.seed + 1)
            assert scenes.split_of(other) == "test"


def test_split_is_the_same_on_every_machine():
    # Fixed by hand: a change of the hash would silently move training scenes into the test set.
    red = scenes.Thing("small", "red", "circle", "top left")
    places = ("top right", "bottom left", "bottom right")
    splits = [
        scenes.split_of(scenes.Scene((red, scenes.Thing("large", colour, "star", place)), "white", 0, 0))
        for colour, place in itertools.product(scenes.COLOURS, places)
    ]
    assert [k for k, split in enumerate(splits) if split == "test"] == [2, 4, 17]


def test_about_a_tenth_of_the_scenes_is_for_testing():
    import random

    rng = random.Random(0)
    share = np.mean([scenes.split_of(scenes._random_scene(rng)) == "test" for _ in range(20_000)])
    assert share == pytest.approx(0.1, abs=0.01)  # four standard deviations are 0.0085


def test_the_500_test_pairs_are_distinct_and_a_prefix_of_a_longer_list():
    test = scenes.split_scenes("test", 500)
    assert len({s.content() for s in test}) == 500
    assert len({scenes.caption(s) for s in test}) == 500
    assert scenes.split_scenes("test", 600)[:500] == test
    assert scenes.split_scenes("test", 500, seed=1) != test


def test_captions_tell_the_whole_content_and_only_that():
    by_caption = {}
    for scene in scenes.split_scenes("train", 5_000, 2):
        assert by_caption.setdefault(scenes.caption(scene), scene.content()) == scene.content()
    scene = scenes.split_scenes("train", 1)[0]
    assert scenes.caption(scene) == scenes.caption(replace(scene, seed=99))


def test_each_word_of_the_content_is_in_the_caption():
    for scene in scenes.split_scenes("test", 200, 7):
        text = f" {scenes.caption(scene)} "
        assert text.strip().endswith(f"on {scene.background}") or f" on {scene.background} " in text
        for t in scene.things:
            assert f" {t.size} {t.colour} {t.shape} " in text
            assert f" at {t.place} " in text


def test_pictures_are_deterministic_and_vary_with_the_seed_only():
    scene = scenes.split_scenes("test", 1)[0]
    first, second = scene.things
    assert np.array_equal(pixels(scene), pixels(scene))
    assert np.array_equal(pixels(scene), pixels(replace(scene, wording=(scene.wording + 1) % 3)))
    assert np.array_equal(pixels(scene), pixels(replace(scene, things=(second, first))))
    assert np.abs(pixels(scene) - pixels(replace(scene, seed=scene.seed + 1))).mean() > 3


@pytest.mark.parametrize("size", [16, 48, 65, 224])
def test_size_of_the_picture(size):
    picture = scenes.draw(scenes.split_scenes("train", 1)[0], size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))


@pytest.mark.parametrize("place", list(scenes.PLACES))
def test_the_thing_is_where_the_caption_says_in_its_colour(place):
    other = next(p for p in scenes.PLACES if p != place)
    far = scenes.Thing("small", "blue", "circle", other)
    for seed in range(20):
        red = scenes.Thing("large", "red", "circle", place)
        picture = pixels(scenes.Scene((red, far), "white", 0, seed))
        reddish = (picture[..., 0] - picture[..., 1:].max(-1)) > 90
        y, x = np.argwhere(reddish).mean(0) / 64
        assert abs(x - scenes.PLACES[place][0]) < 0.1
        assert abs(y - scenes.PLACES[place][1]) < 0.1


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_the_smallest_large_is_larger_than_the_largest_small(shape):
    def area(size, seed):
        thing = scenes.Thing(size, "red", shape, "top left")
        far = scenes.Thing("small", "blue", "circle", "bottom right")
        picture = pixels(scenes.Scene((thing, far), "white", 0, seed))
        return int(((picture[..., 0] - picture[..., 1:].max(-1)) > 90).sum())

    assert min(area("large", s) for s in range(30)) > max(area("small", s) for s in range(30))


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(scenes.COLOURS, 2)), ids="-".join)
def test_colours_stay_apart_under_tint(a, b):
    # Tints move a channel by at most 12, so 24 between two colours that come closest.
    distance = np.abs(np.subtract(scenes.COLOURS[a], scenes.COLOURS[b])).max()
    assert distance > 2 * 12


@pytest.mark.parametrize(("split", "count"), [("val", 3), ("test", -1), ("test", 10**6)])
def test_impossible_requests_are_refused(split, count):
    with pytest.raises(ValueError, match="split_scenes"):
        scenes.split_scenes(split, count)


def test_a_picture_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        scenes.draw(scenes.split_scenes("train", 1)[0], 8)
