#!/bin/sh
# In a user namespace that maps not all IDs, owners of files are seen as 65534, and what is of such is not recorded.
set -eu
for map in "${MKMETA_PROC:-/proc/self}/uid_map" "${MKMETA_PROC:-/proc/self}/gid_map"; do
    read -r inside outside count <"$map"
    if [ "$inside $outside $count" != "0 0 4294967295" ]; then
        echo "mkmeta: this container does not see the owners of files as they are ($map)" >&2
        echo "hint: run it in the user namespace of the host" >&2
        exit 2
    fi
done
exec mkmeta "$@"
