#!/bin/sh
# The main job on an example volume: scan, build and, where this machine allows it, mount, compare, switch and go back.
# Needs nothing done before it, and leaves nothing behind but the .venv directory and, where it is run as root on a Debian
# that lacks it, the package python3-venv; it says so before.
set -eu

if [ "${1-}" != --inside ]; then
    . "$(dirname "$0")/../.ci/environment"
    environment ""
    export PATH
    # Mounts are made in a namespace of their own, and go with it. Who is not root becomes it, in a user namespace.
    namespace=--mount
    [ "$(id -u)" = 0 ] || namespace="--user --map-root-user --mount"
    # shellcheck disable=SC2086  # the options are words
    if unshare $namespace true 2>/dev/null; then
        exec unshare $namespace sh "examples/tour.sh" --inside
    fi
    exec sh "examples/tour.sh" --inside
fi

work=$(mktemp -d)
volume=$work/volume store=$work/store sw=$work/sw
mkdir "$sw"
finish() {
    mkmeta deactivate --quiet --detach "$sw" --run-dir "$work/run" 2>/dev/null || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM
step() { printf '\n== %s\n' "$*"; }
release() {
    mkdir -p "$volume/grp/paint/v$1/lib" "$volume/grp/paint/v$1/doc"
    echo "print('paint $1')" >"$volume/grp/paint/v$1/lib/paint.py"
    ln -s paint.py "$volume/grp/paint/v$1/lib/main.py"
    echo "how to paint" >"$volume/grp/paint/v$1/doc/readme"
}

step "a volume with two releases"
release 1.0
release 1.1
(cd "$volume" && find . -mindepth 1 | sort)

step "mkmeta scan VOLUME --select 'grp/*/v*/lib' -o sw.mkm"
mkmeta scan "$volume" --select 'grp/*/v*/lib' -o "$work/sw.mkm"

# Attributes named trusted.* are for root; user.* ones for mounts in user namespaces.
userxattr=
python3 -c "import os, sys; os.setxattr(sys.argv[1], 'trusted.probe', b'1')" "$work" 2>/dev/null || userxattr=--userxattr
step "mkmeta build sw.mkm --store STORE $userxattr"
mkmeta build "$work/sw.mkm" --store "$store" $userxattr

step "mkmeta activate STORE SW --lower VOLUME"
if ! mkmeta activate "$store" "$sw" --lower "$volume" --run-dir "$work/run"; then
    step "this machine does not mount it; what was built:"
    (cd "$store/current/layer" && find . -mindepth 1 -printf '%M %s %p\n' | sort -k3)
    exit 0
fi

step "mounted over the volume: a selected directory, answered by the layer"
ls -l "$sw/grp/paint/v1.0/lib"
step "not selected: shows through from the volume"
ls -d "$sw/grp/paint/v1.0/doc"
step "volume and mount compared, every name and every byte"
diff -r --no-dereference "$volume" "$sw"
echo "no difference"

step "a new release is published, scanned, built: SW is behind"
release 1.2
mkmeta scan --quiet "$volume" --select 'grp/*/v*/lib' -o "$work/sw.mkm"
mkmeta build --quiet "$work/sw.mkm" --store "$store" $userxattr
mkmeta status "$sw" || true
step "mkmeta activate STORE SW, while a program has a file of the old mount open"
exec 3<"$sw/grp/paint/v1.0/lib/paint.py"
mkmeta activate "$store" "$sw" --run-dir "$work/run"
mkmeta status "$sw"
exec 3<&-
diff -r --no-dereference "$volume" "$sw"
echo "no difference"
step "mkmeta rollback SW"
mkmeta rollback "$sw" --run-dir "$work/run"
