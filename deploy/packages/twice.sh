#!/bin/sh
# Builds the commit in two folders of different names, compares all files, and tries what
# was built (test/dist_test.go). make dist-check calls it.
set -eu

cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
commit=$(git rev-parse HEAD)
for folder in one the-other/further-down; do
	git clone -q --no-hardlinks . "$work/$folder"
	git -C "$work/$folder" checkout -q "$commit"
	mkdir -p "$work/$folder/bin"
	cp -a bin/nfpm bin/.nfpm-* bin/cyclonedx-gomod bin/.cyclonedx-gomod-* "$work/$folder/bin/"
	make -C "$work/$folder" --no-print-directory dist
done
diff -r "$work/one/dist" "$work/the-other/further-down/dist"
echo "both are the same"
HOMELAB_DIST=$work/one/dist go test -tags dist -count 1 -v ./test -run "^TestDist"
