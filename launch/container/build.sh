#!/usr/bin/env bash
# Builds a target of the Dockerfile beside it with buildah (Debian's package) and tries it as the image's own user:
#
#     bash launch/container/build.sh trainer REGISTRY/anygpt:0.1.0 [--build-arg EXTRAS=tpu …]
#
# BASES=debian is for a place that no registry of images is reached from: it makes the two base images of that name itself
# (with mmdebstrap, as root). They are Debian's Python of the same release and version, and, in the place of Beam's image, a
# `boot` that does nothing: the result is to be looked at, and not to be run by Beam.
set -euo pipefail
cd "$(dirname "$0")/../.."
target=${1:?trainer or beam-worker} tag=${2:?the name of the image}
shift 2
command -v buildah >/dev/null || { echo "anygpt: buildah is not on the PATH; install Debian's package of that name." >&2; exit 2; }
command -v crun >/dev/null || command -v runc >/dev/null || export BUILDAH_ISOLATION=chroot

# The image $1 of a folder $2; what else is given goes to `buildah config`.
from_folder() {
  local image=$1 folder=$2 container
  shift 2
  container=$(buildah from scratch)
  # Packed, because links between a package's files are to be kept.
  tar -C "$folder" -cf "$folder.tar" .
  buildah add -q "$container" "$folder.tar" / >/dev/null
  buildah config "$@" "$container"
  buildah commit -q --rm "$container" "$image" >/dev/null
}

debian_bases() {
  local folder python beam version release
  python=$(sed -n 's/^FROM \(python:[^ ]*\).*/\1/p' launch/container/Dockerfile)
  beam=$(sed -n 's/^FROM \(apache\/beam[^ ]*\).*/\1/p' launch/container/Dockerfile)
  # Others would make all layers anew.
  if buildah images --quiet "$python" >/dev/null 2>&1 && buildah images --quiet "$beam" >/dev/null 2>&1; then return; fi
  IFS=: read -r _ version <<<"$python"
  release=${version##*-} version=${version%%-*}
  folder=$(mktemp -d)
  mmdebstrap --quiet --mode=root --variant=apt --include="ca-certificates,python$version,python$version-venv" "$release" "$folder/python"
  chroot "$folder/python" "python$version" -m venv /usr/local
  # The network of this machine: its certificates.
  cp /etc/ssl/certs/ca-certificates.crt "$folder/python/etc/ssl/certs/"
  printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$folder/python/etc/pip.conf"
  from_folder "docker.io/library/$python" "$folder/python" --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin --cmd python3
  mkdir -p "$folder/beam/opt/apache/beam"
  printf '#!/bin/sh\necho "This is not the boot of Beam." >&2\nexit 1\n' >"$folder/beam/opt/apache/beam/boot"
  chmod +x "$folder/beam/opt/apache/beam/boot"
  from_folder "docker.io/$beam" "$folder/beam"
  rm -r "$folder"
}

case "${BASES:-registry}" in
  registry) pull=--pull ;;
  debian) pull=--pull-never; debian_bases ;;
  *) echo "anygpt: BASES=$BASES must be registry or debian." >&2; exit 2 ;;
esac
buildah build "$pull" --layers --file launch/container/Dockerfile --ignorefile launch/container/Dockerfile.dockerignore \
  --target "$target" --tag "$tag" "$@" .

container=$(buildah from --pull-never "$tag")
trap 'buildah rm "$container" >/dev/null' EXIT
buildah config --workingdir /home/anygpt "$container"
buildah run -e JAX_PLATFORMS=cpu "$container" -- sh -e <<'CHECK'
echo "user $(id -u), home $HOME"
touch "$HOME/may-write"
if [ "$(id -u)" != 0 ] && touch /opt/anygpt/may-not-write 2>/dev/null; then exit 1; fi
package=$(python -c 'import anygpt_jax; print(anygpt_jax.__path__[0])')
if [ "$(id -u)" != 0 ] && touch "$package/may-not-write" 2>/dev/null; then exit 1; fi
# Every package has the version that it was tested in.
sed -n 's/^\([^# ]*==[^ ;]*\).*/\1/p' /opt/anygpt/constraints/py311.txt | sort -u >tested.txt
pip freeze | grep '==' | sed 's/==.*//' | while read -r name; do grep -i "^$name==" tested.txt || true; done >wanted.txt
pip freeze >there.txt
if grep -ixvFf there.txt wanted.txt >other.txt; then echo "of another version than in constraints/:" && cat other.txt && exit 1; fi
echo "$(wc -l <wanted.txt) packages as they were tested"
python -c 'import anygpt_jax.training.loop, anygpt_jax.multihost, jax; print("jax", jax.__version__)'
if pip show --quiet seqio 2>/dev/null; then
  python -c 'import anygpt_jax.tasks.tokenize, anygpt_jax.evaluation.main, apache_beam as b; print("Beam", b.__version__)'
fi
if [ -e /opt/anygpt/constraints/google_cloud.txt ]; then # a worker of Beam
  python -c 'import apache_beam.runners.dataflow.internal.apiclient, apache_beam.io.gcp.gcsio'
fi
anygpt generate --prompt "a blue fox left of a red apple" --to image --out fox.png # by the shipped model
python -c 'from PIL import Image; i = Image.open("fox.png"); print("fox.png", i.size, len(set(i.convert("RGB").get_flattened_data())), "colours")'
CHECK
buildah images "$tag"
