#!/bin/sh
# The main job on an example volume: scan, build and, where this machine allows it, mount and compare.
# Needs nothing done before it and leaves nothing behind but the .venv directory.
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
volume=$work/volume layer=$work/layer inner=$work/inner merged=$work/merged
mkdir "$inner" "$merged"
finish() {
    for mounted in "$merged" "$inner"; do umount "$mounted" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM
step() { printf '\n== %s\n' "$*"; }

step "a volume with two releases"
for release in 1.0 1.1; do
    mkdir -p "$volume/grp/paint/v$release/lib" "$volume/grp/paint/v$release/doc"
    echo "print('paint $release')" >"$volume/grp/paint/v$release/lib/paint.py"
    ln -s paint.py "$volume/grp/paint/v$release/lib/main.py"
    echo "how to paint" >"$volume/grp/paint/v$release/doc/readme"
done
(cd "$volume" && find . -mindepth 1 | sort)

step "mkmeta scan VOLUME --select 'grp/*/v*/lib' -o sw.mkm"
mkmeta scan "$volume" --select 'grp/*/v*/lib' -o "$work/sw.mkm"

# Attributes named trusted.* are for root; user.* ones for mounts in user namespaces.
userxattr=
python3 -c "import os, sys; os.setxattr(sys.argv[1], 'trusted.probe', b'1')" "$work" 2>/dev/null || userxattr=--userxattr
step "mkmeta build sw.mkm LAYER $userxattr"
mkmeta build "$work/sw.mkm" "$layer" $userxattr

mount_layer() {
    if [ -z "$userxattr" ]; then
        mount -t overlay mkmeta -o "ro,metacopy=on,redirect_dir=follow,lowerdir=$layer:$volume" "$merged"
    else
        mount -t overlay mkmeta -o "ro,userxattr,lowerdir=$layer::$volume" "$inner" &&
            mount -t overlay mkmeta -o "ro,userxattr,lowerdir=$inner:$volume" "$merged"
    fi
}
if ! mount_layer 2>"$work/why"; then
    step "this machine does not mount it ($(tail -n1 "$work/why")); what was built:"
    (cd "$layer" && find . -mindepth 1 -printf '%M %s %p\n' | sort -k3)
    exit 0
fi

step "mounted over the volume: a selected directory, answered by the layer"
ls -l "$merged/grp/paint/v1.0/lib"
step "not selected, or published since: shows through from the volume"
mkdir -p "$volume/grp/paint/v1.2/lib"
ls -d "$merged/grp/paint/v1.0/doc" "$merged/grp/paint/v1.2/lib"
step "volume and mount compared, every name and every byte"
diff -r --no-dereference "$volume" "$merged"
echo "no difference"
