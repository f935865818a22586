"""The order of a graph's nodes once casts to float16 are among them."""

from onnx import TensorProto, helper

from ehm.deploy.export.precision.float16 import _sort_nodes


def make_graph(*links):
    """Return a graph from ``images`` whose nodes, in this order, make the second name of each pair of the first."""
    nodes = [helper.make_node("Cast", [given], [made], made, to=TensorProto.FLOAT16) for given, made in links]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1])
    return helper.make_graph(nodes, "graph", [images], [])


def test_nodes_stand_behind_those_that_they_take_from():
    graph = make_graph(("b", "c"), ("a", "b"), ("images", "a"))
    _sort_nodes(graph)
    assert [node.name for node in graph.node] == ["a", "b", "c"]


def test_what_nothing_gives_is_left_to_the_check_of_the_file():
    graph = make_graph(("nothing", "b"), ("images", "a"))
    _sort_nodes(graph)
    assert [node.name for node in graph.node] == ["a", "b"]
