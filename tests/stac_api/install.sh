#!/usr/bin/env bash
# Installs what tests/stac_api/server.py runs: PostgreSQL with PostGIS (Debian packages, if this is root), and
# stac-fastapi on pgstac in .venv-stac. Quick where all is there. Without it those tests are skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
needed=tests/stac_api/requirements.txt
venv=.venv-stac
done=$venv/.installed

# a version of PostgreSQL that has both the server and PostGIS
have_postgis() {
  for bin in /usr/lib/postgresql/*/bin; do
    version=$(basename "$(dirname "$bin")")
    [ -x "$bin/initdb" ] && [ -e "/usr/share/postgresql/$version/extension/postgis.control" ] && return 0
  done
  return 1
}

if ! have_postgis; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
    echo "$0: PostgreSQL with PostGIS is missing; install the packages postgresql and postgis (Debian: as root," \
      'apt-get install postgresql postgresql-15-postgis-3) and run this again.' >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends postgresql > /dev/null
  version=$(basename "$(dirname "$(ls -d /usr/lib/postgresql/*/bin | tail -1)")")
  apt-get install -y -qq --no-install-recommends "postgresql-$version-postgis-3" > /dev/null
fi

if ! cmp -s "$needed" "$done"; then
  "${PYTHON:-python3}" -m venv --clear "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$needed"
  cp "$needed" "$done"
fi
