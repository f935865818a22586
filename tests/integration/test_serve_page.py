"""``ehm serve --index`` as a process, and its page in Chromium, where that and selenium are installed."""

import json
import re
import shutil
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from mean_colours import HOSTILE, OUTPUTS, index_of, multi_head
from PIL import Image

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
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
PIXEL = "return [...document.getElementById('canvas').getContext('2d').getImageData(...arguments, 1, 1).data]"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of a server of two bundles with an index."""
    root = tmp_path_factory.mktemp("served")
    multi = multi_head(root / "multi", *OUTPUTS)
    index = index_of(multi, root / "index")
    command = ["-m", "ehm.cli", "serve", multi, multi_head(root / "plain", "logits"), "--index", index, "--port", "0"]
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
    assert {model["name"]: model["neighbours"] for model in about["models"]} == {"multi": True, "plain": False}


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    opened = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


def test_an_image_is_answered_in_a_browser(served, browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def text(css):
        return browser.find_element(By.CSS_SELECTOR, css).text

    def until(condition):
        WebDriverWait(browser, 20).until(lambda _: condition())

    def answered():
        return text("#timing").startswith("Answered")

    noise = np.random.default_rng(0).integers(0, 256, (60, 150, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise & <b>more.tif")  # which Chromium itself cannot show
    browser.get(served)
    until(lambda: "3 classes" in text("#about"))
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "noise & <b>more.tif"))
    until(answered)
    assert text("#seen").startswith(
        "noise & <b>more.tif, 150 × 60 pixels. The model sees its centre, resized to 24 × 16 pixels."
    )
    assert HOSTILE in text("#classes ol")
    assert len(browser.find_elements(By.CSS_SELECTOR, "#classes li")) == 3
    until(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#neighbours img")) == 8)
    assert "<script>alert(1)<script>.png" in text("#neighbours ol")

    slider = browser.find_element(By.ID, "level")
    shown = []
    for key in ("\ue011", "\ue010"):  # Home, End: the whole, single patches
        slider.send_keys(key)
        label = browser.find_element(By.ID, "canvas").get_attribute("aria-label")
        shown.append((text("#cut").partition(" at ")[0], label.rpartition(" into ")[2]))
    assert shown == [("1 part", "1 part"), ("24 parts", "24 parts")]

    tinted = browser.execute_script("return document.getElementById('canvas').toDataURL()")
    browser.find_element(By.ID, "strength").send_keys("\ue011")  # none
    assert browser.execute_script("return document.getElementById('canvas').toDataURL()") != tinted
    assert "divided" not in browser.find_element(By.ID, "canvas").get_attribute("aria-label")
    browser.find_element(By.ID, "strength").send_keys("\ue010")

    ActionChains(browser).move_to_element(browser.find_element(By.ID, "canvas")).perform()
    assert text("#cut").endswith("; the marked one: 1 of 24 patches")

    Select(browser.find_element(By.ID, "model")).select_by_visible_text("plain")
    until(lambda: "--head multi" in text("#parts .note") and answered())
    assert "--head multi" in text("#neighbours .note")

    browser.execute_script(DROP, 90, 60, "dropped.png")
    until(lambda: text("#seen").startswith("dropped.png, 90 × 60 pixels") and answered())
    # resized to 27 x 18 it loses 2 columns at the left (a half of 27 - 24, rounded to even), 95 of the canvas's 1280
    outside, inside = (browser.execute_script(PIXEL, x, 426) for x in (88, 101))
    assert inside == pytest.approx([255, 0, 0, 255], abs=8)
    assert outside[0] < 200
    assert outside[1] > 60
    (tmp_path / "words.txt").write_text("not an image")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "words.txt"))
    until(lambda: "words.txt: not an image" in text("#problem"))
    said = [entry["message"] for entry in browser.get_log("browser")]
    said = [message for message in said if "getImageData" not in message]  # advice for this test, which reads pixels
    assert len(said) == 1, said  # the answer with 422, and nothing that the page's own policy has stopped
    assert "422" in said[0]
