#!/usr/bin/env bash
# Try an image that was built as ehm:NAME, without its accelerator. From the root of the repository:
#   docker/try_image.sh serve-cpu
set -euo pipefail
name=$1
options=(--rm --volume "$PWD/tests/data/written_before:/written:ro" --entrypoint ehm)

predict() {
    docker run "${options[@]}" "ehm:$name" predict /written/bundle /written/data/images/red/0.png --device cpu
}

# As compose.yaml runs them: the root is read-only, except where CANN writes logs into the home folder.
case $name in
    cpu | cuda) options+=(--read-only --tmpfs /tmp --tmpfs /home/ehm/.cache:mode=1777) ;;
    serve-*) options+=(--read-only --tmpfs /tmp:exec --cap-drop ALL) ;;
esac

docker run "${options[@]}" "ehm:$name" --version
case $name in
    cpu | cuda)
        docker run "${options[@]}" "ehm:$name" doctor --device cpu # fails if it cannot train
        predict
        ;;
    serve-*)
        docker run "${options[@]}" "ehm:$name" serve --help
        predict
        ;;
    npu | mindspore)
        # The status is 1, as no NPU can train here. What it prints has to be JSON all the same.
        { docker run "${options[@]}" "ehm:$name" doctor --json || true; } | python3 -m json.tool
        ;;
    *)
        echo "docker/try_image.sh $name: not one of the images of docker/README.md" >&2
        exit 2
        ;;
esac
