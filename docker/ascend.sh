#!/bin/bash
# Run a command of /opt/ehm, the one that this file is called, with CANN's variables. Those that a RUN sets end with it,
# and an entry point replaces the one of the base image that set them.
toolkit=/usr/local/Ascend/ascend-toolkit/set_env.sh
atb=/usr/local/Ascend/nnal/atb/set_env.sh
# shellcheck disable=SC1090
[ -f "$toolkit" ] && source "$toolkit"
# told which ABI, as in Ascend's images of CANN 9.1: it would ask the torch of a python3 that has none
# shellcheck disable=SC1090
[ -f "$atb" ] && source "$atb" --cxx_abi=1
driver=/usr/local/Ascend/driver/lib64  # mounted from the host
export LD_LIBRARY_PATH="$driver:$driver/common:$driver/driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "/opt/ehm/bin/${0##*/}" "$@"
