"""Colours of parts: steady over depths, different where parts touch."""

import numpy as np

from ehm.analysis.colours import PALETTE, choose_part_colours, compute_heat_colours

GRID = (2, 2)
PARENT = np.array([4, 4, 5, 6, 5, 6, -1], np.int32)  # ((0 1) 2) 3
SIZE = np.array([1, 1, 1, 1, 2, 3, 4], np.int32)
CUTS = [np.array(cut) for cut in ([6, 6, 6, 6], [5, 5, 5, 3], [4, 4, 2, 3], [0, 1, 2, 3])]


def test_a_parent_takes_the_colour_of_its_largest_child():
    colours = choose_part_colours(PARENT, SIZE, CUTS, GRID)
    assert (colours[6] == colours[5]).all()
    assert (colours[5] == colours[4]).all()
    assert (colours[4] == colours[0]).all()


def test_touching_parts_differ_in_every_cut():
    rng = np.random.default_rng(0)
    grid, patches = (6, 6), 36
    parent, size = np.full(2 * patches - 1, -1), np.ones(2 * patches - 1, int)
    members = {node: {divmod(node, 6)} for node in range(patches)}
    cuts = []
    for node in range(patches, 2 * patches - 1):  # merge neighbours at random, so that parts are connected
        one = list(members)[rng.integers(len(members))]
        near = {(r + dr, c + dc) for r, c in members[one] for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0))}
        other = next(key for key in members if key != one and members[key] & near)
        parent[one] = parent[other] = node
        size[node] = size[one] + size[other]
        members[node] = members.pop(one) | members.pop(other)
        if len(members) in (12, 8, 4):
            cuts.append(
                np.array([next(key for key in members if divmod(p, 6) in members[key]) for p in range(patches)])
            )
    colours = choose_part_colours(parent, size, cuts, grid)
    for cut in cuts:
        parts = cut.reshape(grid)
        for one, other in ((parts[:, 1:], parts[:, :-1]), (parts[1:], parts[:-1])):
            touching = one != other
            assert (colours[one[touching]] != colours[other[touching]]).any(-1).all()


def test_with_more_parts_than_colours_touching_ones_still_differ():
    grid, patches = (3, 12), 36  # the middle row is one part and touches the 24 single patches above and below
    parent, size = np.full(2 * patches - 1, -1), np.ones(2 * patches - 1, int)
    chain = [*range(12, 24), *range(12), *range(24, 36)]
    node = chain[0]
    for new, leaf in enumerate(chain[1:], patches):
        parent[[node, leaf]], size[new], node = new, size[node] + 1, new
    middle = patches + 10
    cut = np.where(np.arange(patches) // 12 == 1, middle, np.arange(patches))
    colours = choose_part_colours(parent, size, [cut], grid)[cut].reshape(3, 12, 3)
    assert (colours[1] == colours[1, 0]).all()
    assert (colours[[0, 2]] != colours[1, 0]).any(-1).all()
    assert (colours[[0, 2], 1:] != colours[[0, 2], :-1]).any(-1).all()
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == len(PALETTE)


def test_palette_colours_are_apart():
    distances = np.linalg.norm(PALETTE[:, None].astype(float) - PALETTE[None], axis=-1)
    assert (distances[~np.eye(len(PALETTE), dtype=bool)] > 50).all()


def test_heat_runs_from_black_to_pale_with_rising_lightness():
    colours = compute_heat_colours(np.linspace(0, 1, 50))
    assert (np.diff(colours.astype(float) @ (0.299, 0.587, 0.114)) > -1).all()
    assert colours[0].tolist() == [0, 0, 4]
    assert colours[-1].tolist() == [252, 255, 164]
