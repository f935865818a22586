"""A server that has too much to do: its queue, its memory, slow clients, and answers that come too late."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

from server_requests import connect, make_image_file, make_infer_body, send_request
from serving import running
from slow_model import SlowModel
from waiting import wait_until

from ehm.deploy.serve.inference.service import Service

INFER = "/v2/models/both/infer"


def test_overload_is_429_and_a_late_answer_504(served_bundle, monkeypatch):
    slow = SlowModel(monkeypatch)
    # no deadline of the server's own passes, however little of the machine is left for it
    with running([served_bundle], queue=3, timeout=600.0) as (address, service), ThreadPoolExecutor(3) as pool:
        slow.hold()
        asked = [pool.submit(send_request, address, "POST", INFER, make_infer_body(seed)) for seed in range(3)]
        wait_until(lambda: sum(slow.batches) + count_waiting_images(service) == 3)
        refused = send_request(address, "POST", INFER, make_infer_body())
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        slow.release()
        assert [each.result().status for each in asked] == [200, 200, 200]
        slow.hold()
        late = send_request(address, "POST", INFER, make_infer_body(parameters={"timeout": 1000}))  # a millisecond
        assert (late.status, late.body) == (504, {"error": "the deadline passed before the model had answered"})
        slow.release()
        assert send_request(address, "POST", INFER, make_infer_body()).status == 200


def test_the_deadline_counts_behind_the_model_too(served_bundle, monkeypatch):
    run_model = Service.run_model

    async def run_until_the_deadline(service, request, *arguments):
        outputs = await run_model(service, request, *arguments)
        service.get_record(request).deadline = asyncio.get_running_loop().time()
        return outputs

    monkeypatch.setattr(Service, "run_model", run_until_the_deadline)
    with running([served_bundle]) as (address, _):
        status, _, answer = send_request(address, "POST", INFER, make_infer_body())
    assert (status, answer) == (504, {"error": "the deadline passed before the answer was ready"})


def test_only_so_many_requests_are_read_at_a_time(served_bundle):
    """Twice as many as the queue holds; health is always answered."""
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with running([served_bundle], queue=1) as (address, service), contextlib.ExitStack() as connections:
        for _ in range(2):
            connections.enter_context(connect(address)).sendall(head)
        wait_until(lambda: service.under_way == 2)
        response = send_request(address, "POST", "/v1/classify", make_image_file())
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        assert response.body["error"] == "2 requests are under way; try again in a second"
        assert send_request(address, "GET", "/v2/health/ready").status == 200


def test_a_client_that_leaves_is_dropped_from_the_queue(served_bundle, monkeypatch):
    slow = SlowModel(monkeypatch)
    with running([served_bundle], threads=1) as (address, service), ThreadPoolExecutor() as pool:
        slow.hold()
        running_one = pool.submit(send_request, address, "POST", INFER, make_infer_body())
        wait_until(lambda: slow.batches)
        body = make_infer_body(batch=5)
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with connect(address) as leaving:
            leaving.sendall(head + body)
            wait_until(lambda: count_waiting_images(service) == 5)
        wait_until(lambda: count_waiting_images(service) == 0)
        slow.release()
        assert running_one.result().status == 200
        assert slow.batches == [1]
        wait_until(lambda: count_responses(service, "499") == 1)


def count_waiting_images(service):
    return service.metrics.registry.get_sample_value("ehm_queue_images", {"model": "both"})


def count_responses(service, status):
    labels = {"model": "both", "route": "/v2/models/{model}/infer", "status": status}
    return service.metrics.registry.get_sample_value("ehm_requests_total", labels)


def test_a_slow_body_is_408(served_bundle):
    with running([served_bundle], timeout=0.2) as (address, _), connect(address) as slow:
        slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_the_memory_of_all_requests_is_bounded(served_bundle, monkeypatch):
    slow = SlowModel(monkeypatch)
    size = len(make_infer_body(batch=8))
    with running([served_bundle], max_memory=2 * size) as (address, service), ThreadPoolExecutor() as pool:
        slow.hold()
        asked = pool.submit(send_request, address, "POST", INFER, make_infer_body(batch=8))
        wait_until(lambda: slow.batches)
        assert service.memory.held == size
        status, _, answer = send_request(address, "POST", INFER, make_infer_body(batch=9))
        assert (status, "all requests together" in answer["error"]) == (429, True)
        status, _, answer = send_request(address, "POST", INFER, make_infer_body(batch=20))
        assert (status, "the request takes more" in answer["error"]) == (413, True)
        slow.release()
        assert asked.result().status == 200
        wait_until(lambda: service.memory.held == 0)


def test_an_image_counts_as_the_model_takes_it(served_bundle):
    """An image takes memory as float32 in the network's size, beside its file: one byte less is not enough."""
    body = make_image_file()
    with running([served_bundle], max_memory=len(body) + 3 * 8 * 12 * 4 - 1) as (address, service):
        status, _, answer = send_request(address, "POST", "/v1/classify", body)
        assert (status, answer.get("error", "")[:22]) == (413, "the request takes more")
        wait_until(lambda: service.memory.held == 0)


def test_a_body_counts_as_it_was_sent(served_bundle):
    body = make_infer_body()
    with running([served_bundle], max_memory=len(body)) as (address, _):
        assert send_request(address, "POST", INFER, body).status == 200
        status, _, answer = send_request(address, "POST", INFER, body + b" ")
        assert (status, answer.get("error", "")[:22]) == (413, "the request takes more")
