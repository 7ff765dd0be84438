#!/usr/bin/env bash
# Unpack Debian packages, and the libraries that this machine lacks for them, below FOLDER.
# Nothing outside FOLDER changes and no root is needed: apt has its lists and its cache there too.
# FOLDER/libraries is what LD_LIBRARY_PATH needs; FOLDER/version, written last, what PROGRAM says it is.
# Usage: debian.sh FOLDER PROGRAM PACKAGE...
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
program=$2
shift 2
rm -rf "$folder"/{apt,root,version}
mkdir -p "$folder"/apt/{lists,archives}/partial "$folder/root"

apt() {
    tool=$1
    shift
    "$tool" -qq -o Acquire::Retries=3 -o Debug::NoLocking=1 -o APT::Sandbox::User= \
        -o Dir::State::Lists="$folder/apt/lists" -o Dir::Cache="$folder/apt" "$@"
}

apt apt-get update
# What installing them here would add: the packages and the libraries that are missing.
missing=$(apt apt-get --simulate --no-install-recommends install "$@" | awk '$1 == "Inst" { print $2 }')
# Nothing is missing where they are installed; then a copy of the packages does.
cd "$folder/apt/archives"
apt apt-get download ${missing:-"$@"}
for package in *.deb; do
    dpkg-deb --extract "$package" "$folder/root"
done
libraries=$(find "$folder/root" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
printf '%s\n' "$libraries" >"$folder/libraries"
LD_LIBRARY_PATH=$libraries "$folder/root/$program" --version | sed -n 1p >"$folder/apt/version"
mv "$folder/apt/version" "$folder/version"
rm -rf "$folder/apt"
