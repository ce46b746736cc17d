#!/bin/sh
# Prometheus for the runs of this machine, and Grafana where it is installed, until Ctrl-C. Both listen on this machine alone.
# Checked: shellcheck; Prometheus 2.42 started by it and asked over HTTP. Grafana was not at hand: its part has never run.
set -eu
cd "$(dirname "$0")/.."

if ! command -v prometheus > /dev/null; then
  echo "Prometheus is not installed: apt-get install prometheus, or https://prometheus.io/download, and again make dashboards." >&2
  echo "Without it: the figures of a run are in its metrics.jsonl and in MLflow (make ui)." >&2
  exit 1
fi
mkdir -p runs/.prometheus/targets
prometheus --config.file=dashboards/prometheus.yml --storage.tsdb.path=runs/.prometheus/data --storage.tsdb.retention.time=30d \
  --web.listen-address=127.0.0.1:9090 --log.level=warn &
started=$!
trap 'kill $started 2> /dev/null || true' EXIT INT TERM
echo "Prometheus  http://127.0.0.1:9090/alerts"

home=${GRAFANA_HOME:-/usr/share/grafana} # where the packages of Grafana put what it needs
if command -v grafana > /dev/null && [ -d "$home" ]; then
  # No login: whoever reaches this port of this machine may look, nobody may change anything.
  RAYDINO_BOARDS="$PWD/dashboards/grafana/boards" GF_PATHS_PROVISIONING="$PWD/dashboards/grafana/provisioning" \
    GF_PATHS_DATA="$PWD/runs/.prometheus/grafana" GF_PATHS_LOGS="$PWD/runs/.prometheus/grafana" GF_SERVER_HTTP_ADDR=127.0.0.1 \
    GF_AUTH_ANONYMOUS_ENABLED=true GF_AUTH_DISABLE_LOGIN_FORM=true GF_AUTH_BASIC_ENABLED=false GF_LOG_MODE=file \
    GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES=false \
    GF_NEWS_NEWS_FEED_ENABLED=false grafana server --homepath "$home" &
  started="$started $!"
  echo "Grafana     http://127.0.0.1:3000/dashboards"
else
  echo "Grafana is not installed; its boards are in dashboards/grafana (https://grafana.com/grafana/download)."
fi
wait
