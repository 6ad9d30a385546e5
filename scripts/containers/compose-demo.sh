#!/bin/sh
# deploy/compose.yaml from nothing to nothing: starts it under a name of its own, publishes the reference example
# inside its network, waits for its outcome at the webhook receiver, compares what the target holds, prints both,
# and takes everything down, volumes too. Exit code 0 only if all of that went well.
#
# CONTEXT_INJECTOR_IMAGE, RABBITMQ_IMAGE, REDIS_IMAGE name other images. KEEP=1 leaves everything running.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

ready_within=180
outcome_within=60
job=reference-example
conversation=conv_8a7b9c2d1e3f

say() { echo "compose-demo: $*" >&2; }
fail() { say "error: $*"; exit 1; }

if docker compose version >/dev/null 2>&1; then
    compose() { docker compose "$@"; }
elif command -v docker-compose >/dev/null; then
    compose() { docker-compose "$@"; }
else
    fail "neither the docker compose plug-in nor docker-compose is there (Debian: apt-get install docker-compose)"
fi
for program in curl python3; do
    command -v "$program" >/dev/null || fail "$program is needed"
done

# Any free ports, and names that meet nobody's.
export AMQP_PORT= SANDBOX_PORT= WORKER_PORT= RELAY_PORT=
export COMPOSE_FILE=deploy/compose.yaml COMPOSE_PROJECT_NAME="context-injector-demo-$$"

passed=
end() {
    trap - EXIT INT TERM
    if [ -z "$passed" ]; then
        compose ps >&2 || true
        compose logs --no-color --tail 40 >&2 || true
    fi
    if [ -n "${KEEP:-}" ] && [ -n "$passed" ]; then
        say "everything runs on; end it with: COMPOSE_PROJECT_NAME=$COMPOSE_PROJECT_NAME" \
            "docker-compose --file $COMPOSE_FILE down --volumes"
    else
        compose down --volumes --remove-orphans --timeout 40 >&2 || passed=
    fi
    [ -n "$passed" ] || exit 1
}
trap end EXIT
trap 'exit 1' INT TERM

started=$(date +%s)
seconds() { echo "$(($(date +%s) - started)) s"; }

compose up --detach >&2 || fail "the services cannot be started"
for service in rabbitmq redis sandbox receiver worker relay; do
    state=none
    while [ "$state" != healthy ]; do
        container=$(compose ps --quiet "$service")
        state=$(docker inspect --format '{{ .State.Health.Status }}' "$container" 2>/dev/null || echo absent)
        [ $(($(date +%s) - started)) -lt "$ready_within" ] || fail "$service is $state after $(seconds)"
        [ "$state" = healthy ] || sleep 1
    done
done
say "all services are healthy after $(seconds)"

published=$(date +%s)
compose run --rm -T cli inject /demo/reference.json </dev/null || fail "the reference example was not published"
outcome() { compose logs --no-color receiver | sed -n "s/^[^{]*\({.*\"job_id\":\"$job\".*\)/\1/p" | head -n 1; }
found=$(outcome)
while [ -z "$found" ]; do
    [ $(($(date +%s) - published)) -lt "$outcome_within" ] || fail "no outcome of $job within $outcome_within s"
    sleep 1
    found=$(outcome)
done

address=$(compose port sandbox 8080)
held=$(curl --silent --show-error --fail --max-time 10 --noproxy '*' \
    "http://$address/_sandbox/conversations/$conversation") || fail "the target does not answer"
DELIVERY=$found HELD=$held python3 - <<'CHECK' || fail "that is not what the reference example asks for"
import json, os, sys

delivery, held = json.loads(os.environ["DELIVERY"]), json.loads(os.environ["HELD"])
print(json.dumps(delivery["event"], indent=2))
print("what the target holds:")
for key, entry in sorted(held["context"].items()):
    if not key.startswith("_"):
        print("  %s (%s) = %s" % (key, entry["scope"], json.dumps(entry["value"])))

expected = {
    "customer_tier": ("user", "premium"),
    "cart_total": ("session", 149.99),
    "last_intent": ("conversation", "checkout_flow"),
    "greeting": ("conversation", "Welcome premium user. Your cart contains 149.99."),
}
got = {key: (entry["scope"], entry["value"]) for key, entry in held["context"].items() if key in expected}
faults = ["the target holds %s" % got] if got != expected else []
if delivery["fault"] or delivery["answered"] >= 300:
    faults.append("the delivery: %s, answered %s" % (delivery["fault"], delivery["answered"]))
if delivery["event"]["data"]["verdict"] != "applied":
    faults.append("the verdict is %s" % delivery["event"]["data"]["verdict"])
print("\n".join("FAULT: " + fault for fault in faults), end="\n" if faults else "")
sys.exit(1 if faults else 0)
CHECK
passed=1
say "passed after $(seconds)"
