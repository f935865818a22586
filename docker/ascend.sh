#!/bin/bash
# Run a command of /opt/ehm, the one that this file is called, with CANN's variables. Those that a RUN sets end with it,
# and an entry point replaces the one of the base image that set them.
for file in /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/nnal/atb/set_env.sh; do
    # shellcheck disable=SC1090
    [ -f "$file" ] && source "$file"
done
driver=/usr/local/Ascend/driver/lib64  # mounted from the host
export LD_LIBRARY_PATH="$driver:$driver/common:$driver/driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "/opt/ehm/bin/${0##*/}" "$@"
