"""Small sets of questions in the official layouts, written for tests."""

import json

from PIL import Image

COLOURS = {"red": (230, 30, 30), "blue": (30, 30, 230), "green": (30, 180, 30)}


def write_image(path, colour="red", size=(16, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)


def write_json(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def write_easy_vqa(root):
    """Three images in each part, one of a colour each, and three questions about each image."""
    for part in ("train", "test"):
        rows = []
        for number, colour in enumerate(COLOURS):
            write_image(root / part / "images" / f"{number}.png", colour, (8, 8))
            rows.append(["what color is the shape?", colour, number])
            rows.append(["is there a red shape?", "yes" if colour == "red" else "no", number])
            rows.append(["what shape is in the image?", "circle", number])
        write_json(root / part / "questions.json", rows)
    return root


def vqa_answers(*answers):
    """Ten answers as VQAv2's files have them, the last one as often as is missing."""
    votes = [*answers, *[answers[-1]] * (10 - len(answers))]
    return [{"answer": each, "answer_confidence": "yes", "answer_id": number} for number, each in enumerate(votes, 1)]


def write_vqa(root, parts=("train2014", "val2014", "test2015")):
    """VQAv2 with two questions about each of two images in every part."""
    for part in parts:
        questions = []
        annotations = []
        for image in (9, 25):
            write_image(root / part / f"COCO_{part}_{image:012d}.jpg")
            for place, (text, kind, answer) in enumerate(
                [("Is it red?", "yes/no", "yes"), ("What is on the left?", "other", "a cat")]
            ):
                number = 1000 * image + place
                questions.append({"question_id": number, "image_id": image, "question": text})
                annotations.append(
                    {
                        "question_id": number,
                        "image_id": image,
                        "question_type": " ".join(text.lower().split()[:2]),
                        "answer_type": kind,
                        "multiple_choice_answer": answer,
                        "answers": vqa_answers("no", answer),
                    }
                )
        write_json(root / f"v2_OpenEnded_mscoco_{part}_questions.json", {"questions": questions})
        if not part.startswith("test"):
            write_json(root / f"v2_mscoco_{part}_annotations.json", {"annotations": annotations})
    return root


CATEGORIES = [{"id": 1, "name": "person"}, {"id": 74, "name": "mouse"}, {"id": 10, "name": "traffic light"}]
OBJECTS = {  # for each image the categories of its objects; a negative one is a crowd
    7: [1, 1, 74],
    8: [-1, 10, 10, 10],
    9: [74] * 10,
    11: [],
}


def write_coco(root, parts=("train2017", "val2017")):
    """COCO's instances with four images in each part, the objects of which are OBJECTS."""
    for part in parts:
        images = []
        annotations = []
        for number, categories in OBJECTS.items():
            name = f"{number:012d}.jpg"
            write_image(root / part / name, "green", (40, 30))
            images.append({"id": number, "file_name": name, "height": 30, "width": 40})
            for category in categories:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": abs(category),
                        "bbox": [1, 1, 5, 5],
                        "area": 25,
                        "iscrowd": int(category < 0),
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        write_json(root / "annotations" / f"instances_{part}.json", content)
    return root


def write_vcr(root):
    """VCR with two images in each part, of which the first has two questions."""
    for part in ("train", "val"):
        lines = []
        for number, (image, objects) in enumerate(
            [("film/a@0.jpg", ["person", "person", "diningtable"])] * 2 + [("film/b@1.jpg", ["person", "dog", "cup"])]
        ):
            write_image(root / "vcr1images" / image)
            lines.append(json.dumps({"img_fn": image, "objects": objects, "annot_id": f"{part}-{number}"}))
        (root / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


GVTBENCH_MCI = [  # as published: the wording tells the answer
    {"image_id": "film/a@0.jpg", "text_in": "Does ties exist in the image?", "text_out": "Yes.", "n_obj_exist": 10},
    {"image_id": "film/b@1.jpg", "text_in": "Does stopsigns exis in the image?", "text_out": "No.", "n_obj_exist": 3},
    {"image_id": "film/b@1.jpg", "text_in": "Does stopsigns exis in the image?", "text_out": "No.", "n_obj_exist": 3},
]
GVTBENCH_COUNT = [
    {"image_id": 42102, "text_in": "How many people are there in the image?", "text_out": "1", "n_obj_exist": 3},
    {
        "image_id": 135604,
        "text_in": "How many sports balls are there in the image?",
        "text_out": "4",
        "n_obj_exist": 30,
    },
]
