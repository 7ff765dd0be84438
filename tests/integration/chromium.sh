#!/usr/bin/env bash
# Unpack Debian's Chromium, and the libraries and fonts this machine lacks, below FOLDER.
# Nothing outside FOLDER changes and no root is needed: apt has its lists and its cache there too.
# Usage: chromium.sh FOLDER
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
rm -rf "$folder"/{apt,root,version}
mkdir -p "$folder"/apt/{lists,archives}/partial "$folder/root"

apt() {
    tool=$1
    shift
    "$tool" -qq -o Acquire::Retries=3 -o Debug::NoLocking=1 -o APT::Sandbox::User= \
        -o Dir::State::Lists="$folder/apt/lists" -o Dir::Cache="$folder/apt" "$@"
}

apt apt-get update
# What installing it here would add: the browser, the libraries that are missing and a Latin font.
missing=$(apt apt-get --simulate --no-install-recommends install chromium fonts-dejavu-core |
    awk '$1 == "Inst" { print $2 }')
cd "$folder/apt/archives"
apt apt-get download ${missing:-chromium fonts-dejavu-core}
for package in *.deb; do
    dpkg-deb --extract "$package" "$folder/root"
done
libraries=$(find "$folder/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
printf '%s\n' "$libraries" >"$folder/libraries"
LD_LIBRARY_PATH=$libraries "$folder/root/usr/lib/chromium/chromium" --version >"$folder/apt/version"
mv "$folder/apt/version" "$folder/version"
rm -rf "$folder/apt"
