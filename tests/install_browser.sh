#!/usr/bin/env bash
# Installs the browser that tests/test_explore.py drives: Debian's Chromium, if this is root. Without one, those tests are skipped.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
  command -v "$name" > /dev/null && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "$0: there is no Chromium; install the package chromium (Debian: as root, apt-get install chromium)." >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium > /dev/null
