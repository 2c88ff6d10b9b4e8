# Sourced: one cluster a machine, one command at work on it.

# take_lock: descriptor 9 holds it until the script ends. A script called by one that has it goes on with it.
take_lock() {
  [ -z "${INFERENGINE_CLUSTER_LOCKED:-}" ] || return 0
  exec 9>>"$STATE.lock"
  flock --nonblock 9 || fail "$(cat "$STATE.lock") is at work on the test cluster of this machine: wait for it to end"
  printf '%s in %s (pid %s)' "$(basename "$0" .sh)" "$REPOSITORY" $$ >"$STATE.lock"
  export INFERENGINE_CLUSTER_LOCKED=1
}

# check_owner: another clone's cluster is left alone.
check_owner() {
  local owner
  owner=$(cat "$STATE/owner" 2>/dev/null) || return 0
  [ "$owner" = "$REPOSITORY" ] || [ -n "${FORCE:-}" ] \
    || fail "the test cluster of this machine was started from $owner, and there is one at a time: end it there with make cluster-down (here: make cluster-down FORCE=1)"
}
