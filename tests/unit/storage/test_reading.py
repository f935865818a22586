"""Text, JSON and CSV of users: whatever is wrong is one short sentence with the file and the place."""

import io
import json
import tarfile

import pytest
import yaml

from ehm.config import DetectionConfig, FinetuneConfig, ProbeConfig, SegmentationConfig, TrainConfig, load_config
from ehm.config.commands import recognise_command
from ehm.data.sources.coco import read_coco
from ehm.data.sources.landmarks import open_gldv2
from ehm.data.sources.shards import open_shards
from ehm.errors import CheckpointError, ConfigError, DataError, EhmError, ExportError
from ehm.storage.checkpoint import open_checkpoint
from ehm.storage.reading import describe_value, parse_json, read_json, read_rows, read_text, shorten
from ehm.tasks.retrieval.answers import read_answers

LONG = "9" * 5000  # more digits than Python turns into a number


def test_a_value_is_shown_on_one_short_line():
    assert shorten("a\n  b") == "a b"
    assert len(shorten("x" * 10**6)) == 120
    assert describe_value([1, "a"]) == "[1, 'a']"
    assert describe_value(10**5000) == "a value of type int that is too long to print"
    assert len(describe_value(list(range(10**4)))) == 120


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value in line 1, column 1"),
        (b'{"a": 1,\n "b" 2}', "Expecting ':' delimiter in line 2, column 6"),
        (b'{\n"a": "caf\xe9"}', r"in UTF-8: byte 0xe9 in line 2; save it in that encoding"),
        (b"[" * 10**5, "its lists or sections are nested too deeply"),
        (LONG.encode(), "Exceeds the limit"),
    ],
)
def test_json_that_is_none_is_located(content, said, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ExportError) as refused:
        read_json(file, ExportError, "a manifest")
    assert str(refused.value).startswith(f"{file}: not a manifest")
    assert said in str(refused.value)
    assert len(str(refused.value)) < 300 + len(str(file))
    assert "\n" not in str(refused.value)


def test_a_byte_order_mark_and_utf8_are_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": "caf\xc3\xa9"}')
    assert read_json(tmp_path / "a.json") == {"a": "café"}
    assert parse_json("[1]", "x") == [1]
    with pytest.raises(DataError, match="none: not a text: No such file or directory"):
        read_text(tmp_path / "none")


def test_an_annotation_file_is_not_shown_whole(tmp_path):
    """The file of a camera's software in Latin-1: once, the message was all of its bytes."""
    (tmp_path / "images").mkdir()
    images = [{"id": number, "file_name": f"{number}.png", "width": 9, "height": 9} for number in range(2000)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "café"}]}
    (tmp_path / "instances.json").write_bytes(json.dumps(content, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(DataError) as refused:
        read_coco(str(tmp_path), "train")
    assert str(refused.value) == (
        f"{tmp_path}/instances.json: not annotations in COCO's format in UTF-8: byte 0xe9 in line 1; "
        "save it in that encoding"
    )
    for broken in ({"images": [1]}, {"images": images[:1], "categories": 5}, [], {**content, "images": [LONG]}):
        (tmp_path / "instances.json").write_text(json.dumps(broken))
        with pytest.raises(DataError, match="not annotations in COCO's format: ") as refused:
            read_coco(str(tmp_path), "train")
        assert len(str(refused.value)) < 250 + len(str(tmp_path))


def test_tables_are_checked_line_by_line(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("a,b\n1,2\n3\n")
    assert list(read_rows(file, ("a", "b"))) == [(2, {"a": "1", "b": "2"}), (3, {"a": "3", "b": ""})]
    with pytest.raises(DataError, match=r"t\.csv: expected the columns a,c, not a,b"):
        next(read_rows(file, ("a", "c")))
    file.write_bytes(b"a,b\n1,2\ncaf\xe9,3\n")
    with pytest.raises(DataError, match=r"t\.csv: not a table in UTF-8 after line \d"):
        list(read_rows(file, ("a", "b")))
    file.write_text("a,b\n" + "x" * 200_000 + ",1\n")
    with pytest.raises(DataError, match=r"t\.csv: not a table after line \d: field larger than field limit"):
        list(read_rows(file, ("a", "b")))
    (tmp_path / "train").mkdir()
    (tmp_path / "train_clean.csv").write_text(f"landmark_id,images\n{LONG},abc\n")
    with pytest.raises(DataError, match="line 2: expected a landmark's number"):
        open_gldv2(str(tmp_path), "train")
    (tmp_path / "gnd_x.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"gnd_x\.json: not JSON in UTF-8: byte 0xff in line 1"):
        read_answers(tmp_path / "gnd_x.json")


def test_the_label_of_a_shard_is_a_class_number(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("0.png", b""), ("0.cls", b"9" * 30)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"a\.tar/0\.cls: 9{30} is no number of a class"):
        open_shards(str(tmp_path / "a.tar"), "train")


@pytest.mark.parametrize("content", ["[]", "5", "{}", '{"format": 1}', "{", "\xff"])
def test_a_damaged_state_is_one_sentence(content, tmp_path):
    (tmp_path / "state.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(tmp_path)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    "override", [f"run.seed={LONG}", "run.seed=99999999999999999999", f"model.width={10**30}", "run.seed=2020-13-45"]
)
def test_a_number_beyond_its_limits_is_refused_in_short(override):
    with pytest.raises(ConfigError) as refused:
        load_config(TrainConfig, None, [override])
    assert len(str(refused.value)) < 400
    assert override.partition("=")[0] in str(refused.value)


@pytest.mark.parametrize(
    ("asked", "given", "command"),
    [
        (TrainConfig, "elpv/finetune", "ehm finetune"),
        (TrainConfig, "elpv/tokenizer", "ehm tokenizer train"),
        (TrainConfig, "detection/coco_vit_base_1x", "ehm finetune --task detection"),
        (FinetuneConfig, "elpv/pretrain", "ehm train"),
        (SegmentationConfig, "detection/coco_vit_base_1x", "ehm finetune --task detection"),
        (ProbeConfig, "pretrain/vit_base_evolved", "ehm train"),
    ],
)
def test_the_configuration_of_another_command_is_recognised(asked, given, command):
    with pytest.raises(ConfigError, match=f"{given}: is a configuration of {command}, not of ehm "):
        load_config(asked, given)


def test_a_wrong_key_is_still_named(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"optim": {"epoks": 3}, "masking": "random"}))
    with pytest.raises(ConfigError, match=r"optim\.epoks: unknown key"):
        load_config(TrainConfig, tmp_path / "c.yaml")
    assert recognise_command({"min_size": 64, "task": "detection"}, DetectionConfig) is None


def test_errors_of_reading_are_errors_for_users():
    assert issubclass(DataError, EhmError)
