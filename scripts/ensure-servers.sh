#!/bin/sh
# Sees to it that RabbitMQ and Redis can be started: addresses in the environment, binaries, Debian's packages
# where we are root, containers; otherwise says in one sentence what to do. Starts nothing.
# With the argument "tests" it also fetches what the tests use of other people's programs, where it can.
set -eu

has() { command -v "$1" >/dev/null 2>&1; }
has_rabbitmq() { [ -n "${AMQP_URL:-}" ] || [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] || has rabbitmq-server; }
has_redis() { [ -n "${REDIS_URL:-}" ] || has redis-server; }
is_debian_root() { [ "$(id -u)" -eq 0 ] && has apt-get; }

install() {
    echo "installing $* (apt-get) …" >&2
    # A package's service is not wanted, only its program: services are not started during the installation.
    policy=/usr/sbin/policy-rc.d
    made=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        made=1
    fi
    status=0
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; } \
        >/tmp/context-injector-apt.log 2>&1 </dev/null || status=$?
    [ -z "$made" ] || rm -f "$policy"
    if [ "$status" -ne 0 ]; then
        tail -n 5 /tmp/context-injector-apt.log >&2
    fi
    rm -f /tmp/context-injector-apt.log
    return "$status"
}

wanted=
has_rabbitmq || wanted="$wanted rabbitmq-server"
has_redis || wanted="$wanted redis-server"
if [ -n "$wanted" ]; then
    # shellcheck disable=SC2086 # a list of names
    if is_debian_root && install $wanted; then
        :
    elif has docker && docker version >/dev/null 2>&1; then
        echo "no$wanted here: containers are used" >&2
    else
        echo "error: RabbitMQ and Redis are needed: set AMQP_URL and REDIS_URL, or install rabbitmq-server and" \
            "redis-server, or docker" >&2
        exit 1
    fi
fi

if [ "${1:-}" = tests ]; then
    wanted=
    has amqp-publish || wanted="$wanted amqp-tools"
    has curl || wanted="$wanted curl"
    /usr/bin/python3 -c 'import pika' 2>/dev/null || wanted="$wanted python3-pika"
    # shellcheck disable=SC2086
    if [ -n "$wanted" ] && is_debian_root; then
        install $wanted || echo "no$wanted here: the tests that need them are skipped" >&2
    fi
fi
