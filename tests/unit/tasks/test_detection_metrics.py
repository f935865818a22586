"""Average precision against pycocotools, COCO's own code, and cases counted by hand."""

import numpy as np
import pytest
from pycocotools import mask as tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ehm.data.instances import Detections
from ehm.tasks.detection.metrics import encode_detections, report_detection

SIDE = 200
CLASSES = ("cat", "cup", "spoon")


def ellipse(box):
    left, top, right, bottom = box
    rows, columns = np.ogrid[:SIDE, :SIDE]
    across, down = (2 * columns - left - right) / (right - left), (2 * rows - top - bottom) / (bottom - top)
    return across**2 + down**2 < 1


def annotate(image, label, box, crowd=False):
    code = tools.encode(np.asfortranarray(ellipse(box).astype(np.uint8)))
    bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    area = float(tools.area(code))
    return {"image_id": image, "category_id": label, "bbox": bbox, "segmentation": code, "area": area} | {
        "iscrowd": int(crowd)
    }


def found(boxes, labels, scores):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    masks = np.array([ellipse(box) for box in boxes]).reshape(-1, SIDE, SIDE)
    return Detections(boxes, np.asarray(labels, np.int64), masks, np.asarray(scores, np.float32))


def images(*numbers):
    return [{"id": number, "height": SIDE, "width": SIDE} for number in numbers]


def random_boxes(rng, count):
    sizes = np.exp(rng.uniform(np.log(12), np.log(180), (count, 2)))
    places = rng.uniform(0, SIDE - sizes)
    return np.concatenate([places, places + sizes], axis=1)


def random_case(seed):
    """Objects of all sizes, crowds among them; detections near them, doubled, of a wrong class, or nowhere."""
    rng, truth, rows = np.random.default_rng(seed), [], []
    for image in range(6):
        boxes, labels = random_boxes(rng, 7), rng.integers(0, 2, 7)
        for box, label in zip(boxes, labels, strict=True):
            truth.append(annotate(image, int(label), box, crowd=rng.random() < 0.2))
        near = np.concatenate([boxes, boxes[:4]]) + rng.normal(0, 3, (11, 4))
        near = np.concatenate([near, random_boxes(rng, 3)]).clip(0, SIDE)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        classes = np.concatenate([labels, labels[:4], rng.integers(0, 2, 3)])
        wrong = rng.random(len(classes)) < 0.2
        rows += encode_detections(
            image, found(near, np.where(wrong, 1 - classes, classes), rng.random(len(near)).round(1))
        )
    return truth, rows


def official(truth, rows, kind):
    right = COCO()
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    objects = [{**row, "id": number} for number, row in enumerate(truth, start=1)]
    right.dataset = {"images": images(*range(6)), "annotations": objects, "categories": categories}
    right.createIndex()
    leave = "bbox" if kind == "segm" else "segmentation"
    answers = right.loadRes([{key: value for key, value in row.items() if key != leave} for row in rows])
    evaluation = COCOeval(right, answers, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[:6], evaluation.eval["precision"]


@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_pycocotools_counts(seed):
    truth, rows = random_case(seed)
    report = report_detection(images(*range(6)), truth, rows, CLASSES, masks=True)
    for ours, kind in ((report.boxes, "bbox"), (report.masks, "segm")):
        whole, precision = official(truth, rows, kind)
        mine = (ours.ap, ours.ap50, ours.ap75, ours.small, ours.medium, ours.large)
        np.testing.assert_allclose(mine, whole, atol=1e-9)
        assert 0.05 < ours.ap < 0.9
        for label in (0, 1):
            assert ours.per_class[label] == pytest.approx(precision[:, :, label, 0, -1].mean(), abs=1e-9)
        assert ours.per_class[2] is None  # no object is one
    assert report.boxes.ap != report.masks.ap
    crowds = sum(row["iscrowd"] for row in truth)
    assert crowds > 3
    assert sum(report.objects) == len(truth) - crowds


BOX, OTHER = (20, 20, 80, 80), (110, 110, 190, 190)


def measure(truth, answers, **options):
    rows = [row for image, answer in answers.items() for row in encode_detections(image, answer)]
    return report_detection(images(*answers), truth, rows, CLASSES[:2], masks=True, **options)


def test_right_answers_are_1_and_none_are_0():
    truth = [annotate(0, 0, BOX), annotate(0, 1, OTHER)]
    right = measure(truth, {0: found([BOX, OTHER], [0, 1], [0.9, 0.8])})
    names = ["box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75"]
    assert right.figures == pytest.approx(dict.fromkeys(names, 1.0))
    assert (right.boxes.small, right.boxes.medium, right.objects) == (None, pytest.approx(1), (1, 1))
    nothing = measure(truth, {0: found([], [], [])})
    assert (nothing.score, nothing.masks.ap50, nothing.boxes.per_class) == (0, 0, (0, 0))
    assert measure([], {0: found([BOX], [0], [0.9])}).figures["box_ap"] is None


def test_cases_counted_by_hand():
    two = [annotate(0, 0, BOX), annotate(0, 0, OTHER)]
    # one of two objects: precision 1 up to recall 0.5, that is at 51 of 101 recalls
    assert measure(two, {0: found([BOX], [0], [0.9])}).boxes.ap == pytest.approx(51 / 101)
    # a likelier false one before it: precision 1/2 there
    false = found([(0, 100, 50, 150), BOX], [0, 0], [0.9, 0.8])
    assert measure(two, {0: false}).boxes.ap == pytest.approx(51 / 101 / 2)
    # an overlap of 48 * 60 / 60 ** 2 = 0.8 counts up to the seventh of ten thresholds
    shifted = found([(20, 20, 68, 80), OTHER], [0, 0], [0.9, 0.8])
    assert measure([two[0]], {0: found([(20, 20, 68, 80)], [0], [0.9])}).boxes.ap == pytest.approx(0.7)
    assert measure(two, {0: shifted}).boxes.ap50 == pytest.approx(1)
    # inside a crowd a detection is neither right nor wrong
    crowd = [annotate(0, 0, BOX), annotate(0, 0, OTHER, crowd=True)]
    assert measure(crowd, {0: found([BOX, OTHER], [0, 0], [0.5, 0.9])}).boxes.ap == pytest.approx(1)
    # beyond the number of detections that count
    late = {0: found([(0, 100, 50, 150), BOX], [0, 0], [0.9, 0.8])}
    assert measure([two[0]], late, detections=1).boxes.ap == 0
    assert measure([two[0]], late).boxes.ap == pytest.approx(0.5)


def test_what_a_file_leaves_out_is_added(capsys):
    whole = [annotate(0, 0, BOX), annotate(0, 1, OTHER)]
    bare = [{key: each[key] for key in ("image_id", "category_id", "bbox", "segmentation")} for each in whole]
    answers = {0: found([BOX, OTHER], [0, 0], [0.9, 0.8])}
    assert measure(bare, answers) == measure(whole, answers)
    capsys.readouterr()
    measure(whole, answers).show()
    said = capsys.readouterr().out
    assert "average precision on 1 images, 2 objects" in said
    assert "Accumulating" not in said
    assert "100.0%" in said


def test_without_images_there_is_nothing_to_say():
    with pytest.raises(ValueError, match="images"):
        report_detection([], [], [], CLASSES, masks=False)
