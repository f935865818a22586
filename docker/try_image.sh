#!/usr/bin/env bash
# Try an image that was built as ehm:NAME, without its accelerator, from the root of the repository:
#   docker/try_image.sh serve-cpu
set -euo pipefail
name=$1
written="$PWD/tests/data/written_before"

run() {
    # The entry point of images that serve is `ehm serve`.
    docker run --rm --read-only --tmpfs /tmp --tmpfs /home/ehm/.cache:mode=1777 --volume "$written:/written:ro" \
        --entrypoint ehm "ehm:$name" "$@"
}

run --version
case $name in
    cpu | cuda)
        run doctor --device cpu # fails if it cannot train
        run predict /written/bundle /written/data/images/red/0.png --device cpu
        ;;
    serve-*)
        run serve --help > /dev/null
        run predict /written/bundle /written/data/images/red/0.png --device cpu
        ;;
    npu | mindspore)
        # Without an NPU the status is 1. What it prints still has to be JSON that names the packages.
        { run doctor --json || true; } | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["findings"]), "findings")'
        ;;
    *)
        echo "docker/try_image.sh: $name is not one of the images of docker/README.md" >&2
        exit 2
        ;;
esac
