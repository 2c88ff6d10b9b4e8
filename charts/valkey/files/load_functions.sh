# load_functions.sh [OPTION_OF_VALKEY_CLI...]
# Gives the server the quota functions once it has read its data. Users may not: they share what is loaded.
set -eu
password=$(cat /etc/valkey-users/admin.password)
export VALKEYCLI_AUTH="$password" REDISCLI_AUTH="$password" # the second is what older clients read
until valkey-cli "$@" -e --user admin ping >/dev/null 2>&1; do sleep 0.1; done
exec valkey-cli "$@" -e --user admin -x FUNCTION LOAD REPLACE </etc/valkey/quota.lua >/dev/null
