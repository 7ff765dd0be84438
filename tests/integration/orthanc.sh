#!/usr/bin/env bash
# Unpack Debian's Orthanc with its DICOMweb plugin, and the libraries this machine lacks, below FOLDER.
# Nothing outside FOLDER changes and no root is needed: apt has its lists and its cache there too.
# Usage: orthanc.sh FOLDER
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
# What installing them here would add: the two packages and the libraries that are missing.
missing=$(apt apt-get --simulate --no-install-recommends install orthanc orthanc-dicomweb |
    awk '$1 == "Inst" { print $2 }')
# Nothing is missing where they are installed; then a copy of the two does.
cd "$folder/apt/archives"
apt apt-get download ${missing:-orthanc orthanc-dicomweb}
for package in *.deb; do
    dpkg-deb --extract "$package" "$folder/root"
done
libraries=$(dirname "$(find "$folder/root" -name 'libdcmdata.so*' -print -quit)")
LD_LIBRARY_PATH=$libraries "$folder/root/usr/sbin/Orthanc" --version | sed -n 1p >"$folder/apt/version"
mv "$folder/apt/version" "$folder/version"
rm -rf "$folder/apt"
