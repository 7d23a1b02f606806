#!/bin/sh
# Builds all that is released into dist/: programs, packages, completions, man pages, a
# bill of materials of each program, and SHA256SUMS. make dist calls it.
#
# The same commit gives the same bytes wherever it is built: times are the commit's,
# paths are cut off, lists are sorted, and nothing of the machine goes in.
set -eu

cd "$(dirname "$0")/../.."
out=dist
module=github.com/homeiac/homelab
version=${VERSION:?is set by make dist}

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH CGO_ENABLED=0 LC_ALL=C TZ=UTC GOFLAGS=-buildvcs=false
umask 022

# v1.2.3-4-gabc is 1.2.3+4.gabc for dpkg: later than 1.2.3, earlier than 1.2.4;
# v1.2.3-rc1 is 1.2.3~rc1: earlier than 1.2.3. Without a tag it is earlier than any, and
# dated.
case $version in
v[0-9]*) deb_version=$(echo "${version#v}" | sed -E 's/-(alpha|beta|pre|rc)/~\1/; s/-/+/; s/-/./g') ;;
*) deb_version=0.0~git$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M%S).$(echo "$version" | tr - .) ;;
esac
export DEB_VERSION="$deb_version"

rm -rf "$out"
mkdir -p "$out"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

# build OS ARCH PROGRAM FILE [FLAG...]
build() {
	os=$1 arch=$2 program=$3 file=$4
	shift 4
	GOOS=$os GOARCH=$arch go build -trimpath -ldflags "-s -w -X $module/internal/version.version=$version ${sums:+-X $module/internal/version.packages=$sums}" \
		-o "$file" "$@" "./$program"
}

# What the commands say of themselves, by builds that can write it down. The default
# files in it are to be everybody's.
for program in agent/hl-agent controller/hl-controller cli/hlctl; do
	build "$(go env GOHOSTOS)" "$(go env GOHOSTARCH)" $program "$stage/manual" -tags manual
	HOME='~' XDG_CONFIG_HOME='' "$stage/manual" manual "$out"
done

# share NAME: a package's /usr/share.
share() {
	root=$stage/$1
	rm -rf "$root"
	mkdir -p "$root/doc/$1" "$root/lintian/overrides" "$root/bash-completion/completions" \
		"$root/zsh/vendor-completions" "$root/fish/vendor_completions.d"
	cp deploy/packages/copyright "$root/doc/$1/copyright"
	printf '%s (%s) unstable; urgency=medium\n\n  * Built from %s; what changed is in its log.\n\n -- homelab maintainers <maintainers@users.noreply.github.com>  %s\n' \
		"$1" "$deb_version" "$version" "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$root/doc/$1/changelog.gz"
	cp "deploy/packages/$1.lintian" "$root/lintian/overrides/$1"
	case $1 in
	hlctl) programs=hlctl section=1 ;;
	*) programs='hl-agent hl-controller' section=8 ;;
	esac
	mkdir -p "$root/man/man$section"
	for p in $programs; do
		cp "$out/completions/$p.bash" "$root/bash-completion/completions/$p"
		cp "$out/completions/_$p" "$root/zsh/vendor-completions/_$p"
		cp "$out/completions/$p.fish" "$root/fish/vendor_completions.d/$p.fish"
		for page in "$out/man/$p.$section" "$out/man/$p"-*".$section"; do
			[ -e "$page" ] && gzip -9nc "$page" >"$root/man/man$section/${page##*/}.gz"
		done
	done
	find "$root" -type d -empty -delete
	find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# package NAME ARCH
package() {
	ARCH=$2 STAGE=$stage bin/nfpm package --config "deploy/packages/$1.yaml" --packager deb --target "$out/$1_${deb_version}_$2.deb" >/dev/null
}

share homelab
sums=
for arch in amd64 arm64; do
	for program in agent/hl-agent controller/hl-controller; do
		name=${program##*/}
		build linux $arch $program "$out/$name-linux-$arch"
		cp "$out/$name-linux-$arch" "$stage/$name"
	done
	package homelab $arch
done

# hlctl knows the packages that it installs on hosts by their checksums.
sums=$(cd "$out" && sha256sum homelab_*.deb | awk '{ printf "%s%s=%s", sep, $2, $1; sep = "," }')
share hlctl
for os in linux darwin; do
	for arch in amd64 arm64; do
		build $os $arch cli/hlctl "$out/hlctl-$os-$arch"
	done
done
for arch in amd64 arm64; do
	cp "$out/hlctl-linux-$arch" "$stage/hlctl-linux"
	package hlctl $arch
done

# Of what is in the programs, not of what go.mod could bring: tests are in no program.
for file in "$out"/hl*-linux-amd64; do
	name=${file##*/}
	bin/cyclonedx-gomod bin -json -std -noserial -notimestamp -version "$version" -output "$out/${name%-linux-amd64}.cdx.json" "$file" 2>"$stage/log" ||
		{ cat "$stage/log" >&2; exit 1; }
done

(cd "$out" && find . -type f ! -name SHA256SUMS | sed 's|^\./||' | sort | xargs sha256sum >"$stage/SHA256SUMS" && mv "$stage/SHA256SUMS" .)
chmod 644 "$out/SHA256SUMS"
echo "dist/: $(wc -l <"$out/SHA256SUMS") files of $version, packages $deb_version"
