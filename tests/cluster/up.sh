#!/usr/bin/env bash
# up.sh [KWOK_NODES]: builds what is not built, starts the cluster unless it runs, prints KUBECONFIG=... as the only line on
# standard output. With KUBECONFIG set to another cluster it starts nothing and prints that.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
. "$HERE/processes.sh"
. "$HERE/lock.sh"

# A cluster of other sources is replaced, so that tests never run on yesterday's.
STEPS=(network.sh certificates.sh control_plane.sh node.sh dns.sh)
MADE_OF="$KUBERNETES $KWOK $PACKAGES $IMAGES $(source_key config "${STEPS[@]}")"

is_up() {
  local file
  [ -e "$STATE/made-of" ] || return 1
  [ "$(cat "$STATE/made-of")" = "$MADE_OF" ] || { say "the cluster was made of other sources: it is started anew"; return 1; }
  for file in "$PIDS"/*; do
    alive "$(basename "$file")" || { say "$(basename "$file") has ended: the cluster is started anew"; return 1; }
  done
}

undo() {
  say "the start failed: ending what had started (logs stay in $LOGS)"
  "$HERE/down.sh"
}

if users_cluster; then
  printf 'KUBECONFIG=%s\n' "$KUBECONFIG"
  exit 0
fi
"$HERE/requirements.sh"
take_lock
check_owner
if ! is_up; then
  "$HERE/binaries/build.sh"
  "$HERE/packages.sh"
  "$HERE/images/build.sh"
  "$HERE/down.sh" # what a crashed cluster left, or one of other sources
  say "starting"
  rm -rf "$STATE" && mkdir -p "$PIDS" "$LOGS" "$STATE/bin" && chmod 700 "$STATE"
  echo "$REPOSITORY" >"$STATE/owner"
  # What belongs to this cluster, whatever the sources come to be: kk is the client when called by that name.
  ln -s "$KUBERNETES" "$STATE/bin/kubectl"
  ln -s "$PACKAGES/usr/bin/ctr" "$STATE/bin/ctr"
  trap undo EXIT
  for step in "${STEPS[@]}"; do "$HERE/$step"; done
  trap - EXIT
  echo "$MADE_OF" >"$STATE/made-of"
fi
"$HERE/fake_nodes.sh" "${1:-3}"
printf 'KUBECONFIG=%s\n' "$CLUSTER_KUBECONFIG"
