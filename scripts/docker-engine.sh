#!/usr/bin/env bash
# Docker's engine for the container tests, on a Debian machine without one: `docker-engine.sh start`
# installs it where it is missing and starts it where it does not run; `stop` ends what `start` began.
# Both may be called again. An engine that runs already is used as it is, and never stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PID_FILE=.cache/dockerd.pid
readonly LOG_FILE=.cache/dockerd.log
readonly START_S=60
readonly STOP_S=60

serves() {
    timeout 20 docker info >/dev/null 2>&1
}

install() {
    local missing=() name
    for name in dockerd:docker.io docker-compose:docker-compose debootstrap:debootstrap \
        iptables:iptables; do
        command -v "${name%%:*}" >/dev/null || missing+=("${name#*:}")
    done
    # With the other tools, an engine may be anywhere: on another machine, or without a root here.
    if serves; then
        missing=("${missing[@]/docker.io/}")
        missing=("${missing[@]/iptables/}")
    fi
    read -r -a missing <<<"${missing[*]:-}"
    if [ "${#missing[@]}" -eq 0 ]; then
        return
    fi
    echo "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
}

start() {
    install
    if serves; then
        echo "an engine serves already: $(docker version --format '{{.Server.Version}}')"
        return
    fi
    mkdir -p .cache
    # A session of its own, so that it outlives this script and takes no signals of its terminal.
    setsid dockerd --log-level warn </dev/null >"$LOG_FILE" 2>&1 &
    echo "$!" >"$PID_FILE"
    local deadline=$((SECONDS + START_S))
    until serves; do
        if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$(cat "$PID_FILE")" 2>/dev/null; then
            echo "the engine does not serve; the end of its log:" >&2
            tail -n 30 "$LOG_FILE" >&2
            stop
            exit 1
        fi
        sleep 0.2
    done
    echo "started an engine: $(docker version --format '{{.Server.Version}}')"
}

# Whether the process that `start` began is there, and not another one with its number.
runs() {
    [ -f "$PID_FILE" ] && [ "$(cat "/proc/$(cat "$PID_FILE")/comm" 2>/dev/null)" = dockerd ]
}

stop() {
    if runs; then
        local pid deadline=$((SECONDS + STOP_S))
        pid=$(cat "$PID_FILE")
        kill -TERM "$pid"
        while runs && [ "$SECONDS" -lt "$deadline" ]; do
            sleep 0.2
        done
        if runs; then
            kill -KILL "$pid"
        fi
        echo "stopped the engine"
    fi
    rm -f "$PID_FILE"
}

case ${1:-} in
start) start ;;
stop) stop ;;
*)
    echo "usage: $0 start|stop" >&2
    exit 2
    ;;
esac
