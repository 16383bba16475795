"""Records of attention and of heads: maps that are planted are read as such, those that know nothing are the null."""

import numpy as np
import pytest
import torch
from sklearn.metrics import calinski_harabasz_score

from dit_lens.attention_records import weights
from dit_lens.experiments.attended import best_matches, frame_separation, words_in_regions
from dit_lens.families.attention import Attention
from dit_lens.families.site import Tokens

GRID = (3, 4, 5)
TEXT = Tokens((1, 1, 6))
REGIONS = np.zeros((3, *GRID), bool)
REGIONS[0] = True
REGIONS[1, :, 1, 2:4] = True  # the third has no token
GROUPS = (1, 0, 1, 2, 3, 3)


def attention(q, k, keys, mask=None):
    return Attention(q, k, k, mask, 1.0, Tokens(GRID), keys)


def words(q, k):
    return words_in_regions(regions=REGIONS, groups=GROUPS, count=4)(attention(q, k, TEXT)).numpy()


def test_a_word_that_is_looked_at_from_its_object_is_found_there_and_no_other_is():
    q, k = torch.zeros(60, 2, 8), torch.zeros(6, 2, 8)
    q[torch.from_numpy(REGIONS[1].ravel()), 1, 0], k[1, 1, 0] = 3.0, 1.0
    found = words(q, k)
    assert found.shape == (2, 3, 4, 2)
    mass, auc = found[1, :, 0].T
    inside, outside = np.exp(3) / (np.exp(3) + 5), 1 / 6
    assert mass[1] == pytest.approx(inside, rel=1e-5)
    assert mass[0] == pytest.approx(inside / 10 + outside * 0.9, rel=1e-5)
    assert auc[1] == 1 and np.isnan(auc[0]) and np.isnan(found[:, 2]).all()
    assert (found[1, 1, 1:, 1] == 0).all()  # the others have less there
    # The head that knows nothing gives every token as much, and ties are no evidence.
    np.testing.assert_allclose(found[0, :2, :, 0], np.tile([1, 2, 1, 2], (2, 1)) / 6, rtol=1e-5)
    np.testing.assert_allclose(found[0, 1, :, 1], 0.5)


def test_mass_and_auc_are_those_of_the_whole_map():
    torch.manual_seed(0)
    q, k = torch.randn(60, 2, 8), torch.randn(6, 2, 8)
    found = words(q, k)
    whole = weights(attention(q, k, TEXT), torch.arange(60)).numpy()
    for head in range(2):
        for group in range(4):
            values = whole[head][:, np.array(GROUPS) == group].sum(1)
            here, elsewhere = values[REGIONS[1].ravel()], values[~REGIONS[1].ravel()]
            auc = (here[:, None] > elsewhere).mean()
            np.testing.assert_allclose(found[head, 1, group], [here.mean(), auc], rtol=1e-5)


def moving(shift):
    """Return queries and keys of which a token's best match in another frame is `shift` columns on for every frame between."""
    frame, y, x = np.unravel_index(np.arange(60), GRID)
    code = torch.eye(20)
    where = torch.from_numpy(y * 5 + (x - shift * frame) % 5)
    q = k = code[where][:, None].repeat(1, 2, 1) * 40
    return q, k


def test_matches_are_where_the_object_is_also_where_the_softmax_is_zero():
    q, k = moving(1)
    found = best_matches(places=((0, 1, 2), (2, 3, 0)))(attention(q, k, Tokens(GRID)))
    assert found.shape == (2, 2, 3, 2)
    expected = [[[1, 2], [1, 3], [1, 4]], [[3, 3], [3, 4], [3, 0]]]
    assert found[0].tolist() == expected and found[1].tolist() == expected
    still = best_matches(places=((0, 1, 2),))(attention(*moving(0), Tokens(GRID)))
    assert still[0, 0].tolist() == [[1, 2]] * 3


def test_a_frame_that_may_not_be_seen_has_no_match():
    frame = torch.arange(3).repeat_interleave(20)
    mask = (frame[:, None] >= frame[None])[None]
    found = best_matches(places=((1, 1, 2),))(attention(*moving(1), Tokens(GRID), mask))
    assert found[0, 0, :2].tolist() == [[1, 1], [1, 2]] and found[0, 0, 2].isnan().all()


def test_separation_is_that_of_calinski_and_harabasz_and_of_its_null():
    torch.manual_seed(0)
    labels = np.repeat(np.arange(3), 20)
    h = torch.randn(3, 4, 5, 8) + torch.randn(3, 1, 1, 8)
    share = float(frame_separation(h))
    index = (60 - 3) / (3 - 1) * share / (1 - share)
    assert index == pytest.approx(calinski_harabasz_score(h.reshape(60, 8), labels), rel=1e-4)
    null = [float(frame_separation(torch.randn(3, 4, 5, 8))) for _ in range(400)]
    assert np.mean(null) == pytest.approx((3 - 1) / (60 - 1), rel=0.05)


def test_separation_of_frames_that_are_alike_and_of_tokens_that_are():
    by_frame = torch.randn(3, 1, 1, 8).expand(3, 4, 5, 8)
    assert float(frame_separation(by_frame)) == pytest.approx(1)
    assert float(frame_separation(torch.randn(1, 4, 5, 8).expand(3, 4, 5, 8))) < 1e-10
    assert float(frame_separation(torch.zeros(3, 4, 5, 8, dtype=torch.bfloat16))) == 0
