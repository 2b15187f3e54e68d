"""Pictures of words and numbers: seeded, held out by their text, and what they show."""

from itertools import islice

import numpy as np

from mlx_dgemma.tasks.readings import CONTRAST, draw_readings, is_held_out


def drawn(n, *, held_out, seed=0):
    return list(islice(draw_readings(seed, held_out=held_out), n))


def test_the_same_seed_draws_the_same_pictures():
    for (one, text), (other, again) in zip(drawn(20, held_out=False), drawn(20, held_out=False), strict=True):
        assert text == again and one.size == other.size and one.tobytes() == other.tobytes()
    assert drawn(1, held_out=False)[0][0].tobytes() != drawn(1, held_out=False, seed=1)[0][0].tobytes()


def test_what_is_held_out_is_never_shown_in_training():
    seen = {text for _, text in drawn(3000, held_out=False)}
    kept = {text for _, text in drawn(300, held_out=True)}
    assert not seen & kept and all(map(is_held_out, kept)) and not any(map(is_held_out, seen))
    assert any(text.isdigit() for text in kept) and any(text.isalpha() for text in kept)
    assert {len(text) for text in seen} == {1, 2, 3, 4, 5, 6}


def test_a_picture_shows_its_text_and_no_more():
    """Ink is there, apart from the ground, and nothing touches the edge."""
    for image, text in drawn(100, held_out=False):
        grey = np.asarray(image.convert("L")).astype(int)
        ground = np.median(grey)
        inked = abs(grey - ground) > CONTRAST * 0.7
        assert 0.01 * len(text) < inked.mean() * len(text) and inked.mean() < 0.6
        edges = np.concatenate([inked[0], inked[-1], inked[:, 0], inked[:, -1]])
        assert edges.mean() < 0.05  # noise
