#!/bin/sh
# Makes a local base image where no registry can be reached: Debian 12 with its own Python, from Debian's archive.
#
#     deploy/image/base.sh localhost/rapport-base
#
# An image of that name that is already there is kept. Where images are stored is buildah's business
# (CONTAINERS_STORAGE_CONF). RAPPORT_DEBIAN_MIRROR names another archive than Debian's own.
set -eu
image=${1:?usage: $0 IMAGE}

if [ "$(id -u)" != 0 ]; then
    echo "The image check needs root: debootstrap and buildah's chroot isolation both change the root directory." >&2
    exit 1
fi
missing=
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null; then
        echo "The image check needs$missing, which only Debian's apt-get can install here." >&2
        exit 1
    fi
    apt-get update -q
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $missing
fi

if buildah inspect --type image "$image" >/dev/null 2>&1; then
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm "$work/root" \
    ${RAPPORT_DEBIAN_MIRROR:+"$RAPPORT_DEBIAN_MIRROR"} >&2
# buildah adds an archive as it is; copying the directory would lose hard links.
tar -C "$work/root" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' -cf "$work/root.tar" .
container=$(buildah from scratch)
buildah add -q "$container" "$work/root.tar" / >&2
buildah config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin --cmd '["python3"]' "$container"
buildah commit -q --rm "$container" "$image" >&2
