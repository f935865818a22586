"""The way from similarity to mask on torch devices against SciPy, the host's way, and arithmetic written out."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from similarities import softmax, symmetric

from ehm import masking
from ehm.masking.masks import draw_ranks

torch = pytest.importorskip("torch", reason="trees are built on torch's devices only")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from ehm.backends.torch.engine import hierarchy as on_device  # noqa: E402
from ehm.backends.torch.engine import masks as masks_on_device  # noqa: E402

DEVICES = ["cpu"]
if torch.accelerator.is_available():
    DEVICES.append(torch.accelerator.current_accelerator().type)

every_device = pytest.mark.parametrize("device", DEVICES)


def random(rng, n):
    return symmetric(rng.random((n, n)))


def structured(rng, n):
    features = rng.normal(size=(n, 12))
    return symmetric(softmax(features @ features.T))


def blocks(rng, n):
    """A few kinds of patches, alike within a kind."""
    kind = rng.integers(0, max(2, n // 12), n)
    return 0.5 * (kind[:, None] == kind) + 0.2 * random(rng, n)


def hubs(rng, n):
    """Patches that everybody attends to: the trees are long chains."""
    return symmetric(softmax(0.05 * rng.normal(size=(n, n)) + 0.3 * rng.normal(size=n)))


def ties(rng, n):
    return symmetric(rng.integers(0, 4, (n, n)) / 8)


def a_rounding_apart(rng, n):
    """Rounding decides what is merged first, and nothing else may hang on it."""
    return symmetric(0.3 + rng.integers(0, 3, (n, n)) * 3e-8)


def all_equal(rng, n):
    return np.full((n, n), 0.25)


def batch_of(kind, n, images=3):
    rng = np.random.default_rng(n)
    return np.stack([kind(rng, n) for _ in range(images)]).astype(np.float32)


def built(similarity, device="cpu"):
    return on_device.build_hierarchy(torch.from_numpy(similarity).to(device))


def to_host(tree):
    """The same trees as arrays in host memory."""
    return masking.Hierarchy(
        tree.parent.cpu().numpy().astype(np.int32),
        tree.level.cpu().numpy(),
        tree.size.cpu().numpy(),
        tree.similarity.cpu().numpy(),
    )


@every_device
@pytest.mark.parametrize("grid", [(1, 2), (1, 3), (2, 2), (3, 5), (7, 7), (8, 13), (14, 14)])
@pytest.mark.parametrize("kind", [random, structured, blocks, hubs])
def test_trees_are_scipys_and_the_hosts(kind, grid, device):
    batch = batch_of(kind, math.prod(grid))
    tree, host = to_host(built(batch, device)), masking.build_hierarchy(batch)
    for name in ("parent", "level", "size", "similarity"):
        ours, theirs = getattr(tree, name), getattr(host, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=2e-6 if name == "similarity" else 0)
    for b, similarity in enumerate(batch):
        expected = linkage(squareform(1 - similarity.astype(np.float64), checks=False), "average")
        np.testing.assert_array_equal(tree.linkage(b)[:, [0, 1, 3]], expected[:, [0, 1, 3]])


@every_device
def test_an_image_alone_gives_the_tree_that_it_has_in_a_batch(device):
    batch = np.concatenate([batch_of(kind, 60, 1) for kind in (hubs, structured, random, ties)])
    together = built(batch, device)  # one is finished long before another
    for b in range(len(batch)):
        alone = built(batch[b : b + 1], device)
        assert alone.parent.shape == (1, 119)
        assert torch.equal(alone.parent[0], together.parent[b])


@every_device
def test_rounding_errors_of_the_symmetry_are_averaged_away(device):
    rng = np.random.default_rng(0)
    noisy = batch_of(random, 60, 16) + 1e-4 * rng.normal(size=(16, 60, 60)).astype(np.float32)
    np.testing.assert_array_equal(to_host(built(noisy, device)).parent, masking.build_hierarchy(noisy).parent)


@every_device
def test_siblings_and_identities_follow_from_the_parents(device):
    tree = built(batch_of(structured, 40), device)
    fields = (tensor.tolist() for tensor in (tree.parent, tree.sibling, tree.identity))
    for parents, siblings, identities in zip(*fields, strict=True):
        first = [*range(40), *[None] * 39]  # the smallest leaf below each node
        for node in range(40, 79):
            a, b = (v for v in range(79) if parents[v] == node)
            assert (siblings[a], siblings[b]) == (b, a)
            assert identities[node] == 39 + max(first[a], first[b])
            first[node] = min(first[a], first[b])
        assert siblings[78] == 78
        assert identities[:40] == list(range(40))
        assert sorted(identities) == list(range(79))


@every_device
@pytest.mark.parametrize("n", [5, 20, 60])
@pytest.mark.parametrize("kind", [ties, all_equal, a_rounding_apart])
def test_tied_merges_are_among_the_best(kind, n, device):
    similarity = batch_of(kind, n, 1)
    tree = to_host(built(similarity, device))
    assert (np.diff(tree.similarity[0, n:]) <= 0).all()
    roots = {i: [i] for i in range(n)}
    for node in range(n, 2 * n - 1):
        means = {(a, b): similarity[0][np.ix_(roots[a], roots[b])].mean() for a, b in itertools.combinations(roots, 2)}
        a, b = np.flatnonzero(tree.parent[0] == node)
        assert means[a, b] == pytest.approx(max(means.values()), abs=1e-6)
        assert tree.similarity[0, node] == pytest.approx(means[a, b], abs=1e-6)
        assert tree.level[0, node] == 1 + max(tree.level[0, [a, b]])
        assert max(a, b) < node
        roots[node] = roots.pop(a) + roots.pop(b)
        assert tree.size[0, node] == len(roots[node])


@every_device
def test_rounding_never_stops_the_merging(device):
    tree = built(batch_of(a_rounding_apart, 60, 16), device)
    assert (tree.size[:, -1] == 60).all()


@every_device
def test_all_equal_similarities_give_the_hosts_tree(device):
    batch = batch_of(all_equal, 50)
    np.testing.assert_array_equal(to_host(built(batch, device)).parent, masking.build_hierarchy(batch).parent)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 40),
    st.sampled_from([random, structured, hubs, ties, all_equal]),
    st.floats(0, 1) | st.integers(0, 20).map(lambda twentieth: twentieth / 20),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.integers(0, 2**32 - 1),
)
def test_masks_and_figures_of_a_tree_are_the_hosts(n, kind, depth, ratio, seed):
    rng = np.random.default_rng(seed)
    tree = built(np.stack([kind(rng, n) for _ in range(2)]).astype(np.float32))
    check_masks_and_figures(tree, depth, ratio, draw_ranks(rng, 2, n))


@every_device
@pytest.mark.parametrize("depth", [0, 0.2, 0.35, 0.6, 0.9, 1])
def test_masks_and_figures_of_large_trees_are_the_hosts(depth, device):
    tree = built(np.concatenate([batch_of(kind, 196, 2) for kind in (structured, hubs, ties)]), device)
    check_masks_and_figures(tree, depth, 0.75, draw_ranks(np.random.default_rng(0), 6, 196))


def check_masks_and_figures(tree, depth, ratio, ranks):
    host = to_host(tree)
    mask = masks_on_device.hierarchical_mask(tree, depth, ratio, torch.from_numpy(ranks).to(tree.parent.device))
    assert mask.dtype == torch.bool
    assert mask.device == tree.parent.device
    np.testing.assert_array_equal(mask.cpu(), masking.hierarchical_mask(host, depth, ratio, ranks=ranks))
    level = masking.masking_level(depth, host.height)
    parts = host.parts(level)
    figures = masks_on_device.describe_parts(tree, depth)
    assert all(figure.shape == () and figure.device == mask.device for figure in figures.values())
    assert {name: float(figure) for name, figure in figures.items()} == pytest.approx(
        {
            "mask_level": level.mean(),
            "tree_height": host.height.mean(),
            "parts": parts.sum(axis=1).mean(),
            "largest_part": np.where(parts, host.size, 0).max(axis=1).mean() / host.patches,
        },
        rel=1e-6,
    )


@every_device
@pytest.mark.parametrize("kind", [structured, hubs])
def test_from_similarity_to_mask_both_ways_agree(kind, device):
    batch = batch_of(kind, 12 * 9, 4)
    ranks = draw_ranks(np.random.default_rng(1), 4, 108)
    tree = on_device.build_hierarchy(on_device.balance(torch.from_numpy(batch).to(device)))
    for depth in (0, 0.3, 0.7):
        ours = masks_on_device.hierarchical_mask(tree, depth, 0.6, torch.from_numpy(ranks).to(device))
        theirs = masking.hierarchical_mask(masking.build_hierarchy(masking.balance(batch)), depth, 0.6, ranks=ranks)
        np.testing.assert_array_equal(ours.cpu(), theirs)


@every_device
def test_balanced_similarities_are_the_hosts(device):
    batch = np.concatenate([batch_of(hubs, 49), batch_of(random, 49)])
    batch[0, 7] = batch[0, :, 7] = 0  # a patch that resembles nothing keeps its zeros
    ours = on_device.balance(torch.from_numpy(batch).to(device)).cpu().numpy()
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, masking.balance(batch), rtol=1e-5)
    np.testing.assert_array_equal(ours, ours.swapaxes(1, 2))
    np.testing.assert_allclose(np.delete(ours.sum(axis=1)[0], 7), 1, rtol=1e-3)
    once = on_device.balance(torch.from_numpy(batch[3:]).to(device), iterations=1).cpu()
    np.testing.assert_allclose(once, masking.balance(batch[3:], iterations=1), rtol=1e-5)


@every_device
@pytest.mark.parametrize("count", [0, 1, 9, 23, 24])
def test_a_mask_is_split_in_order(count, device):
    rng = np.random.default_rng(count)
    mask = np.stack([rng.permutation(24) < count for _ in range(5)])
    visible, masked, restore = masks_on_device.split_mask(torch.from_numpy(mask).to(device), count)
    for row in range(5):
        assert visible[row].tolist() == np.flatnonzero(~mask[row]).tolist()
        assert masked[row].tolist() == np.flatnonzero(mask[row]).tolist()
        both = torch.cat([visible[row], masked[row]])
        assert both[restore[row]].tolist() == list(range(24))


class Calls(TorchDispatchMode):
    """Names of the operators called, the types of the tensors given to them, and what is gathered."""

    def __init__(self):
        super().__init__()
        self.names, self.dtypes, self.gathered = [], set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor):
                self.dtypes.add(value.dtype)
        if self.names[-1] == "gather":
            self.gathered.add(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_the_device_is_read_once_in_a_few_rounds():
    batch = torch.from_numpy(batch_of(hubs, 60))
    ranks = torch.from_numpy(draw_ranks(np.random.default_rng(0), 3, 60))
    with Calls() as calls:
        tree = on_device.build_hierarchy(on_device.balance(batch))
        mask = masks_on_device.hierarchical_mask(tree, 0.5, 0.75, ranks)
        masks_on_device.describe_parts(tree, 0.5)
        masks_on_device.split_mask(mask, 45)
    assert 0 < calls.names.count("_local_scalar_dense") <= 59 / 4
    assert not {"nonzero", "masked_select", "index", "unique", "scatter", "item"} & set(calls.names)
    assert calls.dtypes <= {torch.float32, torch.int32, torch.int64, torch.bool}
    assert torch.float32 in calls.gathered
    assert torch.bool not in calls.gathered  # which CANN's GatherElements computes on AICPU alone


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("n", "where"), [(2, (0, 1)), (20, (0, 1)), (20, (4, 19))])
def test_a_similarity_that_is_not_finite_is_refused(value, n, where):
    batch = batch_of(random, n)
    batch[1][where] = batch[1][where[::-1]] = value
    with pytest.raises(ValueError, match="similarity must be finite"):
        built(batch)


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 4), (2, 4, 5), (2, 1, 1), (1, 5000, 5000)])
@pytest.mark.parametrize("function", [on_device.balance, on_device.build_hierarchy])
def test_other_shapes_are_refused(function, shape):
    with pytest.raises(ValueError, match=r"similarity must have shape \(B, N, N\)"):
        function(torch.empty(shape, device="meta"))


def test_bad_arguments_are_named():
    tree, ranks = built(batch_of(random, 9)), torch.zeros(3, 17, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"ranks must have shape \(3, 17\), not \(3, 9\)"):
        masks_on_device.hierarchical_mask(tree, 0.5, 0.5, ranks[:, :9])
    with pytest.raises(ValueError, match="ratio must be in"):
        masks_on_device.hierarchical_mask(tree, 0.5, 1, ranks)
    with pytest.raises(ValueError, match="progress must be in"):
        masks_on_device.hierarchical_mask(tree, 1.5, 0.5, ranks)
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        on_device.balance(torch.ones(1, 3, 3), iterations=0)


ON_THE_NPU = """
import sys
import numpy as np, torch, torch_npu
from ehm.backends.torch.engine import hierarchy, masks
from ehm.masking.masks import draw_ranks

rng = np.random.default_rng(0)
features = rng.normal(size=(3, 48, 8)).astype(np.float32)
similarity = np.exp(features @ features.swapaxes(1, 2) / 4)
similarity[0] += similarity[0].mean(axis=0) * 5 + similarity[0].mean(axis=1)[:, None] * 5
ranks = draw_ranks(rng, 3, 48)

def chain(device):
    tree = hierarchy.build_hierarchy(hierarchy.balance(torch.from_numpy(similarity).to(device)))
    mask = masks.hierarchical_mask(tree, 0.4, 0.75, torch.from_numpy(ranks).to(device))
    found = [*vars(tree).values(), mask, *masks.describe_parts(tree, 0.4).values(), *masks.split_mask(mask, 36)]
    assert {tensor.device.type for tensor in found} == {device}
    return [tensor.cpu().numpy() for tensor in found]

for ours, theirs in zip(chain("npu"), chain("cpu"), strict=True):
    np.testing.assert_array_equal(ours, theirs)
print("equal")
"""


def test_the_simulated_npu_gives_the_same_and_falls_back_nowhere():
    simulated = Path(__file__).parents[1] / "simulated"
    environment = {**os.environ, "PYTHONPATH": str(simulated), "TORCH_NPU_FALLBACK_CPU_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_THE_NPU], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr
