"""``ehm serve --index`` as a process, and its page in Chromium, where that and selenium are installed."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from dense_bundles import DETECTED, detector_bundle, segmenter_bundle
from mean_colours import HOSTILE, OUTPUTS, index_of, multi_head
from PIL import Image

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
FLAGS += ["--window-size=1400,1600"]  # so that the canvas is in view, whose centre Selenium moves the pointer from
DROP = """
const [width, height, name] = arguments;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [width, height];
const context = canvas.getContext("2d");
context.fillStyle = "red";
context.fillRect(0, 0, width / 2, height);
canvas.toBlob((blob) => {
  const data = new DataTransfer();
  data.items.add(new File([blob], name));
  document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
});
"""
COLOURS = """
const { width, height } = document.getElementById("canvas");
const { data } = document.getElementById("canvas").getContext("2d").getImageData(0, 0, width, height);
return new Set(new Uint32Array(data.buffer)).size;
"""
PIXEL = "return [...document.getElementById('canvas').getContext('2d').getImageData(...arguments, 1, 1).data]"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a server of a bundle of each kind with an index."""
    root = tmp_path_factory.mktemp("served")
    multi = multi_head(root / "multi", *OUTPUTS)
    index = index_of(multi, root / "index")
    bundles = [multi, multi_head(root / "plain", "logits"), detector_bundle(root / "detector")]
    bundles.append(segmenter_bundle(root / "segmenter"))
    command = ["-m", "ehm.cli", "serve", *bundles, "--index", index, "--port", "0", "--drain-delay", "0"]
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"ready at (http://\S+:\d+)", line):
                break
        else:
            pytest.fail(f"the server ended with {process.wait()}")
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_the_command_serves_the_page_and_the_index(served):
    with urllib.request.urlopen(f"{served}/") as reply:
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert b"Drop an image" in reply.read()
    with urllib.request.urlopen(f"{served}/v1/about") as reply:
        about = json.load(reply)
    assert about["index"] == 10
    neighbours = {model["name"]: model["neighbours"] for model in about["models"]}
    assert neighbours == {"multi": True, "plain": False, "detector": False, "segmenter": False}
    tasks = {model["name"]: model["task"] for model in about["models"]}
    assert tasks == {
        "multi": "classification",
        "plain": "classification",
        "detector": "detection",
        "segmenter": "segmentation",
    }


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def browser(chromium):
    """The browser with a tab of its own, over which no pointer rests yet."""
    first = chromium.current_window_handle
    chromium.switch_to.new_window("tab")
    chromium.get_log("browser")  # which leaves nothing of an earlier test
    yield chromium
    chromium.close()
    chromium.switch_to.window(first)


class Page:
    """The page in a browser, and what it says."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)

    def find(self, css):
        return self.browser.find_elements("css selector", css)

    def text(self, css):
        return self.find(css)[0].text

    def until(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 30).until(lambda _: condition())

    def choose(self, model):
        from selenium.webdriver.support.ui import Select

        self.until(lambda: len(self.find("#model option")) > 1)
        Select(self.find("#model")[0]).select_by_visible_text(model)

    def answered(self):
        return self.text("#timing").startswith("Answered")

    def open(self, file):
        self.find("#file")[0].send_keys(str(file))
        self.until(self.answered)

    def visible(self):
        return [section.get_attribute("id") for section in self.find("section") if section.is_displayed()]

    def pixel(self, x, y):
        return self.browser.execute_script(PIXEL, x, y)

    def point(self, x, y):
        """Move the pointer to a pixel of the canvas."""
        from selenium.webdriver.common.action_chains import ActionChains

        canvas = self.find("#canvas")[0]
        size = self.browser.execute_script("return [arguments[0].width, arguments[0].height]", canvas)
        shown = canvas.rect
        across = (x / size[0] - 0.5) * shown["width"]
        down = (y / size[1] - 0.5) * shown["height"]
        ActionChains(self.browser).move_to_element_with_offset(canvas, round(across), round(down)).perform()

    def said(self):
        """Return the complaints of the browser, but for advice to this test, which reads pixels."""
        entries = [entry["message"] for entry in self.browser.get_log("browser")]
        return [message for message in entries if "getImageData" not in message]


def test_an_image_is_answered_in_a_browser(served, browser, tmp_path):
    page = Page(browser, served)
    noise = np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise & <b>more.tif")  # which Chromium itself cannot show
    page.choose("multi")
    page.until(lambda: "3 classes" in page.text("#about"))
    page.open(tmp_path / "noise & <b>more.tif")
    assert page.text("#seen").startswith(
        "noise & <b>more.tif, 150 × 60 pixels. The model sees its centre, resized to 24 × 16 pixels."
    )
    assert page.visible() == ["parts", "classes", "neighbours"]
    assert HOSTILE in page.text("#classes ol")
    assert len(page.find("#classes li")) == 3
    page.until(lambda: len(page.find("#neighbours img")) == 8)
    assert "<script>alert(1)<script>.png" in page.text("#neighbours ol")

    slider = page.find("#level")[0]
    shown = []
    for key in ("\ue011", "\ue010"):  # Home, End: the whole, single patches
        slider.send_keys(key)
        label = page.find("#canvas")[0].get_attribute("aria-label")
        shown.append((page.text("#cut").partition(" at ")[0], label.rpartition(" into ")[2]))
    assert shown == [("1 part", "1 part"), ("24 parts", "24 parts")]

    strength = page.find("#strength")[0]
    tinted = browser.execute_script("return document.getElementById('canvas').toDataURL()")
    strength.send_keys("\ue011")  # none
    assert browser.execute_script("return document.getElementById('canvas').toDataURL()") != tinted
    assert "divided" not in page.find("#canvas")[0].get_attribute("aria-label")
    strength.send_keys("\ue010")

    page.point(640, 256)
    assert page.text("#cut").endswith("; the marked one: 1 of 24 patches")

    page.choose("plain")
    page.until(lambda: "--head multi" in page.text("#parts .note") and page.answered())
    assert "--head multi" in page.text("#neighbours .note")

    browser.execute_script(DROP, 90, 60, "dropped.png")
    page.until(lambda: page.text("#seen").startswith("dropped.png, 90 × 60 pixels") and page.answered())
    # resized to 27 x 18 it loses 2 columns at the left (a half of 27 - 24, rounded to even), 95 of the canvas's 1280
    outside, inside = (page.pixel(x, 426) for x in (88, 101))
    assert inside == pytest.approx([255, 0, 0, 255], abs=8)
    assert outside[0] < 200
    assert outside[1] > 60
    (tmp_path / "words.txt").write_text("not an image")
    page.find("#file")[0].send_keys(str(tmp_path / "words.txt"))
    page.until(lambda: "words.txt: not an image" in page.text("#problem"))
    said = page.said()
    assert len(said) == 1, said  # the answer with 422, and nothing that the page's own policy has stopped
    assert "422" in said[0]


def test_objects_are_drawn_with_boxes_and_masks(served, browser, tmp_path):
    """The image of 160 x 120 pixels is drawn on 1280 x 960, so that a pixel of it is 8 there."""
    page = Page(browser, served)
    grey = (100, 100, 100)
    Image.new("RGB", (160, 120), grey).save(tmp_path / "grey.png")
    page.choose("detector")
    page.open(tmp_path / "grey.png")
    assert page.text("#about") == "detector finds objects of 2 classes, with their masks."
    assert (
        page.text("#seen")
        == "grey.png, 160 × 120 pixels. The model sees all of it, resized to fit into 80 × 60 pixels."
    )
    assert page.visible() == ["objects"]
    rows = [row.text.split("\n") for row in page.find("#objects li")]
    likely = [each for each in DETECTED if each["score"] >= 0.5]
    assert rows == [[each["label"], f"{100 * each['score']:.1f} %"] for each in likely]
    assert page.text("#found") == "2 of 3 objects, of a score of 50 % or more"

    left, top, right, bottom = (8 * side for side in DETECTED[0]["box"])
    middle = (top + bottom) // 2
    assert page.pixel(right - 60, middle) == [*grey, 255]  # inside the box, outside the mask
    assert tinted(page.pixel(left + 60, middle), grey)
    half = (left + right) // 2  # where the mask ends, to a pixel of the image and a half
    assert [tinted(page.pixel(half + beside, middle), grey) for beside in (-12, 12)] == [True, False]
    assert page.pixel(right + 30, middle) == [*grey, 255]
    for x, y in ((left, middle), (right, middle), ((left + right) // 2, top), ((left + right) // 2, bottom)):
        assert tinted(page.pixel(x, y), grey)  # the line of the box

    third = [8 * side for side in DETECTED[2]["box"]]
    inside = (third[0] + third[2]) // 2, (third[1] + third[3]) // 2
    assert page.pixel(*inside) == [*grey, 255]
    page.find("#least")[0].send_keys("\ue011")  # Home: objects of any score
    assert page.text("#found") == "3 of 3 objects, of a score of 0 % or more"
    assert tinted(page.pixel(*inside), grey)
    assert page.find("#canvas")[0].get_attribute("aria-label") == "The image grey.png, with 3 objects"

    page.point(*inside)  # which shows it alone
    assert tinted(page.pixel(*inside), grey)
    assert page.pixel(left + 60, middle) == [*grey, 255]
    page.find("#strength")[0].send_keys("\ue011")
    assert page.pixel(*inside) == [*grey, 255]
    assert page.said() == []


def tinted(pixel, colour):
    """Return whether a colour lies over another one."""
    return max(abs(one - other) for one, other in zip(pixel, colour, strict=False)) > 30


def test_classes_of_pixels_are_drawn(served, browser, tmp_path):
    """Left half red, right half blue, a green square of 8 x 8 pixels; 48 x 32 pixels are drawn on 1280 x 853."""
    page = Page(browser, served)
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24, 0] = 200
    pixels[:, 24:, 2] = 200
    pixels[4:12, 30:38] = (0, 200, 0)
    Image.fromarray(pixels).save(tmp_path / "flag.png")
    page.choose("segmenter")
    page.open(tmp_path / "flag.png")
    assert page.text("#about") == "segmenter gives each pixel one of 3 classes."
    assert page.text("#seen").endswith("The model sees all of it, in windows of 24 × 16 pixels.")
    assert page.visible() == ["mask"]
    rows = [row.text.split("\n") for row in page.find("#mask li")]
    assert rows == [["red", "50.0 %"], ["blue", "45.8 %"], ["green", "4.2 %"]]
    # PASCAL VOC's palette: class 0 is black, 1 (128, 0, 0), 2 (0, 128, 0)
    swatches = [square.value_of_css_property("background-color") for square in page.find("#mask .swatch")]
    assert [text.replace("rgba", "rgb").removesuffix(", 1)").rstrip(")") for text in swatches] == [
        "rgb(0, 0, 0",
        "rgb(0, 128, 0",
        "rgb(128, 0, 0",
    ]
    side = 1280 / 48
    green = round(34 * side), round(8 * side)
    red, blue = (round(12 * side), round(20 * side)), (round(44 * side), round(28 * side))
    page.find("#strength")[0].send_keys("\ue010")  # the mask alone
    assert [page.pixel(*place) for place in (red, green, blue)] == [
        [0, 0, 0, 255],
        [128, 0, 0, 255],
        [0, 128, 0, 255],
    ]
    assert browser.execute_script(COLOURS) == 3  # between two classes there is no third one
    for place, name in ((red, "red"), (green, "green"), (blue, "blue")):
        page.point(*place)
        assert page.text("#under") == f"Here: {name}"
    assert page.find("#canvas")[0].get_attribute("aria-label").endswith("with the classes red, blue, green")
    page.find("#strength")[0].send_keys("\ue011")
    assert page.pixel(*green) == pytest.approx([0, 200, 0, 255], abs=8)
    page.choose("plain")
    page.until(lambda: page.visible() == ["parts", "classes", "neighbours"] and page.answered())
    assert page.said() == []
