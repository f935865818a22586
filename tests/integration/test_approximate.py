"""Faiss's indexes behind ``ehm predict --index`` and ``ehm serve --index``, beside exact search."""

import logging

import numpy as np
import pytest
from mean_colours import OUTPUTS, index_of, multi_head

from ehm.cli import main
from ehm.deploy.predict import faiss_index
from ehm.deploy.predict.command import predict
from ehm.deploy.predict.faiss_index import FILE, write_index
from ehm.deploy.serve.routes.neighbours import Index
from ehm.errors import BackendError, ConfigError, DataError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return multi_head(tmp_path_factory.mktemp("bundles") / "multi", *OUTPUTS)


def folder(root, features):
    np.save(root / "features.npy", features)
    lines = [f'{{"image": "{root}/{number}.png"}}\n' for number in range(len(features))]
    (root / "predictions.jsonl").write_text("".join(lines))
    return root


@pytest.fixture
def many(tmp_path):
    """2,000 images in 100 groups, and what is sought: near to one of each group."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 32))
    features = (np.repeat(centres, 20, axis=0) + rng.normal(0, 0.3, (2000, 32))).astype(np.float32)
    return folder(tmp_path, features * rng.uniform(0.5, 2, (2000, 1)).astype(np.float32)), centres.astype(np.float32)


@pytest.mark.parametrize(("kind", "recall"), [("flat", 1.0), ("hnsw", 0.98), ("ivf", 0.9)])
def test_it_finds_what_exact_search_finds(kind, recall, many):
    root, sought = many
    exact = Index(root)
    write_index(root, np.load(root / "features.npy"), kind)
    index = Index(root)
    hits = 0
    for query in sought:
        found, wanted = index.search(query, 10), exact.search(query, 10)
        similarity = {each.number: each.similarity for each in exact.search(query, 2000)}
        for each in found:
            assert each.similarity == pytest.approx(similarity[each.number], abs=1e-5)
            assert each.name == f"{each.number}.png"
        assert [each.similarity for each in found] == sorted((each.similarity for each in found), reverse=True)
        hits += len({each.number for each in found} & {each.number for each in wanted})
    assert hits / 1000 >= recall


def test_predict_writes_one_and_serve_reads_it(bundle, images, tmp_path, capsys):
    arguments = ["predict", str(bundle), str(images), "--device", "cpu", "--out", str(tmp_path / "index")]
    assert main(arguments) == 0
    exact = Index(tmp_path / "index")
    assert main([*arguments, "--index", "hnsw"]) == 0
    assert (tmp_path / "index" / FILE).is_file()
    found = Index(tmp_path / "index")
    query = np.load(tmp_path / "index" / "features.npy")[3]
    assert [each.number for each in found.search(query, 50)] == [each.number for each in exact.search(query, 50)]
    predict(bundle, images, out=tmp_path / "index", device="cpu")  # other results: their index is gone
    assert not (tmp_path / "index" / FILE).exists()


def test_an_index_of_other_features_is_refused(many, tmp_path):
    root, _ = many
    write_index(root, np.load(root / "features.npy")[:-1], "flat")
    with pytest.raises(DataError, match=r"has 1999 images of 32 features, features\.npy 2000 of 32"):
        Index(root)
    (root / FILE).write_bytes(b"no index at all")
    with pytest.raises(DataError, match=r"index\.faiss: not an index of faiss"):
        Index(root)


def test_without_faiss_search_is_exact_and_the_log_says_so(many, monkeypatch, caplog, bundle, images, tmp_path):
    root, sought = many
    exact = Index(root).search(sought[0], 5)
    write_index(root, np.load(root / "features.npy"), "ivf")
    monkeypatch.setattr(faiss_index, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, "ehm.serve"):
        assert Index(root).search(sought[0], 5) == exact
    assert "faiss is not installed, searching exactly" in caplog.text
    with pytest.raises(BackendError, match=r"pip install .*\[index\]'"):
        predict(bundle, images, out=tmp_path / "out", index="flat", device="cpu")
    assert not (tmp_path / "out").exists()


def test_wrong_input_is_one_sentence(bundle, images, tmp_path):
    with pytest.raises(ConfigError, match="--index tree: expected one of flat, hnsw, ivf"):
        predict(bundle, images, out=tmp_path / "out", index="tree", device="cpu")
    with pytest.raises(ConfigError, match="--index flat: needs --out"):
        predict(bundle, images, index="flat", device="cpu")
    logits = multi_head(tmp_path / "logits", *(output for output in OUTPUTS if output != "features"))
    with pytest.raises(ConfigError, match="--index flat: the bundle gives no features"):
        predict(logits, images, out=tmp_path / "out", index="flat", device="cpu")
    assert not (tmp_path / "out").exists()
    assert not list(index_of(bundle, tmp_path / "other").glob(FILE))
