# test.sh [OPTION_OF_VALKEY_CLI...]
# As a user who is limited to one deployment's keys: uses the quota functions, and is refused everything else.
set -eu
options=$*
export VALKEYCLI_AUTH="$PASSWORD" REDISCLI_AUTH="$PASSWORD" # the second is what older clients read
own='inferengine:{'$PLACE'/tenant}'
other='inferengine:{'$PLACE'-other/tenant}'

ask() { valkey-cli $options -h "$HOST" --user test "$@" 2>&1; }
expect() { # expect ANSWER COMMAND...
  wanted=$1
  shift
  answer=$(ask "$@") || true
  case $answer in
    *"$wanted"*) echo "$1: $wanted" ;;
    *) echo "failed: $*: got '$answer', not '$wanted'" && exit 1 ;;
  esac
}

# A Service leads to a pod that has just become ready a moment later.
tries=30
until [ $tries = 0 ]; do
  case $(ask PING) in *PONG*) break ;; esac
  tries=$((tries - 1))
  sleep 1
done
expect PONG PING
expect unknown_tenant FCALL inferengine_quota_v1_reserve 6 \
  "$own:limits" "$own:state" "$own:leases" "$own:requests" "$own:settled" "$own:audit" request 1 2 1000 1000
expect NOPERM GET "$other:limits"
expect NOPERM HSET "$other:limits" tokensPerDay 1
expect NOPERM FUNCTION DELETE inferengine_quota_v1
expect NOPERM FLUSHALL
expect NOPERM CONFIG GET requirepass
echo ready
