"""A stand-in for ``atc`` that is strict about its reference's grammar, as the text of a program.

What it writes, `tests/simulated/acl.py` runs: a line of JSON about the compilation, and the ONNX file.
"""

FAKE_ATC = """#!{python}
import json, os, re, sys
words = dict(re.fullmatch(r"--([a-z_0-9]+)=(.+)", word).groups() for word in sys.argv[1:])
assert len(words) == len(sys.argv) - 1, "an option twice"
assert words.pop("framework") == "5"
model, output = words.pop("model"), words.pop("output")
assert os.path.isfile(model) and model.endswith(".onnx"), model
assert re.fullmatch(r"\\w+:-1(,[1-9][0-9]*)+", words.pop("input_shape"))
sizes = [int(size) for size in words.pop("dynamic_batch_size").split(",")]
assert 2 <= len(sizes) <= 100 and all(1 <= size <= 2048 for size in sizes)
soc = words.pop("soc_version")
assert re.fullmatch(r"Ascend(910B[1-4]|310P3)", soc)
precision = words.pop("precision_mode_v2")
assert precision in ("fp16", "origin", "cube_fp16in_fp32out", "mixed_float16", "mixed_bfloat16")
kept = open(words.pop("keep_dtype")).read().split("\\n")[:-1] if "keep_dtype" in words else []
assert not words, words
open("fusion_result.json", "w").write("notes")
os.mkdir("kernel_meta")
compiled = {{"soc": soc, "batch_sizes": sizes, "precision": precision, "float32": kept}}
open(output + ".om", "wb").write(json.dumps(compiled).encode() + b"\\n" + open(model, "rb").read())
print("ATC run success")
"""
