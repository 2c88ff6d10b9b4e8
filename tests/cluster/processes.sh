# Sourced: starting and ending the cluster's processes. $PIDS/NAME holds "pid start-time" of each; the time tells our process
# from a later one with the same number, so that nothing else is ever ended.

# start_time PID: clock ticks since the machine's start (field 22 of stat, counted after the name, which may hold spaces);
# nothing for a process that has ended, be it still in the table.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" && $1 != "X" {print $20}'; }

# start NAME COMMAND...: in a session of its own, so that a terminal's Ctrl-C does not reach it. Descriptor 9 is the lock of
# whoever starts it, which must not live on in it.
start() {
  setsid "${@:2}" >"$LOGS/$1.log" 2>&1 </dev/null 9>&- &
  printf '%s %s\n' $! "$(start_time $!)" >"$PIDS/$1"
}

start_in_network() { start "$1" nsenter --net="/run/netns/$NETNS" -- "${@:2}"; }

pid_of() { cut -d' ' -f1 "$PIDS/$1"; }

# alive NAME
alive() {
  local pid time
  [ -e "$PIDS/$1" ] && read -r pid time <"$PIDS/$1" && [ -n "$time" ] && [ "$(start_time "$pid")" = "$time" ]
}

# stop NAME: at once; the cluster is thrown away, so nothing needs a goodbye.
stop() {
  if alive "$1"; then kill -KILL "$(pid_of "$1")" 2>/dev/null || true; fi
  rm -f "$PIDS/$1"
}

# wait_until WHAT SECONDS PROCESS COMMAND...: polls; gives up early when the process that should bring it about has ended.
wait_until() {
  local end=$((SECONDS + $2))
  until "${@:4}" >/dev/null 2>&1; do
    alive "$3" || fail "$3 ended while waiting for $1; the end of $LOGS/$3.log: $(tail -n 3 "$LOGS/$3.log")"
    [ $SECONDS -lt $end ] || fail "no $1 after $2 s; see $LOGS/$3.log"
    sleep 0.1
  done
}
