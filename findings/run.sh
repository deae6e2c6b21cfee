#!/usr/bin/env bash
# Runs every finding, or those named, and says which still hold. Exit code 1 if one has changed.
set -uo pipefail
cd "$(dirname "$0")"
status=0
names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(ls -- *.sh | grep -vx run.sh)
for name in "${names[@]}"; do
  name=$(basename "$name" .sh).sh
  printf '== %s\n' "$name"
  if bash "$name"; then printf 'holds\n'; else printf 'CHANGED, or could not be run\n'; status=1; fi
done
exit $status
